"""Times one plan on the CUDA device, if it computes what the reference computes.

A plan for the fused kernel serves norm points too, so it has to run as that as well.

Shapes: T rows, D hidden size.
"""

from functools import lru_cache

import torch
from torch import Tensor
from triton.errors import TritonError

from adamix_bench.kernels import clocks
from adamix_bench.kernels.batches import DTYPES, Batch
from adamix_bench.kernels.cells import Cell
from adamix_bench.kernels.forms import launched
from adamix_kernels import reference
from adamix_kernels.gpu.launch import low_rank_norm, numbers
from adamix_kernels.gpu.tiles import tiles_of
from adamix_kernels.plans import Facts, Plan
from adamix_kernels.testing import cast, error_ratio, tolerance

_MOST_CALLS = 8
_EPS = 1e-5


class PlanClock:
    """`TimePlan` of the tuner. Keeps the operands of the last few launches."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._batches = lru_cache(maxsize=4)(self._make_batches)

    def __call__(self, plan: Plan, facts: Facts) -> float | None:
        """Microseconds of a launch; None if it cannot be launched or computes something else."""
        batches, expected = self._batches(facts)
        try:
            with torch.inference_mode():
                if not _is_right(self.run(plan, facts, batches[0]), expected):
                    return None
                if plan.kernel == "fused" and not self._norm_is_right(plan, facts, batches[0]):
                    return None
                return clocks.replayed_us([lambda batch=batch: self.run(plan, facts, batch) for batch in batches])  # type: ignore[misc]  # of one batch each
        except (TritonError, RuntimeError):
            # More shared memory or registers than there are, or sizes the compiler refuses.
            return None

    def run(self, plan: Plan, facts: Facts, batch: Batch) -> Tensor:
        """[T, D]."""
        return launched(batch, plan, facts.rank)

    def _norm_is_right(self, plan: Plan, facts: Facts, batch: Batch) -> bool:
        weight, bias = torch.ones_like(batch.x[0]), torch.zeros_like(batch.x[0])
        records = batch.adapters.table.records
        tiles = tiles_of(batch.segments, self._device).of(plan.block_m)
        operands = (records.base, records.table, tiles, facts.rank, numbers(plan))
        result = low_rank_norm(batch.x, weight, bias, _EPS, *operands)
        wide = cast(batch.adapters.weights, torch.float64, str(self._device))
        wide_norm = (weight.double(), bias.double(), _EPS)
        return _is_right(result, reference.bottleneck_norm(batch.x.double(), batch.segments, wide, *wide_norm))

    def _make_batches(self, facts: Facts) -> tuple[list[Batch], Tensor]:
        """Batches that lead to these facts, and what the first comes to, in fp64."""
        cell = Cell(facts.rows, facts.segments, facts.features, facts.rank)
        batches = Batch.several(cell, DTYPES[facts.dtype], self._device, _MOST_CALLS)
        wide = cast(batches[0].adapters.weights, torch.float64, str(self._device))
        return batches, reference.bottleneck_(batches[0].x.double(), batches[0].segments, wide)


def _is_right(actual: Tensor, expected: Tensor) -> bool:
    # NaN is not below any limit.
    return error_ratio(actual, expected) <= tolerance(actual.dtype)
