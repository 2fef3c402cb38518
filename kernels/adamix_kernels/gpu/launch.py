"""The low-rank kernels as opaque torch ops: every argument a tensor or a number, nothing read back from the device.

`torch.compile` and CUDA graphs see single operators with known results. Each op takes the shape of its launch with it
(`plan`, a `Plan` as a list of numbers), so that what is captured is what runs. Which plan, and which tiles, is decided
above (`ops.py`).

Shapes: T rows, N tiles, S slots, P slices, R rank class.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache

import torch
import triton
from torch import Tensor

from adamix_kernels.gpu import low_rank
from adamix_kernels.gpu.records import FIELDS
from adamix_kernels.plans import Plan

# Read once, as Triton's decorator reads it: a kernel is compiled or interpreted for good.
INTERPRETED = bool(triton.knobs.runtime.interpret)
_KERNELS = ("fused", "split", "grouped")


def numbers(plan: Plan) -> list[int]:
    """A plan as an op's argument."""
    shape = (plan.block_m, plan.block_h, plan.num_warps, plan.num_stages, plan.block_n, plan.splits, int(plan.pdl))
    return [_KERNELS.index(plan.kernel), *shape]


def plan_of(values: Sequence[int]) -> Plan:
    """The plan behind `numbers`."""
    return _plan(*values)


@lru_cache(maxsize=256)
def _plan(
    kernel: int, block_m: int, block_h: int, num_warps: int, num_stages: int, block_n: int, splits: int, pdl: int
) -> Plan:
    return Plan(_KERNELS[kernel], block_m, block_h, num_warps, num_stages, block_n, splits, bool(pdl))


def on_device_of(operand: Tensor) -> AbstractContextManager[object]:
    """Make an operand's device the current one for a launch: Triton launches on the current one, torch's ops do not."""
    if not operand.is_cuda or operand.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(operand.device)


def precision(dtype: torch.dtype) -> str:
    """How operands of this dtype are multiplied: fp32 as torch's own products are, exactly unless TF32 is allowed.

    Exact products of small ranks are still bound by memory. This setting of torch's follows every way to allow TF32;
    `get_float32_matmul_precision` raises where it was set itself, which transformers does (`TrainingArguments.tf32`).
    """
    return "ieee" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32" else "tf32"


