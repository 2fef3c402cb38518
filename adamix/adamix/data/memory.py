"""Data that a program has in memory, as one of the readers: lists, columns, data frames, data sets of `datasets`.

Imports none of those libraries: a table is told by what it can do. What the rows say is checked by `rows` and
`generation.data`, as that of a file is, and rows without named splits are split by their hash, as those of a file are.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adamix.data.generation.data import SUBSETS, GenerationData, SourceRow, assemble_generation
from adamix.data.hub import LABEL_COLUMNS, TEXT_COLUMNS, read_label_feature
from adamix.data.rows import MAX_ROWS, Row, assemble, check_arguments
from adamix.data.task import SPLITS, Split, TaskData, TaskType
from adamix.errors import InvalidConfig, InvalidData

NAME = "in-memory"

Record = Mapping[str, Any]

# What tables call the method that gives their rows, and what it is to be told.
_TO_RECORDS: tuple[tuple[str, tuple[str, ...]], ...] = (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",)))
_FORMS = (
    "rows as {'text': …, 'label': …} (with 'text_pair', or 'source' and 'target' or 'references') or (text, label), "
    "a dict of columns, a data frame, a data set, or a dict of any of these by train, validation and test"
)


@dataclass(frozen=True)
class MemoryData:
    """Rows in memory, not checked yet.

    Attributes:
        parts: the records of each split; of `train` alone where nothing was said of splits.
        task_type, label_names: what the declared types of a data set fix; None where they do not.
    """

    name: str
    parts: Mapping[Split, Sequence[Record]]
    task_type: TaskType | None = None
    label_names: tuple[str, ...] | None = None

    @property
    def generates(self) -> bool:
        """Whether the rows are sources with reference texts."""
        firsts = [part[0] for part in self.parts.values() if part]
        return bool(firsts) and all("source" in record for record in firsts)

    def labelled(self, split: str, task_type: str | None) -> TaskData:
        """One split as labelled text. Raises as `data.load`."""
        wanted, kind = check_arguments(split, task_type)
        names = self.label_names if kind in (None, self.task_type) else None
        parts = {part: self._rows(part, records) for part, records in self.parts.items()}
        return assemble(self.name, parts, wanted, kind or self.task_type, names)

    def generation(self, split: str, subset: str = "all") -> GenerationData:
        """One split as sources with their references. Raises as `data.load_generation`."""
        wanted, _ = check_arguments(split, None)
        chosen = next((known for known in SUBSETS if known == subset), None)
        if chosen is None:
            raise InvalidConfig(f"subset {subset!r} is not one of {', '.join(SUBSETS)}")
        parts = {part: self._sources(part, records) for part, records in self.parts.items()}
        return assemble_generation(self.name, parts, wanted, subset=chosen)

    def _rows(self, part: Split, records: Sequence[Record]) -> Iterator[Row]:
        for number, record in enumerate(records):
            where = f"{self.name}: {part} row {number}"
            texts = next((pair for pair in TEXT_COLUMNS if all(c is None or c in record for c in pair)), None)
            label = next((column for column in LABEL_COLUMNS if column in record), None)
            if texts is None or label is None:
                found = ", ".join(str(key)[:40] for key in list(record)[:10])
                raise InvalidData(f"{where} has {found or 'nothing'}; there must be text (text_pair) and label")
            text, pair = texts
            second = None if pair is None else _plain(record[pair])
            yield Row(where, _plain(record[text]), second, _plain(record[label]))

    def _sources(self, part: Split, records: Sequence[Record]) -> Iterator[SourceRow]:
        for number, record in enumerate(records):
            where = f"{self.name}: {part} row {number}"
            target, references = _plain(record.get("target")), _plain(record.get("references"))
            if "source" not in record or (target is None) == (references is None):
                raise InvalidData(f"{where}: there must be a source, and a target (one text) or references (a list)")
            if target is None and not isinstance(references, list | tuple):
                raise InvalidData(f"{where}: references is not a list")
            yield SourceRow(where, _plain(record["source"]), (target,) if references is None else references)


def read_memory(data: object, name: str = NAME) -> MemoryData:
    """Rows of a program's own.

    Raises:
        InvalidData: they have none of the forms that are read; the message says which.
    """
    if isinstance(data, MemoryData):
        return data
    if isinstance(data, Mapping) and data and set(data) <= set(SPLITS):
        parts = {split: data[split] for split in SPLITS if split in data}
    elif isinstance(data, Mapping) and not set(data).isdisjoint(SPLITS):
        found = ", ".join(str(key)[:40] for key in list(data)[:10])
        raise InvalidData(f"the data have the parts {found}; read are {', '.join(SPLITS)}: give those alone")
    else:
        parts = {"train": data}
    features = next((declared for part in parts.values() if (declared := _features(part))), None)
    task_type, label_names = (None, None) if features is None else read_label_feature(features)
    return MemoryData(name, {split: _records(part) for split, part in parts.items()}, task_type, label_names)


def _records(data: object) -> Sequence[Record]:
    if isinstance(data, Mapping):
        return _of_columns(data)
    # One column of a table has the same methods, but no rows.
    if hasattr(data, "columns"):
        for method, arguments in _TO_RECORDS:
            if callable(read := getattr(data, method, None)):
                return list(read(*arguments))
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InvalidData(f"data of type {type(data).__name__} are not read; read are {_FORMS}")
    return [_record(row, number) for number, row in enumerate(_bounded(data))]


def _features(data: object) -> Mapping[str, Any] | None:
    """The declared types of a data set; a data frame may have a column of that name."""
    found = getattr(data, "features", None)
    return found if isinstance(found, Mapping) else None


def _bounded(rows: Iterable[Any]) -> Iterator[Any]:
    """Rows, of which a generator may have no end."""
    for number, row in enumerate(rows):
        if number == MAX_ROWS:
            raise InvalidData(f"the data have more than {MAX_ROWS} rows")
        yield row


def _record(row: object, number: int) -> Record:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, list | tuple) and len(row) == 2:
        return {"text": row[0], "label": row[1]}
    raise InvalidData(f"row {number} of the data is of type {type(row).__name__}; read are {_FORMS}")


def _of_columns(columns: Mapping[Any, Any]) -> Sequence[Record]:
    names = [str(name) for name in columns]
    if not names or any(isinstance(c, str | bytes) or not isinstance(c, Iterable) for c in columns.values()):
        raise InvalidData(f"a dict of data holds columns; read are {_FORMS}")
    values = [list(_bounded(column)) for column in columns.values()]
    if len({len(column) for column in values}) > 1:
        sizes = ", ".join(f"{name[:40]} {len(column)}" for name, column in zip(names, values, strict=True))
        raise InvalidData(f"the columns of the data differ in length: {sizes}")
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _plain(value: Any) -> Any:
    """Scalars and arrays of numpy as Python's own; what a data frame has in an empty cell as None."""
    if not isinstance(value, str | list | tuple | dict) and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
