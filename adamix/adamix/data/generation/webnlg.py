"""WebNLG: texts for sets of DBpedia triples (Gardent et al. 2017), from the original XML, or the JSON made of it.

The modified triples are the source. References are the English texts that annotators called good; an entry without
one is left out, since test files without texts are published beside those with them.

XML files of strangers: parsed by expat event by event, which costs memory for one entry. A document type is refused,
so there are no entities to expand or to fetch (XML's own five and character references stay). The standard library's
other parsers would need a guard around them (defusedxml) and know no line numbers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from adamix.data.files import check_file
from adamix.data.generation.data import SourceRow
from adamix.data.generation.triples import read_triples
from adamix.data.rows import MAX_TEXT_CHARS
from adamix.errors import InvalidData

MAX_XML_BYTES = 256 << 20
# The published files go down to 7.
MAX_DEPTH = 32
_CHUNK_BYTES = 1 << 16


def read_webnlg_xml(path: Path) -> Iterator[SourceRow]:
    """The entries of one file that have a reference. Raises InvalidData, with `FILE:LINE`."""
    check_file(path, MAX_XML_BYTES)
    entries = _Entries(path.name)
    parser = entries.parser
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                parser.Parse(chunk, False)
                yield from entries.take()
            parser.Parse(b"", True)
    except OSError as error:
        raise InvalidData(f"cannot read {path.name}: {error.strerror}") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        # The last two: an encoding that expat does not have.
        raise InvalidData(f"{path.name}:{parser.CurrentLineNumber}: malformed XML ({error})") from None


def read_webnlg_json(name: str, entries: list[Any]) -> Iterator[SourceRow]:
    """The `entries` of a parsed file as the challenge and LoRA publish them: `{"1": {…}}`, `{"2": {…}}`, …"""
    for number, numbered in enumerate(entries, start=1):
        where = f"{name}: entry {number}"
        entry = next(iter(numbered.values()), None) if isinstance(numbered, dict) and len(numbered) == 1 else None
        if not isinstance(entry, dict):
            raise InvalidData(f"{where}: not an object with the entry under its number")
        triples = entry.get("modifiedtripleset")
        texts = entry.get("lexicalisations")
        if not isinstance(triples, list) or not isinstance(texts, list):
            raise InvalidData(f"{where}: no modifiedtripleset or no lexicalisations")
        parts = [
            [t.get(key) for key in ("subject", "property", "object")] if isinstance(t, dict) else t for t in triples
        ]
        references = [
            text.get("lex")
            for text in texts
            if isinstance(text, dict) and is_reference(text.get("comment"), text.get("lang"))
        ]
        if references:
            yield SourceRow(where, read_triples(where, parts), references, category_of(where, entry.get("category")))


def is_reference(comment: object, language: object) -> bool:
    """Whether a text is to be learned from and compared with: called good (or nothing), and English (or unmarked)."""
    return comment in ("good", "", None) and language in ("en", "", None)


def category_of(where: str, value: object) -> str | None:
    """The category, where an entry has one. Raises InvalidData for anything but a string."""
    if value is None or isinstance(value, str):
        return value
    raise InvalidData(f"{where}: category is not a string")


class _Entries:
    """Collects entries from the events of an XML parser: `entry` holds `modifiedtripleset/mtriple` and `lex`."""

    def __init__(self, name: str) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._refuse_document_type
        self._name = name
        self._open: list[str] = []
        self._text: list[str] = []
        self._text_chars = 0
        self._is_reference = False
        self._where = name
        self._category: str | None = None
        self._triples: list[str] = []
        self._references: list[str] = []
        self._complete: list[SourceRow] = []

    def take(self) -> list[SourceRow]:
        """The entries that have ended since the last call."""
        complete, self._complete = self._complete, []
        return complete

    def _here(self) -> str:
        return f"{self._name}:{self.parser.CurrentLineNumber}"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._open.append(tag)
        if len(self._open) > MAX_DEPTH:
            raise InvalidData(f"{self._here()}: XML elements are nested over {MAX_DEPTH} deep")
        if tag == "entry":
            self._where = self._here()
            self._category = attributes.get("category")
            self._triples, self._references = [], []
        elif tag == "lex":
            self._is_reference = is_reference(attributes.get("comment"), attributes.get("lang"))
        if tag in ("mtriple", "lex"):
            self._text, self._text_chars = [], 0

    def _characters(self, text: str) -> None:
        # An enriched release keeps the text of a `lex` in a `text` below it, beside templates that are no text.
        if self._open[-1] in ("mtriple", "lex") or self._open[-2:] == ["lex", "text"]:
            self._text_chars += len(text)
            if self._text_chars > MAX_TEXT_CHARS:
                raise InvalidData(f"{self._here()}: text is over {MAX_TEXT_CHARS} characters")
            self._text.append(text)

    def _end(self, tag: str) -> None:
        self._open.pop()
        text = " ".join("".join(self._text).split())
        if tag == "mtriple":
            self._triples.append(text)
        elif tag == "lex" and self._is_reference:
            self._references.append(text)
        elif tag == "entry" and self._references:
            source = read_triples(self._where, self._triples)
            self._complete.append(SourceRow(self._where, source, tuple(self._references), self._category))

    def _refuse_document_type(self, *_: object) -> None:
        raise InvalidData(f"{self._here()}: XML with a document type is not read; remove the DOCTYPE")
