"""Sets of triples as one line of text, in the form that the published data-to-text models were trained on.

`Subject : predicate : object | Subject : …`, as LoRA and AdaMix feed WebNLG and DART to GPT-2 (microsoft/AdaMix,
`NLG/src/format_converting_{webnlg,dart}.py`). Underscores and quotation marks of the data stay.
"""

from collections.abc import Iterable

from adamix.errors import InvalidData

Triple = tuple[str, str, str]


def linearise(triples: Iterable[Triple]) -> str:
    """One line for the triples, in their order; white space inside a part is one space."""
    return " | ".join(" : ".join(" ".join(part.split()) for part in triple) for triple in triples)


def read_triple(where: str, value: object) -> Triple:
    """A triple written as `subject | predicate | object`, or as a list of the three. Raises InvalidData."""
    parts = value.split(" | ", 2) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 3:
        raise InvalidData(f"{where}: a triple is not of the form subject | predicate | object")
    subject, predicate, target = parts
    if not (isinstance(subject, str) and isinstance(predicate, str) and isinstance(target, str)):
        raise InvalidData(f"{where}: a triple has a part that is not a string")
    if not (subject.strip() and predicate.strip()):
        raise InvalidData(f"{where}: a triple has an empty subject or predicate")
    return subject, predicate, target


def read_triples(where: str, values: object, *, lower_predicates: bool = False) -> str:
    """A list of triples as one line.

    Args:
        lower_predicates: write predicates in lower case, as the published models saw DART.

    Raises:
        InvalidData: it is no list, it is empty, or a triple of it is malformed.
    """
    if not isinstance(values, list | tuple) or not values:
        raise InvalidData(f"{where}: no triples here")
    triples = [read_triple(where, value) for value in values]
    if lower_predicates:
        triples = [(subject, predicate.lower(), target) for subject, predicate, target in triples]
    return linearise(triples)
