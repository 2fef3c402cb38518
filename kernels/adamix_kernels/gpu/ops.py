"""The ops of `reference` as Triton kernels: which plan, which tiles, one launch (two where the features are split).

Nothing here waits for the device: plans follow from sizes and from ranks the host knows, tiles and records are uploaded
once. What the kernels do not take (fp64, ranks above 256) goes to the plain forms of `cpu`, which run on every device.
Imports Triton, so `dispatch` imports it only where it is used.

Shapes: T rows, G segments, D hidden size, P slices of a fused projection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_kernels import cpu
from adamix_kernels.gpu.head_launch import head
from adamix_kernels.gpu.launch import INTERPRETED, low_rank_, low_rank_norm, numbers, stacked
from adamix_kernels.gpu.records import FIELDS, Adapter, Records, described, records_of
from adamix_kernels.gpu.tiles import Room, reserve, tiles_of
from adamix_kernels.gpu.training import adapt
from adamix_kernels.plans import RANK_CLASSES, Facts, Plan, pick, rank_class
from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights, LoraWeights, RoutedProjection

__all__ = [
    "bottleneck_",
    "bottleneck_norm",
    "head",
    "lora_",
    "lora_slices_",
    "rehearsals",
    "routed_low_rank",
]

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def bottleneck_(x: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]) -> Tensor:
    """See `reference.bottleneck_`."""
    launch = _launch(x, segments, [weights], [(0, x.shape[1])])
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
    launch = _launch(s, segments, [weights], [(0, s.shape[1])], kernel="fused")
    if isinstance(launch, _Refused):
        return cpu.bottleneck_norm(s, segments, weights, norm_weight, norm_bias, eps)
    if launch is None:
        return F.layer_norm(s, norm_weight.shape, norm_weight, norm_bias, eps)
    s = _with_contiguous_rows(s)
    operands = (launch.base, launch.records[0], launch.tiles)
    out: Tensor = low_rank_norm(s, norm_weight, norm_bias, eps, *operands, launch.rank, launch.plan)
    return out


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
    launch = _launch(x, segments, weights, windows)
    if isinstance(launch, _Refused) or not _has_contiguous_rows(y):
        return cpu.lora_slices_(y, x, segments, weights, windows)
    if launch is not None:
        columns = [number for start, stop in windows for number in (start, stop - start)]
        source = _with_contiguous_rows(x)
        low_rank_(y, None, source, launch.base, launch.records, launch.tiles, columns, launch.rank, launch.plan)
    return y


def routed_low_rank(
    source: Tensor,
    residual: Tensor | None,
    down: RoutedProjection,
    up: RoutedProjection,
    scale: float,
    activation: str,
) -> Tensor:
    """See `reference.routed_low_rank`: one launch, and three for the gradients. Autograd follows."""
    _require_device(source)
    device = source.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else down.weights[0].dtype
    if dtype not in DTYPES or down.out_features > RANK_CLASSES[-1] or not source.numel():
        return cpu.routed_low_rank(source, residual, down, up, scale, activation)
    groups, num_rows, width = source.shape
    features = max(width, up.out_features)
    facts = Facts(DTYPES[dtype], rank_class(down.out_features), features, groups * num_rows, groups)
    plan = pick("low_rank", architecture(source.device), facts, kernel="fused")
    gradient_plan = pick("weight_gradients", architecture(source.device), facts)
    return adapt(source, residual, down, up, scale, activation, dtype, facts.rank, plan, gradient_plan)


def rehearsals(
    rank: int, features: int, dtype: torch.dtype, device: torch.device, max_rows: int, *, is_norm: bool = False
) -> Iterator[Segments]:
    """Batches without an adapter that make the kernels be compiled which batches with one will need.

    Compiling takes about a second a kernel, which would otherwise be the time of the first request that needs it. An op
    that is given one of these batches launches as it would for adapters of this rank, and computes next to nothing.
    There is one for each plan that up to `max_rows` rows can have; none if the kernels do not take such adapters.

    Args:
        rank: of an adapter.
        features: the larger of the features going in and coming out.
        is_norm: the op is `bottleneck_norm`.
    """
    if dtype not in DTYPES or rank > RANK_CLASSES[-1]:
        return
    sizes = sorted({min(1 << power, max_rows) for power in range(max_rows.bit_length() + 1)})
    seen: set[Plan] = set()
    for num_rows in sizes:
        for num_segments in (size for size in sizes if size <= num_rows):
            facts = Facts(DTYPES[dtype], rank_class(rank), features, num_rows, num_segments)
            plan = pick("low_rank", architecture(device), facts, "fused" if is_norm else None)
            if plan not in seen:
                seen.add(plan)
                segments = Segments.from_lengths([0], [num_rows])
                reserve(segments, device, Room(num_segments, facts.rank))
                yield segments


@dataclass(frozen=True)
class _Launch:
    """What one call of an op needs beside its rows: see `launch.low_rank_`."""

    base: Tensor
    records: Tensor
    tiles: Tensor
    rank: int
    plan: list[int]
    kept: tuple[Tensor, ...]  # copies of weights, which must live until the kernels have been launched


class _Refused:
    """The kernels do not take this batch."""


_REFUSED = _Refused()


def _launch(
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[Adapter | None]],
    windows: Sequence[tuple[int, int]],
    kernel: str | None = None,
) -> _Launch | _Refused | None:
    """How to launch a batch; None if none of its rows has an adapter here.

    Args:
        weights: of each slice.
        windows: of each slice.
        kernel: the only kernel that will do; None takes the plan's.

    Raises:
        ValueError: weights do not fit the rows, the window, or one another.
    """
    _require_device(x)
    dtype = DTYPES.get(x.dtype)
    if dtype is None:
        return _REFUSED
    found = [records_of(each) for each in weights]
    if not any(found):
        return None
    widths = [stop - start for start, stop in windows]
    for each, width in zip(found, widths, strict=True):
        if each and each.features not in (None, (x.shape[1], width)):
            raise ValueError(f"weights of features {each.features} do not fit rows of {x.shape[1]} and {width} columns")
        if each and segments.has_own_up_slots and (each.ranks[segments.slots] != each.ranks[segments.up_slots]).any():
            raise ValueError("a segment pairs a down and an up projection of different ranks")
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
    facts = Facts(dtype, rank_class(rank), max(x.shape[1], *widths), len(x), num_segments)
    if any(bound % 8 for window in windows for bound in window):
        # The kernels of two launches take columns by eight.
        kernel = "fused"
    plan = pick("low_rank", architecture(x.device), facts, kernel)
    together = _together(weights, found)
    return _Launch(together.base, together.table, tiles.of(plan.block_m), facts.rank, numbers(plan), together.kept)


def _together(weights: Sequence[Sequence[Adapter | None]], found: Sequence[Records | None]) -> Records:
    """The records of all slices, with a table [P, S, 8]."""
    first = next(each for each in found if each)
    tables = [each.table for each in found if each and each.base is first.base]
    if len(tables) == len(found):
        kept = tuple(tensor for each in found if each for tensor in each.kept)
        return replace(first, table=stacked(tables), kept=kept)
    # Weights that lie here and there have a base for each slice; described anew as one sequence they have one.
    together = described([adapter for each in weights for adapter in each])
    return replace(together, table=together.table.view(len(weights), -1, FIELDS))


def _require_device(x: Tensor) -> None:
    if x.device.type == "cpu" and not INTERPRETED:
        raise ValueError("Triton kernels need a CUDA device; on a CPU its interpreter runs them (TRITON_INTERPRET=1)")


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
