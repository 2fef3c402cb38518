"""The routed low-rank update and its gradients as torch ops: one launch forward, three backward, however many experts.

    y[t] = residual[t] + scale * (act(source[t] down^T + down_bias) up + up_bias)

with the down and the up projection of the experts that row t is routed to. The experts in use are put into one arena,
by operations that autograd follows: so the one gradient that the op returns for the arena comes back to each parameter
by itself, and an expert that no row is routed to, which is not in the arena, has none (None, not zeros).

The backward of rows is the forward's kernel with the roles of the projections swapped; that of weights is
`weight_gradients.grouped`, once for each side. Gradients have a fixed order of additions and no atomics, so two runs
are equal to the bit.

Shapes: T rows, G groups, R rank class, E elements of the arena, S table rows (0, the identity, included), K tiles.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from adamix_kernels.gpu.launch import INTERPRETED, fused, numbers, on_device_of, plan_of, precision
from adamix_kernels.gpu.records import FIELDS, record_of
from adamix_kernels.gpu.weight_gradients import grouped
from adamix_kernels.plans import Plan
from adamix_kernels.segments import Segments
from adamix_kernels.weights import ACTIVATIONS, LowRank, RoutedProjection

# Pieces of an arena begin on 16 bytes in every dtype.
_ALIGNMENT = 8
# The shapes of a projection's matrix, as it lies in the arena, and of its bias.
_Shapes = tuple[tuple[int, int], tuple[int] | None]


def adapt(
    source: Tensor,
    residual: Tensor | None,
    down: RoutedProjection,
    up: RoutedProjection,
    scale: float,
    activation: str,
    dtype: torch.dtype,
    rank: int,
    plan: Plan,
    gradient_plan: Plan,
) -> Tensor:
    """`residual + A(source)`, or `A(source)`; autograd follows it.

    Args:
        source: [G, N, in], N >= 1.
        residual: [G, N, out] of any dtype, perhaps `source` itself, or None.
        dtype: of the products: the weights', or autocast's.
        rank: R.
        plan: of `low_rank.fused`; gradient_plan: of `weight_gradients.grouped`.

    Returns:
        [G, N, out] in the dtype of `residual`, or else of `source`.
    """
    groups, num_rows, _ = source.shape
    down_experts, down_places = _numbered(down.experts)
    up_experts, up_places = _numbered(up.experts)
    downs = [(down.weights[e], None if down.biases is None else down.biases[e]) for e in down_experts]
    ups = [(up.weights[e].t(), None if up.biases is None else up.biases[e]) for e in up_experts]
    arena = torch.cat([_padded(piece) for pair in (*downs, *ups) for piece in pair if piece is not None]).to(dtype)
    records = _records(_shapes(downs), _shapes(ups), scale, activation, source.device)
    tables = _tables(down_places, up_places, num_rows, plan.block_m, gradient_plan.block_m, source.device)

    rows = source.reshape(groups * num_rows, -1).to(dtype)
    # Where both are one tensor the sum of both gradients leaves the kernel; a copy in another dtype is another tensor.
    adds_source = residual is source and source.dtype == dtype
    added = None if residual is None or adds_source else _with_contiguous_rows(residual.reshape(groups * num_rows, -1))
    saves = torch.is_grad_enabled() and (rows.requires_grad or arena.requires_grad)
    plans = (numbers(plan), numbers(gradient_plan))
    operands = (_with_contiguous_rows(rows), added, arena, records, tables)
    y: Tensor
    y, _ = low_rank(*operands, up.out_features, adds_source, saves, activation, rank, *plans)
    return y.view(groups, num_rows, -1).to(source.dtype if residual is None else residual.dtype)


def _numbered(experts: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The experts in use, in order of appearance, and the place of each group's expert among them.

    So numbered, most routes of a few groups look alike, and what is made for them is made once.
    """
    used = tuple(dict.fromkeys(experts))
    places = {expert: place for place, expert in enumerate(used)}
    return used, tuple(places[expert] for expert in experts)


def _padded(piece: Tensor) -> Tensor:
    flat = piece.reshape(-1)
    missing = -len(flat) % _ALIGNMENT
    return F.pad(flat, (0, missing)) if missing else flat


