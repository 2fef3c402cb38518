"""JSONL: one object a line. A line is written back as it stood there, with keys before its last brace."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adamix.errors import InvalidData
from adamix_server.cli.rows import answers, lines
from adamix_server.cli.rows.row import Choice, Row
from adamix_server.cli.rows.row_file import AnswerOf


class JsonLines:
    """The rows of such a file, as `RowFile` says. Its first row says which columns there are.

    Raises:
        InvalidConfig: a column is not there.
        InvalidData: a line that is no object, not UTF-8, or with a key twice.
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        self.name = path.name
        self._path = path
        self._choice = choice
        self._columns: tuple[str, str | None] = ("", None)
        self.num_rows = 0
        found: set[str] = set()
        for where, _, value in self._objects():
            if not self.num_rows:
                self._columns = choice.of(list(value), where)
            self.num_rows += 1
            found |= answers.OWN & value.keys()
        self.names = frozenset(found)

    def rows(self) -> Iterator[Row]:
        return (row for _, row in self._rows())

    def write(self, out: Path, columns: Mapping[str, str], answer_of: AnswerOf) -> None:
        with lines.create(out, packed=lines.is_packed(self._path)) as file:
            for line, row in self._rows():
                answer = answer_of(row)
                added = {columns[name]: answer[name] for name in columns if name in answer}
                beginning = line.rstrip()[:-1].rstrip()
                comma = b"" if beginning.endswith(b"{") else b", "
                rest = json.dumps(added, ensure_ascii=False)[1:].encode()
                file.write(beginning + comma + rest + (lines.ending(line) or b"\n"))

    def _rows(self) -> Iterator[tuple[bytes, Row]]:
        text, pair = self._columns
        for where, line, value in self._objects():
            second = None if pair is None else value.get(pair)
            yield line, self._choice.row(where, value.get(text), second, is_pair=pair is not None)

    def _objects(self) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        is_twofold = False

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            # Called for the outermost object last.
            nonlocal is_twofold
            value = dict(pairs)
            is_twofold = len(value) < len(pairs)
            return value

        decoder = json.JSONDecoder(object_pairs_hook=unique)
        for number, line in lines.read(self._path):
            where = f"{self.name}:{number}"
            text = lines.text(self._path, number, line)
            if not text.strip():
                continue
            try:
                value = decoder.decode(text)
            except (ValueError, RecursionError):
                raise InvalidData(f"{where}: not valid JSON; each line is one object") from None
            if not isinstance(value, dict):
                raise InvalidData(f"{where}: not a JSON object")
            if is_twofold:
                raise InvalidData(f"{where}: a key stands there twice")
            yield where, line, value
