"""Rows of a packed batch grouped by slot: the one description of a mixed batch that every op takes.

A packed batch `[T, ...]` holds the rows of many requests one after another. `Segments` says which slot each run of
rows uses: rows `indptr[g]:indptr[g + 1]` use `slots[g]`; slot 0 is the identity (the backbone's rows, unchanged). Where
the experts of a mixture are drawn for each projection by itself, `up_slots[g]` names that of the up projection.
Everything is built on the host with numpy, once per batch. Knows no torch, no device, no adapter names.

Shapes: T rows, G segments, N tiles, B rows per tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

_INT32_MAX = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, eq=False)
class TileMap:
    """Equal blocks of rows that never cross a segment, in row order; a device grid walks them one by one.

    Attributes:
        slot: int32 [N], the slot of each tile.
        up_slot: int32 [N], the slot of its up projection.
        first_row: int32 [N], the first packed row of each tile.
        end_row: int32 [N], one past its last packed row; `end_row - first_row` is in 1..block_rows.
        block_rows: B, the most rows a tile holds.
    """

    slot: NDArray[np.int32]
    up_slot: NDArray[np.int32]
    first_row: NDArray[np.int32]
    end_row: NDArray[np.int32]
    block_rows: int

    def __len__(self) -> int:
        return len(self.slot)


@dataclass(frozen=True, eq=False)
class PaddedIndex:
    """The layout of a grouped product: chosen segments cut into N tiles of B rows, the last of each padded.

    Attributes:
        index: int64 [N, B], the packed row behind each padded position; padding repeats the tile's last row, so
            that every entry can be read.
        mask: bool [N, B], False on padding. `index[mask]` lists every row of the chosen segments once, in order.
        segment: int64 [N], the segment of each tile.
    """

    index: NDArray[np.int64]
    mask: NDArray[np.bool_]
    segment: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of rows that share a slot. Immutable; two objects are equal only when they are the same object.

    Attributes:
        slots: int32 [G], >= 0; 0 is the identity.
        indptr: int64 [G + 1], strictly increasing from 0: no segment is empty.
        up_slots: int32 [G], the slot of each segment's up projection, 0 where `slots` is 0; None given means `slots`.

    Raises:
        ValueError: the arrays do not describe such runs.
    """

    slots: NDArray[np.int32]
    indptr: NDArray[np.int64]
    up_slots: NDArray[np.int32] = None  # type: ignore[assignment]  # never None after __post_init__

    def __post_init__(self) -> None:
        slots = _integers(self.slots, "slots")
        indptr = _integers(self.indptr, "indptr")
        given = cast("NDArray[np.int32] | None", self.up_slots)
        up_slots = slots if given is None else _integers(given, "up_slots")
        if len(indptr) != len(slots) + 1:
            raise ValueError(f"indptr has {len(indptr)} entries; {len(slots)} segments need {len(slots) + 1}")
        if indptr[0] != 0 or bool((np.diff(indptr) <= 0).any()) or indptr[-1] > _INT32_MAX:
            raise ValueError("indptr must rise strictly from 0 and stay below 2**31")
        for each in (slots, up_slots):
            if each.min(initial=0) < 0 or each.max(initial=0) > _INT32_MAX:
                raise ValueError("slots must be in 0..2**31 - 1")
        if len(up_slots) != len(slots) or bool(((slots == 0) != (up_slots == 0)).any()):
            raise ValueError("up_slots must name a slot for each segment, and 0 exactly where slots does")
        object.__setattr__(self, "slots", _frozen(slots.astype(np.int32)))
        object.__setattr__(self, "up_slots", _frozen(up_slots.astype(np.int32)))
        object.__setattr__(self, "indptr", _frozen(indptr))

    @classmethod
    def from_lengths(
        cls,
        slots: "Sequence[int] | NDArray[Any]",
        lengths: "Sequence[int] | NDArray[Any]",
        up_slots: "Sequence[int] | NDArray[Any] | None" = None,
    ) -> Self:
        """`lengths[i]` rows of `slots[i]`, one after another; equal neighbours are merged, empty ones dropped."""
        slot_of_run = _integers(slots, "slots")
        length_of_run = _integers(lengths, "lengths")
        up_of_run = slot_of_run if up_slots is None else _integers(up_slots, "up_slots")
        if not len(slot_of_run) == len(length_of_run) == len(up_of_run):
            raise ValueError(f"{len(slot_of_run)} slots but {len(length_of_run)} lengths, {len(up_of_run)} up slots")
        if bool((length_of_run < 0).any()):
            raise ValueError("lengths must not be negative")
        kept = np.flatnonzero(length_of_run)
        slot_of_run, up_of_run, ends = slot_of_run[kept], up_of_run[kept], np.cumsum(length_of_run[kept])
        last_of_run = np.ones(len(kept), dtype=np.bool_)
        last_of_run[:-1] = (slot_of_run[1:] != slot_of_run[:-1]) | (up_of_run[1:] != up_of_run[:-1])
        return cls(slot_of_run[last_of_run], np.insert(ends[last_of_run], 0, 0), up_of_run[last_of_run])

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(slot, first row, end row) of every segment, in row order."""
        return iter(self._runs)

    @cached_property
    def _runs(self) -> list[tuple[int, int, int]]:
        bounds = self.indptr.tolist()
        return list(zip(self.slots.tolist(), bounds[:-1], bounds[1:], strict=True))

    @property
    def num_rows(self) -> int:
        return int(self.indptr[-1])

    @cached_property
    def max_slot(self) -> int:
        """The largest slot in use; 0 for an empty batch."""
        return int(max(self.slots.max(initial=0), self.up_slots.max(initial=0)))

    @cached_property
    def has_own_up_slots(self) -> bool:
        """Whether some segment's up projection is another slot's."""
        return not np.array_equal(self.slots, self.up_slots)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """(slot of the down projection, slot of the up projection) of every segment."""
        return list(zip(self.slots.tolist(), self.up_slots.tolist(), strict=True))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [G], the rows of each segment."""
        return _frozen(np.diff(self.indptr))

    def tile_map(self, block_rows: int) -> TileMap:
        """Cut every segment, identity included, into tiles of at most `block_rows` rows."""
        segment, first, end = self._tiles(np.arange(len(self)), block_rows)
        bounds = first.astype(np.int32), end.astype(np.int32)
        return TileMap(self.slots[segment], self.up_slots[segment], *bounds, block_rows)

    def padded_index(self, block_rows: int | None = None, keep: Sequence[int] | None = None) -> PaddedIndex:
        """Lay out some segments as equal tiles for one batched product over all of them.

        Args:
            block_rows: B; None pads every kept segment to the longest one, so that N is their number.
            keep: the segments (by position, ascending) that take part; None keeps all that are not identity.
        """
        kept = np.flatnonzero(self.slots) if keep is None else np.asarray(keep, dtype=np.int64)
        if block_rows is None:
            block_rows = int(self.lengths[kept].max(initial=1))
        segment, first, end = self._tiles(kept, block_rows)
        rows = first[:, None] + np.arange(block_rows)
        return PaddedIndex(np.minimum(rows, end[:, None] - 1), rows < end[:, None], segment)

    def _tiles(
        self, kept: NDArray[np.int64], block_rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Segment, first row and end row of every tile of the kept segments."""
        if block_rows < 1:
            raise ValueError("block_rows must be at least 1")
        tiles_of_segment = -(-self.lengths[kept] // block_rows)
        segment = np.repeat(kept, tiles_of_segment)
        tiles_before = np.repeat(np.cumsum(tiles_of_segment) - tiles_of_segment, tiles_of_segment)
        first = self.indptr[segment] + (np.arange(len(segment)) - tiles_before) * block_rows
        return segment, first, np.minimum(first + block_rows, self.indptr[segment + 1])


def _integers(values: "Sequence[int] | NDArray[Any]", name: str) -> NDArray[Any]:
    """A private int64 [n] copy of `values`; floats and booleans are refused rather than truncated."""
    array = np.array(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} must be a one-dimensional array of integers")
    return array.astype(np.int64)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
