"""The ops of `reference` as Triton kernels: which plan, which tiles, one launch (two where the features are split).

Nothing here waits for the device: plans follow from sizes and from ranks the host knows, tiles and records are uploaded
once. What the kernels do not take (fp64, ranks above 256) goes to the plain forms of `cpu`, which run on every device.
Imports Triton, so `dispatch` imports it only where it is used.

Shapes: T rows, G segments, D hidden size, P slices of a fused projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_kernels import cpu
from adamix_kernels.gpu.head_launch import head
from adamix_kernels.gpu.launch import INTERPRETED, low_rank_, low_rank_norm, numbers, stacked
from adamix_kernels.gpu.records import FIELDS, Adapter, Records, records_of
from adamix_kernels.gpu.tiles import tiles_of
from adamix_kernels.plans import RANK_CLASSES, Facts, pick, rank_class
from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights, LoraWeights

__all__ = ["bottleneck", "bottleneck_", "bottleneck_norm", "head", "lora", "lora_", "lora_slices_"]

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def bottleneck(x: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]) -> Tensor:
    """See `reference.bottleneck`."""
    launch = _launch(x, segments, [weights], x.shape[1])
    if isinstance(launch, _Refused):
        return cpu.bottleneck(x, segments, weights)
    if launch is None:
        return x.clone()
    x = _with_contiguous_rows(x)
    out = torch.empty_like(x)
    low_rank_(out, x, x, launch.base, launch.records, launch.tiles, [0, x.shape[1]], launch.rank, launch.plan)
    return out


def bottleneck_(x: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]) -> Tensor:
    """See `reference.bottleneck_`."""
    launch = _launch(x, segments, [weights], x.shape[1])
    if isinstance(launch, _Refused) or not _has_contiguous_rows(x):
        return cpu.bottleneck_(x, segments, weights)
    if launch is not None:
        low_rank_(x, None, None, launch.base, launch.records, launch.tiles, [0, x.shape[1]], launch.rank, launch.plan)
    return x


def bottleneck_norm(
    s: Tensor,
    segments: Segments,
    weights: Sequence[BottleneckWeights | None],
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """See `reference.bottleneck_norm`. Both norms are fused: one launch."""
    launch = _launch(s, segments, [weights], s.shape[1], kernel="fused")
    if isinstance(launch, _Refused):
        return cpu.bottleneck_norm(s, segments, weights, norm_weight, norm_bias, eps)
    if launch is None:
        return F.layer_norm(s, norm_weight.shape, norm_weight, norm_bias, eps)
    s = _with_contiguous_rows(s)
    operands = (launch.base, launch.records[0], launch.tiles)
    out: Tensor = low_rank_norm(s, norm_weight, norm_bias, eps, *operands, launch.rank, launch.plan)
    return out


def lora(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None = None,
) -> Tensor:
    """See `reference.lora`."""
    return lora_(y.clone(), x, segments, weights, window)


def lora_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None = None,
) -> Tensor:
    """See `reference.lora_`."""
    return lora_slices_(y, x, segments, [weights], [window or (0, y.shape[1])])


def lora_slices_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[LoraWeights | None]],
    windows: Sequence[tuple[int, int]],
) -> Tensor:
    """See `reference.lora_slices_`. Where the features are split, all slices are two launches together."""
    launch = _launch(x, segments, weights, max(stop - start for start, stop in windows))
    if isinstance(launch, _Refused) or not _has_contiguous_rows(y):
        return cpu.lora_slices_(y, x, segments, weights, windows)
    if launch is not None:
        columns = [number for start, stop in windows for number in (start, stop - start)]
        source = _with_contiguous_rows(x)
        low_rank_(y, None, source, launch.base, launch.records, launch.tiles, columns, launch.rank, launch.plan)
    return y


@dataclass(frozen=True)
class _Launch:
    """What one call of an op needs beside its rows: see `launch.low_rank_`."""

    base: Tensor
    records: Tensor
    tiles: Tensor
    rank: int
    plan: list[int]


class _Refused:
    """The kernels do not take this batch."""


_REFUSED = _Refused()


def _launch(
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[Adapter | None]],
    out_features: int,
    kernel: str | None = None,
) -> _Launch | _Refused | None:
    """How to launch a batch; None if none of its rows has an adapter here.

    Args:
        weights: of each slice.
        kernel: the only kernel that will do; None takes the plan's.
    """
    if x.device.type == "cpu" and not INTERPRETED:
        raise ValueError("Triton kernels need a CUDA device; on a CPU its interpreter runs them (TRITON_INTERPRET=1)")
    dtype = DTYPES.get(x.dtype)
    if dtype is None:
        return _REFUSED
    found = [records_of(each) for each in weights]
    if not any(found):
        return None
    tiles = tiles_of(segments, x.device)
    if tiles.room is None:
        rank = max(int(each.ranks[segments.slots].max(initial=0)) for each in found if each)
        num_segments = len(segments)
    else:
        # A captured graph serves batches to come, of ranks up to what its room is made for.
        rank, num_segments = tiles.room.max_rank, tiles.room.max_segments
    if rank == 0:
        return None
    if rank > RANK_CLASSES[-1]:
        return _REFUSED
    facts = Facts(dtype, rank_class(rank), max(x.shape[1], out_features), len(x), num_segments)
    plan = pick("low_rank", architecture(x.device), facts, kernel)
    base, table = _together(weights, found)
    return _Launch(base, table, tiles.of(plan.block_m), facts.rank, numbers(plan))


def _together(weights: Sequence[Sequence[Adapter | None]], found: Sequence[Records | None]) -> tuple[Tensor, Tensor]:
    """The base and the records [P, S, 8] of all slices."""
    given = [each for each in found if each]
    if len(given) == len(found) and all(each.base is given[0].base for each in given):
        return given[0].base, stacked([each.table for each in given])
    # Weights that lie here and there have a base for each slice; described anew as one sequence they have one.
    together = records_of([adapter for each in weights for adapter in each])
    assert together is not None  # noqa: S101 - some slice has weights
    return together.base, together.table.view(len(weights), -1, FIELDS)


@cache
def architecture(device: torch.device) -> str:
    """Whose plans a device takes: those of its own kind, or of the next that asks for less shared memory."""
    if device.type != "cuda":
        return "sm90"  # interpreted: any will do
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm90", 10: "sm100"}.get(major, "sm80")


def _has_contiguous_rows(x: Tensor) -> bool:
    return x.stride(1) == 1


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if _has_contiguous_rows(x) else x.contiguous()
