"""CSV and TSV: RFC 4180 with a header. A row is written back byte by byte as it stood there, with cells after its end.

So quotes, formulas and columns that nobody asked about are what they were.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from adamix.errors import InvalidData
from adamix_server.cli.rows import lines
from adamix_server.cli.rows.answers import cell
from adamix_server.cli.rows.row import Choice, Row
from adamix_server.cli.rows.row_file import AnswerOf
from adamix_server.limits.files import MAX_ROW_BYTES

_ENDS = "\r\n"
_Record = tuple[str, bytes, list[str]]


class _Echo:
    """Where csv writes to, which gives it back."""

    def write(self, text: str) -> str:
        return text


class Delimited:
    """The rows of such a file, as `RowFile` says.

    Raises:
        InvalidConfig: a column is not there, or twice.
        InvalidData: no header, a row of another width, not UTF-8, or malformed; with the line.
    """

    def __init__(self, path: Path, delimiter: str, choice: Choice) -> None:
        self.name = path.name
        self._path = path
        self._delimiter = delimiter
        self._choice = choice
        records = self._records()
        where, self._header, names = next(records, ("", b"", []))
        if not names:
            raise InvalidData(f"{self.name} is empty: it needs a header that names its columns")
        names = [name.strip() for name in names]
        self.names = frozenset(names)
        self._width = len(names)
        text, pair = choice.of(names, where)
        self._text = names.index(text)
        self._pair = None if pair is None else names.index(pair)
        self.num_rows = sum(1 for _ in records)

    def rows(self) -> Iterator[Row]:
        return (row for _, row in self._rows())

    def write(self, out: Path, columns: Mapping[str, str], answer_of: AnswerOf) -> None:
        # Of a cell that holds one of these the writer says so by quotes.
        writer = csv.writer(_Echo(), delimiter=self._delimiter, lineterminator=_ENDS)
        default_end = lines.ending(self._header) or b"\n"
        delimiter = self._delimiter.encode()

        def longer(record: bytes, cells: list[str]) -> bytes:
            end = lines.ending(record)
            added: str = writer.writerow(cells)  # what `_Echo.write` returned
            return record.removesuffix(end) + delimiter + added.removesuffix(_ENDS).encode() + (end or default_end)

        with lines.create(out, packed=lines.is_packed(self._path)) as file:
            file.write(longer(self._header, list(columns.values())))
            for record, row in self._rows():
                answer = answer_of(row)
                file.write(longer(record, [cell(answer, name) for name in columns]))

    def _rows(self) -> Iterator[tuple[bytes, Row]]:
        records = self._records()
        next(records, None)
        pair = self._pair
        for where, record, fields in records:
            second = None if pair is None else fields[pair]
            yield record, self._choice.row(where, fields[self._text], second, is_pair=pair is not None)

    def _records(self) -> Iterator[_Record]:
        """`FILE:LINE`, the bytes and the fields of every record, the header first; lines with nothing are none."""
        taken: list[bytes] = []
        size = 0

        def read() -> Iterator[str]:
            nonlocal size
            for number, line in lines.read(self._path):
                taken.append(line)
                size += len(line)
                lines.check_size(self._path, start, size)
                yield lines.text(self._path, number, line)

        # One number for the whole process, which reads no other tables.
        csv.field_size_limit(MAX_ROW_BYTES)
        reader = csv.reader(read(), delimiter=self._delimiter, strict=True)
        start = 1
        width = 0
        try:
            for fields in reader:
                where, record = f"{self.name}:{start}", b"".join(taken)
                taken.clear()
                size = 0
                start = reader.line_num + 1
                if not fields:
                    continue
                width = width or len(fields)
                if len(fields) != width:
                    raise InvalidData(
                        f"{where}: {len(fields)} columns, but the header has {width}; quote texts that hold the "
                        "delimiter"
                    )
                yield where, record, fields
        except csv.Error as error:
            raise InvalidData(f"{self.name}:{start}: malformed, or a quote is not closed ({error})") from None
