"""E2E NLG: restaurant descriptions from attributes (Novikova et al. 2017), from its original CSV files.

A meaning representation `name[Blue Spice], eatType[pub]` becomes `name : Blue Spice | Type : pub`, with three
attributes renamed, as in the data of LoRA and AdaMix. Those texts are tokenised as well (`£ 30`, `star .`); a
`.txt` file of theirs, `source||reference` a line, is read as it is.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from adamix.data.files import read_csv, read_lines
from adamix.data.generation.data import SourceRow
from adamix.errors import InvalidData

ATTRIBUTE_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}

_ATTRIBUTE = re.compile(r"\s*([^\[\],]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")
_SEPARATOR = "||"


def linearise_mr(where: str, representation: object) -> str:
    """`attribute[value], …` as `attribute : value | …`, in the order of the data. Raises InvalidData."""
    if not isinstance(representation, str) or not representation.strip():
        raise InvalidData(f"{where}: no meaning representation here")
    parts: list[str] = []
    position = 0
    while position < len(representation):
        match = _ATTRIBUTE.match(representation, position)
        if match is None:
            raise InvalidData(f"{where}: meaning representation is not of the form attribute[value], attribute[value]")
        name, value = match.groups()
        parts.append(f"{ATTRIBUTE_NAMES.get(name, name)} : {' '.join(value.split())}")
        position = match.end()
    return " | ".join(parts)


def read_generation_csv(path: Path) -> Iterator[SourceRow]:
    """A CSV file with the columns `mr` and `ref` (E2E), or `source` and `target`; one reference a row."""
    for where, fields in read_csv(path, _columns):
        if "mr" in fields:
            yield SourceRow(where, linearise_mr(where, fields["mr"]), (fields["ref"],))
        else:
            yield SourceRow(where, fields["source"], (fields["target"],))


def read_joined(path: Path) -> Iterator[SourceRow]:
    """A text file with `source||reference` on each line that is not blank."""
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path.name}:{number}"
        if line.strip():
            source, separator, reference = line.partition(_SEPARATOR)
            if not separator:
                raise InvalidData(f"{where}: no {_SEPARATOR} between a source and its reference")
            yield SourceRow(where, source, (reference,))


def _columns(where: str, header: list[str]) -> dict[str, int]:
    names = [field.strip().lower() for field in header]
    for wanted in (("mr", "ref"), ("source", "target")):
        if all(name in names for name in wanted):
            for name in wanted:
                if names.count(name) > 1:
                    raise InvalidData(f"{where}: two columns named {name}")
            return {name: names.index(name) for name in wanted}
    raise InvalidData(f"{where}: the header needs the columns mr and ref (E2E), or source and target")
