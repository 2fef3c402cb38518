"""The ways of computing one mixed batch of bottlenecks that are compared: functions of no arguments, to be timed.

What does not depend on the rows and weights of a batch (index tensors, say) is made beforehand: it is the same for all
layers of a model. The weights of a batch lie in slots among others, so a way that wants them side by side has to gather
them, except `grouped_mm`, which is shown at its best: with the slots of the batch next to one another.

On CUDA every form writes rows of its own: a graph is replayed hundreds of times, and rows that took the adapter's
output as often would be numbers as no model has them. On a CPU the ops change the rows of the batch, as they do in a
model, and whoever times them puts the rows back in between.

Shapes: T rows, A adapters, L rows of the longest segment, H features, R rank, E elements of a slot.
"""

from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_bench.kernels.batches import Batch, parts
from adamix_kernels import cpu, reference
from adamix_kernels.plans import Facts, Plan, pick, rank_class

Call = Callable[[], Tensor]

ON_CUDA = ("fused", "unfused", "bmm", "grouped_mm", "compiled")
ON_CPU = ("reference", "loop", "loop_on_one_thread", "tiles")


def calls(form: str, batches: Sequence[Batch]) -> list[Call]:
    """Batches of one cell, each computed by `form`; a call returns `x + A(x)` per row, [T, H].

    A form of `ON_CPU` returns the rows of the batch itself, changed.
    """
    return _compiled(batches) if form == "compiled" else [_CALLS[form](batch) for batch in batches]


def why_not(form: str, dtype: torch.dtype) -> str | None:
    """Why a form is not measured; None if it is."""
    if form == "grouped_mm" and dtype != torch.bfloat16:
        return "grouped_mm has its fast path for bf16 alone"
    if form == "grouped_mm" and not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped_mm"
    return None


def launched(batch: Batch, plan: Plan, rank: int) -> Tensor:
    """`x + A(x)` by the kernels as `bottleneck_` launches them, but into rows of its own, [T, H].

    Args:
        rank: the rank class of the launch.
    """
    from adamix_kernels.gpu.launch import low_rank_, numbers
    from adamix_kernels.gpu.tiles import tiles_of

    out, records = torch.empty_like(batch.x), batch.adapters.table.records
    tiles = tiles_of(batch.segments, batch.x.device).of(plan.block_m)
    windows = [0, batch.cell.features]
    low_rank_(out, batch.x, batch.x, records.base, records.table[None], tiles, windows, rank, numbers(plan))
    return out


def _fused(batch: Batch) -> Call:
    from adamix_kernels.gpu.ops import DTYPES, architecture

    cell = batch.cell
    facts = Facts(DTYPES[batch.x.dtype], rank_class(cell.rank), cell.features, cell.rows, cell.adapters)
    plan = pick("low_rank", architecture(batch.x.device), facts)
    return lambda: launched(batch, plan, facts.rank)


def _unfused(batch: Batch) -> Call:
    """Four launches a segment."""
    runs, adapters = _runs(batch), _tensors(batch)

    def run() -> Tensor:
        out = torch.empty_like(batch.x)
        for (start, end), (down, down_bias, up, up_bias) in zip(runs, adapters, strict=True):
            rows = batch.x[start:end]
            update = torch.addmm(up_bias, F.gelu(F.linear(rows, down, down_bias)), up)
            torch.add(rows, update, out=out[start:end])
        return out

    return run


def _compiled(batches: Sequence[Batch]) -> list[Call]:
    """The loop of `reference`, unrolled and fused as torch can: one function for all batches of a cell."""
    torch.compiler.reset()
    runs = _runs(batches[0])

    @torch.compile(dynamic=False)
    def compiled(x: Tensor, adapters: list[tuple[Tensor, ...]]) -> Tensor:
        done = []
        for (start, end), (down, down_bias, up, up_bias) in zip(runs, adapters, strict=True):
            rows = x[start:end]
            done.append(rows + torch.addmm(up_bias, F.gelu(F.linear(rows, down, down_bias)), up))
        return torch.cat(done)

    return [partial(compiled, batch.x, _tensors(batch)) for batch in batches]


def _bmm(batch: Batch) -> Call:
    """Segments padded to the longest, weights gathered from their slots, two batched products."""
    cell, device = batch.cell, batch.x.device
    padded = batch.segments.padded_index()
    index = torch.from_numpy(padded.index).to(device).view(-1)
    place = torch.from_numpy(padded.mask).to(device).view(-1).nonzero().view(-1)
    slots = torch.from_numpy(batch.segments.slots.copy()).long().to(device)

    def run() -> Tensor:
        down, down_bias, up_bias, up = parts(batch.adapters.arena.index_select(0, slots), cell)
        rows = batch.x.index_select(0, index).view(len(slots), -1, cell.features)
        hidden = F.gelu(torch.baddbmm(down_bias, rows, down.transpose(1, 2)))
        total = (rows + up_bias).baddbmm_(hidden, up)
        return total.view(-1, cell.features).index_select(0, place)

    return run


def _grouped_mm(batch: Batch) -> Call:
    """torch's grouped product; biases are looked up by row."""
    device, segments = batch.x.device, batch.segments
    down, down_bias, up_bias, up = parts(batch.adapters.arena[1:], batch.cell)
    down_t = down.transpose(1, 2)
    ends = torch.from_numpy(segments.indptr[1:].copy()).int().to(device)
    owner = torch.repeat_interleave(torch.arange(len(segments)), torch.from_numpy(segments.lengths.copy())).to(device)

    def run() -> Tensor:
        hidden = F.grouped_mm(batch.x, down_t, offs=ends) + down_bias[:, 0].index_select(0, owner)
        update = F.grouped_mm(F.gelu(hidden), up, offs=ends) + up_bias[:, 0].index_select(0, owner)
        return batch.x + update

    return run


def _reference(batch: Batch) -> Call:
    return lambda: reference.bottleneck_(batch.x, batch.segments, batch.adapters.weights)


def _one_of_cpu(form: str) -> Callable[[Batch], Call]:
    """A form of `cpu`, with its rule set aside."""

    def of(batch: Batch) -> Call:
        def run() -> Tensor:
            with patch.object(cpu, "pick_form", lambda **_: form):
                return cpu.bottleneck_(batch.x, batch.segments, batch.adapters.weights)

        return run

    return of


def _runs(batch: Batch) -> list[tuple[int, int]]:
    return [(start, end) for _, start, end in batch.segments]


def _tensors(batch: Batch) -> list[tuple[Tensor, ...]]:
    """down [R, H], down_bias [R], up [R, H] and up_bias [H] of each segment."""
    down, down_bias, up_bias, up = parts(batch.adapters.arena, batch.cell)
    return [(down[s], down_bias[s, 0], up[s], up_bias[s, 0]) for s in batch.segments.slots.tolist()]


_CALLS: dict[str, Callable[[Batch], Call]] = {
    "fused": _fused,
    "unfused": _unfused,
    "bmm": _bmm,
    "grouped_mm": _grouped_mm,
    "reference": _reference,
    **{form: _one_of_cpu(form) for form in ON_CPU[1:]},
}
