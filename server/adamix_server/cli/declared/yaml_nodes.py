"""YAML as nodes that know their line: texts, lists and mappings with texts as keys, and nothing else of the language.

Whoever wrote the file may be hostile. The parser gives events; no object is made of any tag, an alias is refused (a few
hundred bytes of them stand for gigabytes), and so are keys that come twice, a second document, and what lies too deep.
Knows nothing of tasks.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adamix.errors import InvalidConfig
from adamix_server.limits.commands import MAX_DECLARATION_BYTES, MAX_DECLARATION_DEPTH

# The parser in C where the library has one: 15 times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOTHING = ("", "~", "null")


@dataclass(frozen=True)
class Scalar:
    """A text. `is_plain`: it stood there without quotes."""

    text: str
    line: int
    is_plain: bool

    @property
    def is_nothing(self) -> bool:
        return self.is_plain and self.text in _NOTHING


@dataclass(frozen=True)
class Listing:
    items: "tuple[Node, ...]"
    line: int


@dataclass(frozen=True)
class Table:
    """Nodes by key; `lines` are those of the keys."""

    entries: "dict[str, Node]"
    lines: dict[str, int]
    line: int


Node = Scalar | Listing | Table


def read_yaml(path: Path) -> Node:
    """The one document of a file, or of stdin for `-`.

    Raises:
        InvalidConfig: it cannot be read, or is not such YAML; the message says where.
    """
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            data = file.read(MAX_DECLARATION_BYTES + 1)
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}", field="file") from None
    if len(data) > MAX_DECLARATION_BYTES:
        raise InvalidConfig(f"{path} is over {MAX_DECLARATION_BYTES >> 20} MiB", field="file")
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Node:
    """The one document of these bytes; `where` is the file's name, for errors. Raises InvalidConfig."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidConfig(f"{where} is not UTF-8", field="file") from None
    try:
        return _Building(where).document(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise InvalidConfig(f"{where}{line} is not YAML: {error.problem or error.context}", field="file") from None
    except yaml.YAMLError:
        raise InvalidConfig(f"{where} is not YAML: it holds characters that may not be in it", field="file") from None


@dataclass
class _Open:
    """A list or a mapping whose end has not come."""

    line: int
    is_table: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    key: str | None = None

    def closed(self) -> Node:
        return Table(self.entries, self.lines, self.line) if self.is_table else Listing(tuple(self.items), self.line)


class _Building:
    """Nodes of events, without recursion."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._open: list[_Open] = []
        self._root: Node | None = None

    def document(self, events: Any) -> Node:
        documents = 0
        for event in events:
            line = event.start_mark.line + 1
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise self._wrong(line, "there is a second document")
                case yaml.AliasEvent():
                    raise self._wrong(line, "aliases (*name) are not taken: write it out")
                case yaml.ScalarEvent():
                    self._check_tag(event, line)
                    # Without quotes it is None, or empty, by the parser.
                    self._add(Scalar(event.value, line, is_plain=not event.style))
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._check_tag(event, line)
                    if self._open and self._open[-1].is_table and self._open[-1].key is None:
                        raise self._wrong(line, "a key must be a text")
                    if len(self._open) >= MAX_DECLARATION_DEPTH:
                        raise self._wrong(line, f"nothing may lie deeper than {MAX_DECLARATION_DEPTH} levels")
                    self._open.append(_Open(line, isinstance(event, yaml.MappingStartEvent)))
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self._add(self._open.pop().closed())
        if self._root is None:
            raise InvalidConfig(f"{self._where} is empty", field="file")
        return self._root

    def _add(self, node: Node) -> None:
        if not self._open:
            self._root = node
            return
        inner = self._open[-1]
        if not inner.is_table:
            inner.items.append(node)
        elif inner.key is not None:
            inner.entries[inner.key] = node
            inner.key = None
        elif isinstance(node, Scalar):
            # Nothing else: lists and mappings as keys were refused where they began.
            if node.text in inner.entries:
                first = inner.lines[node.text]
                raise self._wrong(node.line, f"the key {node.text[:64]!r} is there already, in line {first}")
            inner.key, inner.lines[node.text] = node.text, node.line

    def _check_tag(self, event: Any, line: int) -> None:
        if event.tag is not None:
            raise self._wrong(line, f"tags ({str(event.tag)[:64]}) are not taken")

    def _wrong(self, line: int, what: str) -> InvalidConfig:
        return InvalidConfig(f"{self._where}:{line}: {what}", field="file")
