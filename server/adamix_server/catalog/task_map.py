"""All tasks by name, in a map that never changes: a changed one is a new one, which shares with the old all it can.

A dict of 50,000 tasks takes some milliseconds to copy, with the interpreter at a halt, after every change of any of
them. Here the names are spread over parts, and only the parts that change are copied.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from adamix_server.catalog.rows import Name, TaskRow

_PARTS = 256


class TaskMap(Mapping[Name, TaskRow]):
    """Rows by (tenant, task). Nobody else has the dicts it is made from."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[dict[Name, TaskRow], ...]) -> None:
        self._parts = parts

    @classmethod
    def of(cls, rows: Iterable[TaskRow]) -> "TaskMap":
        """Rows of different names."""
        parts: tuple[dict[Name, TaskRow], ...] = tuple({} for _ in range(_PARTS))
        for row in rows:
            name = row.tenant, row.task
            parts[hash(name) % _PARTS][name] = row
        return cls(parts)

    def __getitem__(self, name: Name) -> TaskRow:
        return self._parts[hash(name) % _PARTS][name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts[hash(name) % _PARTS]

    def __iter__(self) -> Iterator[Name]:
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def changed(self, rows: Mapping[Name, TaskRow | None]) -> "TaskMap":
        """The map with other rows for some names, and without those whose row is None."""
        by_part: defaultdict[int, list[Name]] = defaultdict(list)
        for name in rows:
            by_part[hash(name) % _PARTS].append(name)
        parts = list(self._parts)
        for index, names in by_part.items():
            parts[index] = part = parts[index].copy()
            for name in names:
                if (row := rows[name]) is None:
                    part.pop(name, None)
                else:
                    part[name] = row
        return TaskMap(tuple(parts))
