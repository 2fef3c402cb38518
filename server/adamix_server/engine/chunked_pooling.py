"""The pooled state of sequences that are computed in chunks: what a head reads, once the last token is there.

A `last` state is the last row's; of a `cls` state the first chunk is kept, of a `mean` the sum so far. On CPUs a sum
goes token by token, so that it has the same bits however the tokens were cut into chunks. What is kept belongs to a
sequence and to how many of its tokens were computed: one that begins anew begins anew here, a step that failed may be
computed again, and what has ended is forgotten with the next step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adamix.errors import InternalError
from adamix.files.manifest import HeadSpec
from adamix_server.engine.request import Status
from adamix_server.engine.sequence import Sequence as TokenSequence
from adamix_server.engine.sequence import Work
from adamix_server.engine.step_plan import StepPlan

# H hidden features.


@dataclass(frozen=True)
class _Kept:
    """`value` is of the first `end` tokens; `value_before` of the first `start`, from before the last step."""

    start: int
    value_before: torch.Tensor | None
    end: int
    value: torch.Tensor


class ChunkedPooling:
    """Features of sequences that are answered by a head."""

    def __init__(self) -> None:
        self._kept: dict[TokenSequence, _Kept] = {}

    def take_in(
        self,
        works: Sequence[Work],
        plan: StepPlan,
        hidden: torch.Tensor,
        spec_of: Callable[[Work], HeadSpec],
    ) -> dict[int, torch.Tensor]:
        """The features `[H]` of each work that is complete with this step, by its index.

        Args:
            works: of a step; those that are generated are passed over.
            hidden: the step's last hidden states, `[T, H]`.
        """
        self._forget()
        features = {}
        for i, work in enumerate(works):
            if work.sequence.params is not None:
                continue
            rows = hidden[plan.indptr[i] : plan.indptr[i + 1]]
            pooling = spec_of(work).pooling
            if pooling == "last":
                feature = rows[-1]
            else:
                kept = self._go_on(work, rows, pooling)
                feature = kept.value / kept.end if pooling == "mean" else kept.value
            if work.is_complete:
                features[i] = feature.to(hidden.dtype)
        return features

    def _go_on(self, work: Work, rows: torch.Tensor, pooling: str) -> _Kept:
        sequence = work.sequence
        start = sequence.num_computed
        before = self._value_at(sequence, start) if start else None
        if pooling == "mean":
            value = _sum_in_order(rows, before)
        else:
            value = rows[0].clone() if before is None else before
        kept = self._kept[sequence] = _Kept(start, before, start + work.num_new, value)
        return kept

    def _value_at(self, sequence: TokenSequence, num_tokens: int) -> torch.Tensor:
        kept = self._kept.get(sequence)
        if kept is not None and kept.end == num_tokens:
            return kept.value
        if kept is not None and kept.start == num_tokens and kept.value_before is not None:
            return kept.value_before
        raise InternalError(f"the states of the first {num_tokens} tokens of a sequence are not there to be pooled")

    def _forget(self) -> None:
        for sequence in [each for each in self._kept if each.request.status is Status.ENDED]:
            del self._kept[sequence]


def _sum_in_order(rows: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """fp64 `[H]`: `before` and the rows `[n, H]`."""
    addends = rows.double() if before is None else torch.cat([before[None], rows.double()])
    if addends.device.type != "cpu":
        return addends.sum(0)
    # Along the first axis numpy adds row by row; torch adds several at a time, which ones depends on their number.
    return torch.from_numpy(np.add.reduce(addends.numpy(), axis=0))