def _with_contiguous_rows(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _shapes(projections: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[_Shapes, ...]:
    return tuple(
        ((matrix.shape[0], matrix.shape[1]), None if bias is None else (len(bias),)) for matrix, bias in projections
    )


@lru_cache(maxsize=256)
def _records(
    downs: tuple[_Shapes, ...], ups: tuple[_Shapes, ...], scale: float, activation: str, device: torch.device
) -> Tensor:
    """The records of an arena that holds pieces of these shapes one after another: int64 [S, 8] on the device.

    Row 1 + i has the i-th down and the i-th up projection. Where there are fewer of one side, its last fills the rows
    that are left; no tile names them.
    """
    # Records are of places, not of values: any memory with this layout has the same.
    size = sum(_room(shape) for pair in (*downs, *ups) for shape in pair if shape is not None)
    arena = torch.empty(size)
    pieces = _cut(arena, (*downs, *ups))
    placed_downs, placed_ups = [next(pieces) for _ in downs], list(pieces)
    rows = [[0] * FIELDS]
    for i in range(max(len(downs), len(ups))):
        matrix_and_bias = (*placed_downs[min(i, len(downs) - 1)], *placed_ups[min(i, len(ups) - 1)])
        rows.append(record_of(LowRank(*matrix_and_bias, scale, activation), arena))
    return _uploaded(np.array(rows, np.int64), device)


def _room(shape: Sequence[int]) -> int:
    return -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT


def _cut(arena: Tensor, projections: Sequence[_Shapes]) -> Iterator[tuple[Tensor, Tensor | None]]:
    start = 0
    for pair in projections:
        found = []
        for shape in pair:
            found.append(None if shape is None else arena[start : start + math.prod(shape)].view(shape))
            start += 0 if shape is None else _room(shape)
        yield found[0], found[1]  # type: ignore[misc]  # the first is a matrix


@lru_cache(maxsize=256)
def _tables(
    downs: tuple[int, ...],
    ups: tuple[int, ...],
    num_rows: int,
    block_m: int,
    gradient_block_m: int,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Where the rows of each group go, uploaded in one copy.

    Args:
        downs, ups: for each group of `num_rows` rows, the place of its expert in the arena.

    Returns:
        int32 [N, 4], the tiles of `low_rank.fused`; and for the down and the up side, the int32 [K, 2] tiles and the
        int32 [S + 1] bounds of `weight_gradients.grouped`.
    """
    slots, up_slots = 1 + np.array(downs), 1 + np.array(ups)
    segments = Segments.from_lengths(slots, [num_rows] * len(downs), up_slots)
    coarse, fine = segments.tile_map(block_m), segments.tile_map(gradient_block_m)
    tables = [np.stack([coarse.slot, coarse.up_slot, coarse.first_row, coarse.end_row], axis=1)]
    for slot_of_tile in (fine.slot, fine.up_slot):
        order = np.argsort(slot_of_tile, kind="stable")
        tables.append(np.stack([fine.first_row, fine.end_row], axis=1)[order])
        tables.append(np.searchsorted(slot_of_tile[order], np.arange(segments.max_slot + 2)).astype(np.int32))
    # Each begins on 16 bytes, so that a kernel is compiled for aligned tables alone.
    buffer = np.concatenate([np.pad(table.reshape(-1), (0, -table.size % 4)) for table in tables])
    parts = _uploaded(buffer, device).split_with_sizes([-(-table.size // 4) * 4 for table in tables])
    return tuple(part[: table.size].view(table.shape) for part, table in zip(parts, tables, strict=True))


def _uploaded(array: "np.ndarray[Any, Any]", device: torch.device) -> Tensor:
    # Ordinary tensors even where the first to ask is in inference mode: a training step that asks later saves them.
    with torch.inference_mode(False):
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@torch.library.custom_op("adamix::routed_low_rank", mutates_args=())
def low_rank(
    source: Tensor,
    residual: Tensor | None,
    arena: Tensor,
    records: Tensor,
    tables: Sequence[Tensor],
    out_features: int,
    adds_source: bool,
    saves: bool,
    activation: str,
    rank: int,
    plan: Sequence[int],
    gradient_plan: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """`y` [T, out] in the dtype of `residual` or else of `source`; and fp32 [T, R], what goes into the activation.

    Args:
        source: [T, in] in the dtype of the arena, rows contiguous.
        residual: [T, out], rows contiguous, or None.
        arena: [E]; records: int64 [S, 8]; tables: as `_tables` gives them, four of them for the backward.
        adds_source: `source` is the residual.
        saves: a backward may follow; without it the second result is empty.
        activation: for the backward; the forward reads its number in the records.
        plan, gradient_plan: `launch.numbers` of each.
    """
    y = (source if residual is None else residual).new_empty(len(source), out_features)
    hidden = source.new_empty(len(source) if saves else 0, rank, dtype=torch.float32)
    fused(
        y,
        source if adds_source else residual,
        source,
        arena,
        records,
        tables[0],
        rank=rank,
        plan=plan_of(plan),
        hidden=hidden if saves else None,
    )
    return y, hidden


@low_rank.register_fake
def _(  # type: ignore[no-untyped-def]
    source, residual, arena, records, tables, out_features, adds_source, saves, activation, rank, plan, gradient_plan
):
    y = (source if residual is None else residual).new_empty(source.shape[0], out_features)
    return y, source.new_empty(source.shape[0] if saves else 0, rank, dtype=torch.float32)


@torch.library.custom_op("adamix::routed_low_rank_gradients", mutates_args=())
def low_rank_gradients(
    dy: Tensor,
    source: Tensor,
    hidden: Tensor,
    arena: Tensor,
    records: Tensor,
    tables: Sequence[Tensor],
    adds_source: bool,
    activation: str,
    plan: Sequence[int],
    gradient_plan: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The gradients of `source` [T, in] and of the arena [E], from that of y and what `low_rank` was given and gave."""
    dy = _with_contiguous_rows(dy.to(arena.dtype))
    d_source = source.new_empty(source.shape)
    d_hidden = torch.empty_like(hidden, dtype=arena.dtype)
    tiles, *of_sides = tables
    fused(
        d_source,
        dy if adds_source else None,
        dy,
        arena,
        records,
        tiles,
        rank=hidden.shape[1],
        plan=plan_of(plan),
        hidden=hidden,
        slopes=d_hidden,
    )
    h = ACTIVATIONS[activation](hidden).to(arena.dtype)
    shape = plan_of(gradient_plan)
    # Cleared, because nothing is written between the pieces.
    dtype = arena.dtype if shape.splits == 1 else torch.float32
    planes = torch.zeros(shape.splits, len(arena), dtype=dtype, device=arena.device)
    for of_up, units, features in ((False, d_hidden, source), (True, h, dy)):
        tiles, bounds = of_sides[2 * of_up : 2 * of_up + 2]
        chunks = triton.cdiv(features.shape[1], shape.block_n)
        with on_device_of(planes):
            grouped[(chunks, len(bounds) - 1, shape.splits)](
                planes,
                units,
                features,
                records,
                tiles,
                bounds,
                len(arena),
                WIDTH=features.shape[1],
                STRIDE=features.stride(0),
                R=units.shape[1],
                OF_UP=of_up,
                BLOCK_M=shape.block_m,
                BLOCK_N=shape.block_n,
                SPLITS=shape.splits,
                PRECISION=precision(arena.dtype),
                INTERPRETED=INTERPRETED,
                num_warps=shape.num_warps,
                num_stages=shape.num_stages,
            )
    return d_source, planes[0] if shape.splits == 1 else planes.sum(0).to(arena.dtype)


@low_rank_gradients.register_fake
def _(  # type: ignore[no-untyped-def]
    dy, source, hidden, arena, records, tables, adds_source, activation, plan, gradient_plan
):
    return source.new_empty(source.shape), arena.new_empty(arena.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    source, _, arena, records, tables, _, adds_source, _, activation, _, plan, gradient_plan = inputs
    ctx.save_for_backward(source, output[1], arena, records, *tables)
    ctx.rest = adds_source, activation, plan, gradient_plan


def _backward(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    source, hidden, arena, records, *tables = ctx.saved_tensors
    d_source, d_arena = low_rank_gradients(dy, source, hidden, arena, records, tables, *ctx.rest)
    d_residual = dy if ctx.needs_input_grad[1] else None
    return d_source, d_residual, d_arena, None, [None] * len(tables), *[None] * 7


low_rank.register_autograd(_backward, setup_context=_save)
