"""Lays the works of one step out as rows: which token stands where, at which position, of which sequence. No tensors.

Rows lie in the order of the works, so works of one adapter that lie together are one segment. A step may be filled up
to a size with rows of nobody: short sequences without an adapter that start from nothing and write to page 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adamix_kernels.paged import PAGE_TOKENS, PagedBatch
from adamix_kernels.segments import Segments
from adamix_server.engine.sequence import Work

# Where rows of nobody are written to, and the slot of no adapter.
_SCRATCH_PAGE, _NO_ADAPTER = 0, 0


@dataclass(frozen=True, eq=False)
class StepPlan:
    """T rows of G sequences, of which the first are the works', in their order.

    Attributes:
        token_ids: int64 [T].
        positions: int64 [T].
        indptr: int64 [works + 1]: rows `indptr[i]:indptr[i + 1]` are those of work i.
        batch: of all G sequences.
        segments: the slots of the T rows.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    indptr: NDArray[np.int64]
    batch: PagedBatch
    segments: Segments

    @classmethod
    def of(cls, works: Sequence[Work], num_rows: int, *, first_position: int, max_tokens: int) -> "StepPlan":
        """Lay out works, at least one, and fill up to `num_rows` rows.

        Args:
            first_position: position of a sequence's first token.
            max_tokens: of one sequence.
        """
        sequences = [work.sequence for work in works]
        starts = [sequence.num_computed for sequence in sequences]
        lengths = [work.num_new for work in works]
        indptr = np.cumsum([0, *lengths], dtype=np.int64)
        missing = num_rows - int(indptr[-1])
        longest = min(PAGE_TOKENS, max_tokens)
        filling = [min(longest, missing - done) for done in range(0, missing, longest)]
        ids = [
            sequence.buffer[start : start + length]
            for sequence, start, length in zip(sequences, starts, lengths, strict=True)
        ]
        starts += [0] * len(filling)
        lengths += filling
        pages = [*(sequence.pages for sequence in sequences), *([_SCRATCH_PAGE] for _ in filling)]
        slots = [*(sequence.request.slot for sequence in sequences), *(_NO_ADAPTER for _ in filling)]
        rows_before = np.cumsum([0, *lengths[:-1]])
        # The row minus the first row of its sequence, plus what was computed of that before.
        positions = np.arange(num_rows) + np.repeat(np.array(starts) - rows_before + first_position, lengths)
        return cls(
            token_ids=np.concatenate([*ids, np.zeros(missing, np.int32)]).astype(np.int64),
            positions=positions,
            indptr=indptr,
            batch=PagedBatch.of(starts, lengths, pages),
            segments=Segments.from_lengths(slots, lengths),
        )

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)
