"""Rows of text-generation data sets of the `datasets` library, told apart by their columns."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adamix.data.generation.data import SourceRow
from adamix.data.generation.e2e import linearise_mr
from adamix.data.generation.triples import read_triples
from adamix.data.generation.webnlg import category_of, is_reference
from adamix.data.hub import load_splits
from adamix.data.task import Split
from adamix.errors import InvalidData

Record = Mapping[str, Any]


def read_generation_hub(source: str, split: Split) -> tuple[dict[Split, Iterator[SourceRow]], bool]:
    """The rows of `NAME` or `NAME:CONFIG` that the answer depends on, and whether the data set has several splits.

    Raises:
        InvalidData: the library is missing, it cannot load the data set, or the columns are not known.
    """
    found = load_splits(source)
    is_split = set(found) != {"train"}
    if is_split and split not in found:
        raise InvalidData(f"{source} has no {split} split, only {', '.join(found)}", reason="SPLIT_MISSING")
    part: Split = split if is_split else "train"
    return {part: _rows(source, part, found[part])}, is_split


def _rows(source: str, split: Split, data: Any) -> Iterator[SourceRow]:
    columns = set(data.features)
    read = next((reader for wanted, reader in _FORMATS if wanted <= columns), None)
    if read is None:
        raise InvalidData(
            f"{source} has the columns {', '.join(data.features)}; known are those of E2E, WebNLG and DART, and "
            "source with target or references"
        )
    for number, record in enumerate(data):
        row = read(f"{source} {split} row {number}", record)
        if row is not None:
            yield row


def _e2e(where: str, record: Record) -> SourceRow:
    source = linearise_mr(where, record["meaning_representation"])
    return SourceRow(where, source, _references(record, "human_reference"))


def _webnlg(where: str, record: Record) -> SourceRow | None:
    """The hub's form of the XML: the first modified triple set, and the parts of all texts side by side."""
    triple_sets = _column(record["modified_triple_sets"], "mtriple_set")
    texts = _column(record["lex"], "text")
    comments = _column(record["lex"], "comment") or [None] * len(texts)
    languages = _column(record["lex"], "lang") or [None] * len(texts)
    if not len(texts) == len(comments) == len(languages):
        raise InvalidData(f"{where}: lex has {len(texts)} texts, but {len(comments)} comments")
    marked = zip(texts, comments, languages, strict=True)
    references = [text for text, comment, language in marked if is_reference(comment, language)]
    if not references:
        return None
    source = read_triples(where, triple_sets[0] if triple_sets else None)
    return SourceRow(where, source, references, category_of(where, record.get("category")))


def _webnlg_of_gem(where: str, record: Record) -> SourceRow:
    source = read_triples(where, record["input"])
    return SourceRow(where, source, _references(record), category_of(where, record.get("category")))


def _dart(where: str, record: Record) -> SourceRow:
    source = read_triples(where, record["tripleset"], lower_predicates=True)
    references = _column(record["annotations"], "text") if "annotations" in record else _references(record)
    return SourceRow(where, source, references)


def _plain(where: str, record: Record) -> SourceRow:
    return SourceRow(where, record["source"], _references(record))


def _references(record: Record, single: str = "target") -> list[Any]:
    """`references`; where there are none, as in the train splits of GEM, the one target."""
    return list(record.get("references") or ()) or [record.get(single if single in record else "target")]


def _column(value: Any, name: str) -> list[Any]:
    """A list of records, or a record of lists: `datasets` has had both forms for the same thing."""
    if isinstance(value, dict):
        return list(value.get(name) or ())
    return [record[name] for record in value if name in record]


_FORMATS: tuple[tuple[set[str], Callable[[str, Record], SourceRow | None]], ...] = (
    ({"meaning_representation", "human_reference"}, _e2e),
    ({"meaning_representation", "target"}, _e2e),
    ({"modified_triple_sets", "lex"}, _webnlg),
    ({"tripleset", "annotations"}, _dart),
    ({"tripleset", "target"}, _dart),
    ({"input", "target", "webnlg_id"}, _webnlg_of_gem),
    ({"source", "target"}, _plain),
    ({"source", "references"}, _plain),
)
