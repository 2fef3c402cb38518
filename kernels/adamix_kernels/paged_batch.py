"""Which rows of a step are whose new tokens, and in which pages each sequence's tokens lie.

Built once a step, on the host with numpy, for all layers. Knows no device and no values.

Shapes: T new tokens (rows), S sequences, W pages of the longest sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from adamix_kernels import native

PAGE_TOKENS = 16
SCRATCH_PAGE = 0
_INT32_MAX = int(np.iinfo(np.int32).max)
_MOST_TOKENS = _INT32_MAX - PAGE_TOKENS


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Which rows are whose new tokens, and where each sequence's tokens lie. Built once a step, for all layers.

    Attributes:
        starts: int64 [S], tokens of each sequence that were computed before.
        indptr: int64 [S + 1]: the new tokens of sequence s are the rows `indptr[s]:indptr[s + 1]`.
        table: int32 [S, W], each sequence's pages in the order of its tokens; beyond them scratch.
    """

    starts: NDArray[np.int64]
    indptr: NDArray[np.int64]
    table: NDArray[np.int32]
    _blocked: dict[int, native.BlockedBatch] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def of(
        cls, starts: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int] | NDArray[np.integer]]
    ) -> Self:
        """Sequences with `lengths` new tokens behind `starts` others, each with pages for both; more are ignored.

        Raises:
            ValueError: numbers are negative or too large, or a sequence has too few pages.
        """
        first, new = np.array(starts, np.int64), np.array(lengths, np.int64)
        if not len(first) == len(new) == len(pages):
            raise ValueError(f"{len(first)} starts, {len(new)} lengths and pages of {len(pages)} sequences")
        if min(first.min(initial=0), new.min(initial=0)) < 0 or (first + new).max(initial=0) > _MOST_TOKENS:
            raise ValueError(f"starts and lengths must not be negative, nor together more than {_MOST_TOKENS}")
        needed = (-(-(first + new) // PAGE_TOKENS)).tolist()
        table = np.full((len(first), max(needed, default=0)), SCRATCH_PAGE, np.int64)
        for row, count, of_sequence in zip(table, needed, pages, strict=True):
            if len(of_sequence) < count:
                raise ValueError(f"a sequence has {len(of_sequence)} pages and needs {count}")
            row[:count] = of_sequence[:count]
        if table.min(initial=0) < 0 or table.max(initial=0) > _INT32_MAX:
            raise ValueError("pages must be in 0..2**31 - 1")
        return cls(first, np.insert(np.cumsum(new), 0, 0), table.astype(np.int32))

    @property
    def num_rows(self) -> int:
        return int(self.indptr[-1])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [S], the new tokens of each sequence."""
        return np.diff(self.indptr)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """int64 [S], the tokens of each sequence, the new ones included."""
        return self.starts + self.lengths

    @cached_property
    def longest(self) -> int:
        """The most tokens of a sequence."""
        return int(self.ends.max(initial=0))

    @cached_property
    def num_pages_needed(self) -> int:
        """How many pages a cache must have at least: one more than the largest page number."""
        return int(self.table.max(initial=0)) + 1

    @cached_property
    def has_chunks(self) -> bool:
        """Whether some sequence has more than one new token."""
        return bool((self.lengths > 1).any())

    @cached_property
    def num_seen(self) -> int:
        """Tokens that all rows together attend to, without a window."""
        return int((self.lengths * self.starts + self.lengths * (self.lengths + 1) // 2).sum())

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """int64 [T], where each row's token lies: page times 16 plus its place there."""
        sequence = np.repeat(np.arange(len(self.starts)), self.lengths)
        position = np.arange(self.num_rows) - np.repeat(self.indptr[:-1] - self.starts, self.lengths)
        return self.table[sequence, position // PAGE_TOKENS] * np.int64(PAGE_TOKENS) + position % PAGE_TOKENS

    def blocked(self, rows: int) -> native.BlockedBatch:
        """What the native form reads, in blocks of at most `rows` rows of one sequence, most work first."""
        found = self._blocked.get(rows)
        if found is None:
            per_sequence = -(-self.lengths // rows)
            sequence = np.repeat(np.arange(len(self.starts)), per_sequence)
            before = np.repeat(np.cumsum(per_sequence) - per_sequence, per_sequence)
            first = self.indptr[sequence] + (np.arange(len(sequence)) - before) * rows
            count = np.minimum(self.indptr[sequence + 1] - first, rows)
            last_position = self.starts[sequence] + first + count - self.indptr[sequence]
            order = np.argsort(-(last_position * count), kind="stable")
            found = self._blocked[rows] = native.BlockedBatch(
                indptr=self.indptr,
                starts=self.starts,
                table=self.table,
                places=self.places,
                blocks=np.stack([sequence, first, count], axis=1)[order].astype(np.int32),
                has_chunks=self.has_chunks,
                longest=self.longest,
            )
        return found
