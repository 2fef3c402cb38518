"""DART: sentences for sets of triples (Nan et al. 2021), from the original JSON (`dart-v1.1.1-full-train.json`)."""

from collections.abc import Iterator
from typing import Any

from adamix.data.generation.data import SourceRow
from adamix.data.generation.triples import read_triples
from adamix.errors import InvalidData


def read_dart(name: str, entries: list[Any]) -> Iterator[SourceRow]:
    """The rows of a parsed file, each a `tripleset` with its `annotations`. Raises InvalidData."""
    for number, entry in enumerate(entries, start=1):
        where = f"{name}: entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("annotations"), list):
            raise InvalidData(f"{where}: not an object with a tripleset and annotations")
        source = read_triples(where, entry.get("tripleset"), lower_predicates=True)
        yield SourceRow(where, source, [_text(where, annotation) for annotation in entry["annotations"]])


def _text(where: str, annotation: object) -> object:
    if not isinstance(annotation, dict):
        raise InvalidData(f"{where}: an annotation is not an object with a text")
    return annotation.get("text")
