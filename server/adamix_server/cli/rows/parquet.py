"""Parquet: read batch by batch and written in row groups; columns that nobody asked about go through as they are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.errors import InvalidConfig, InvalidData
from adamix_server.cli.rows.answers import Told, flat
from adamix_server.cli.rows.row import Choice, Row
from adamix_server.cli.rows.row_file import AnswerOf

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1024
# A row group is written when it has so many, whichever comes first.
_GROUP_ROWS = 1 << 17
_GROUP_BYTES = 32 << 20


class Parquet:
    """The rows of such a file, as `RowFile` says. Of its pages only those of the texts are read, and not before.

    Raises:
        InvalidConfig: a column is not there, twice, or holds no texts.
        InvalidData: not such a file, or a damaged one.
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        import pyarrow.parquet as pq

        self.name = path.name
        self._choice = choice
        with _reading(self.name):
            self._file = pq.ParquetFile(path)
        schema = self._file.schema_arrow
        self.names: frozenset[str] = frozenset(schema.names)
        self.num_rows: int = self._file.metadata.num_rows
        self._text, self._pair = choice.of(schema.names, self.name)
        for column in self._asked:
            if not _holds_texts(schema.field(column).type):
                raise InvalidConfig(f"{self.name}: column {column!r} is {schema.field(column).type}, not text")

    def rows(self) -> Iterator[Row]:
        number = 0
        for batch in self._batches(self._asked):
            yield from self._rows(batch, number)
            number += batch.num_rows

    def write(self, out: Path, columns: Mapping[str, str], answer_of: AnswerOf) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self._file.schema_arrow
        types = [pa.field(columns[name], _type_of(name)) for name in columns]
        whole = pa.schema([*schema, *types], schema.metadata)
        number, group, num_bytes, num_rows = 0, [], 0, 0
        with pq.ParquetWriter(out, whole) as writer:
            for batch in self._batches(None):
                found: list[Told] = [answer_of(row) for row in self._rows(batch, number)]
                number += batch.num_rows
                added = [pa.array(flat(found, name), _type_of(name)) for name in columns]
                group.append(pa.RecordBatch.from_arrays([*batch.columns, *added], schema=whole))
                num_bytes, num_rows = num_bytes + group[-1].nbytes, num_rows + batch.num_rows
                if num_bytes >= _GROUP_BYTES or num_rows >= _GROUP_ROWS:
                    writer.write_table(pa.Table.from_batches(group))
                    group, num_bytes, num_rows = [], 0, 0
            if group:
                writer.write_table(pa.Table.from_batches(group))

    @property
    def _asked(self) -> list[str]:
        return [self._text] if self._pair is None else [self._text, self._pair]

    def _batches(self, columns: list[str] | None) -> "Iterator[pa.RecordBatch]":
        with _reading(self.name):
            yield from self._file.iter_batches(_BATCH_ROWS, columns=columns)

    def _rows(self, batch: "pa.RecordBatch", number: int) -> Iterator[Row]:
        first = _values(batch.column(self._text))
        second = [None] * batch.num_rows if self._pair is None else _values(batch.column(self._pair))
        for text, pair in zip(first, second, strict=True):
            number += 1
            yield self._choice.row(f"{self.name}: row {number}", text, pair, is_pair=self._pair is not None)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Raises InvalidData for what the library says of a file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _holds_texts(kind: "pa.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(is_text(kind) for is_text in (types.is_string, types.is_large_string, types.is_string_view))


def _type_of(name: str) -> "pa.DataType":
    import pyarrow as pa

    numbers = pa.float32()
    kinds = {
        "score": numbers,
        "labels": pa.list_(pa.string()),
        "scores": pa.list_(numbers),
        "embedding": pa.list_(numbers),
    }
    return kinds.get(name, pa.string())


def _values(column: "pa.Array") -> list[Any]:
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        # The library does not look when it reads: one cell of other bytes is that row's matter.
        found = [_value(item) for item in column]
    return found


def _value(item: "pa.Scalar") -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return b""
