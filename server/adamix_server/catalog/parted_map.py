"""Maps that never change: a changed one is a new one, which shares with the old all it can.

A dict of 50,000 tasks takes some milliseconds to copy, with the interpreter at a halt, after every change of any of
them. Here the keys are spread over parts, and only the parts that change are copied. Knows nothing of what it holds.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

_PARTS = 256

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class PartedMap(Mapping[K, V]):
    """Values by key. Nobody else has the dicts it is made from."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[dict[K, V], ...]) -> None:
        self._parts = parts

    @classmethod
    def of(cls, items: Iterable[tuple[K, V]]) -> "PartedMap[K, V]":
        """(key, value) of different keys."""
        parts: tuple[dict[K, V], ...] = tuple({} for _ in range(_PARTS))
        for key, value in items:
            parts[hash(key) % _PARTS][key] = value
        return cls(parts)

    def __getitem__(self, key: K) -> V:
        return self._parts[hash(key) % _PARTS][key]

    def __contains__(self, key: object) -> bool:
        return key in self._parts[hash(key) % _PARTS]

    def __iter__(self) -> Iterator[K]:
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def changed(self, items: Mapping[K, V | None]) -> "PartedMap[K, V]":
        """The map with other values for some keys, and without those whose value is None; itself if that is none."""
        if not items:
            return self
        by_part: defaultdict[int, list[K]] = defaultdict(list)
        for key in items:
            by_part[hash(key) % _PARTS].append(key)
        parts = list(self._parts)
        for index, keys in by_part.items():
            parts[index] = part = parts[index].copy()
            for key in keys:
                if (value := items[key]) is None:
                    part.pop(key, None)
                else:
                    part[key] = value
        return PartedMap(tuple(parts))