@torch.library.custom_op("adamix::low_rank_", mutates_args={"out"})
def low_rank_(
    out: Tensor,
    residual: Tensor | None,
    source: Tensor | None,
    base: Tensor,
    records: Tensor,
    tiles: Tensor,
    windows: list[int],
    rank: int,
    plan: list[int],
) -> None:
    """`out[:, w] = residual[:, w] + scale * (act(source down^T + down_bias) up + up_bias)` for each window w.

    Args:
        out: [T, out], rows contiguous.
        residual: as `out`; None: `out` itself, whose identity rows are then left alone.
        source: [T, in], rows contiguous; None: `out` itself.
        base: the arena; records: int64 [P, S, 8], of each slice; tiles: int32 [N, 4] of `plan.block_m` rows each.
        windows: the first column and the width of each slice in `out`, [2 P].
        rank: the rank class, at least the largest rank in use.
        plan: `numbers(plan)`.
    """
    shape = plan_of(plan)
    x = out if source is None else source
    operands = (out, out if residual is None else residual, x, base, records, tiles)
    if shape.kernel == "split":
        _split(*operands, tuple(windows), rank, shape, in_place=residual is None)
        return
    for piece in range(len(windows) // 2):
        first, width = windows[2 * piece], windows[2 * piece + 1]
        columns = slice(first, first + width)
        part = (out[:, columns], operands[1][:, columns], x, base, records[piece], tiles)
        fused(*part, rank=rank, plan=shape, in_place=residual is None)


@low_rank_.register_fake
def _(out, residual, source, base, records, tiles, windows, rank, plan):  # type: ignore[no-untyped-def]
    return None


@torch.library.custom_op("adamix::low_rank_norm", mutates_args=())
def low_rank_norm(
    s: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    base: Tensor,
    records: Tensor,
    tiles: Tensor,
    rank: int,
    plan: list[int],
) -> Tensor:
    """`LN(s + A(LN(s)))` on rows with an adapter and `LN(s)` on the others, [T, D]; the rest as `low_rank_`."""
    out = torch.empty_like(s)
    bias = torch.zeros_like(norm_weight) if norm_bias is None else norm_bias
    fused(out, s, s, base, records, tiles, rank=rank, plan=plan_of(plan), norm=(norm_weight, bias, eps))
    return out


@low_rank_norm.register_fake
def _(s, norm_weight, norm_bias, eps, base, records, tiles, rank, plan):  # type: ignore[no-untyped-def]
    return torch.empty_like(s)


def fused(
    out: Tensor,
    residual: Tensor | None,
    source: Tensor,
    base: Tensor,
    records: Tensor,
    tiles: Tensor,
    *,
    rank: int,
    plan: Plan,
    in_place: bool = False,
    norm: tuple[Tensor, Tensor, float] | None = None,
    hidden: Tensor | None = None,
    slopes: Tensor | None = None,
) -> None:
    """Launch `low_rank.fused`: see there.

    With `hidden`, what goes into the activation is saved there; with `slopes` too, it is read: this is the backward.
    """
    norm_weight, norm_bias, eps = norm or (base, base, 0.0)
    with on_device_of(out):
        low_rank.fused[(len(tiles),)](
            out,
            source if residual is None else residual,
            source,
            base if hidden is None else hidden,
            base if slopes is None else slopes,
            base,
            records,
            tiles,
            norm_weight,
            norm_bias,
            len(records),
            IN=source.shape[1],
            OUT=out.shape[1],
            OUT_STRIDE=out.stride(0),
            RESIDUAL_STRIDE=source.stride(0) if residual is None else residual.stride(0),
            SOURCE_STRIDE=source.stride(0),
            R=rank,
            BLOCK_M=plan.block_m,
            BLOCK_H=plan.block_h,
            HAS_RESIDUAL=residual is not None,
            IN_PLACE=in_place,
            NORM=norm is not None,
            EPS=eps,
            SAVE_HIDDEN=hidden is not None and slopes is None,
            BACKWARD=slopes is not None,
            PRECISION=precision(base.dtype),
            INTERPRETED=INTERPRETED,
            num_warps=plan.num_warps,
            num_stages=plan.num_stages,
        )


def _split(
    out: Tensor,
    residual: Tensor,
    source: Tensor,
    base: Tensor,
    records: Tensor,
    tiles: Tensor,
    windows: tuple[int, ...],
    rank: int,
    plan: Plan,
    *,
    in_place: bool,
) -> None:
    num_rows, num_slots, slices = len(source), records.shape[1], len(windows) // 2
    planes = torch.empty(slices, plan.splits, num_rows, rank, dtype=torch.float32, device=out.device)
    common = {
        "SPLITS": plan.splits,
        "BLOCK_M": plan.block_m,
        "PDL": plan.pdl,
        "PRECISION": precision(base.dtype),
        "INTERPRETED": INTERPRETED,
        "R": rank,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    chunks = _chunks(windows, plan.block_n, out.device)
    # Only `expand` is launched dependently: `shrink` must itself wait for whoever wrote its source.
    dependent = {"launch_pdl": True} if plan.pdl else {}
    with on_device_of(out):
        low_rank.shrink[(len(tiles), plan.splits, slices)](
            planes,
            source,
            base,
            records,
            tiles,
            num_slots,
            num_rows,
            IN=source.shape[1],
            SOURCE_STRIDE=source.stride(0),
            BLOCK_H=plan.block_h,
            **common,
        )
        low_rank.expand[(len(tiles), len(chunks))](
            out,
            residual,
            planes,
            base,
            records,
            tiles,
            chunks,
            num_slots,
            num_rows,
            OUT_STRIDE=out.stride(0),
            RESIDUAL_STRIDE=residual.stride(0),
            BLOCK_N=plan.block_n,
            IN_PLACE=in_place,
            **common,
            **dependent,
        )


@cache
def _chunks(windows: tuple[int, ...], block_n: int, device: torch.device) -> Tensor:
    """What each program of `expand` computes: int32 [chunks, 4]."""
    rows = [
        (piece, column, width, first)
        for piece, (first, width) in enumerate(zip(windows[::2], windows[1::2], strict=True))
        for column in range(0, width, block_n)
    ]
    chunks = torch.tensor(rows, dtype=torch.int32)
    if device.type == "cuda":
        # From pinned memory, or the copy would wait for the device.
        chunks = chunks.pin_memory()
    return chunks.to(device, non_blocking=True)


def stacked(tables: Sequence[Tensor]) -> Tensor:
    """Tables [S, 8] of several slices as one [P, S, 8]: without a copy where they follow one another in memory."""
    size = tables[0].numel()
    first = tables[0]
    follow = all(
        each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and each.storage_offset() == first.storage_offset() + i * size
        for i, each in enumerate(tables)
    )
    return first.as_strided((len(tables), len(first), FIELDS), (size, FIELDS, 1)) if follow else torch.stack([*tables])
