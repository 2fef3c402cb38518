"""Gradients of the experts' weights of a routed low-rank update, grouped by expert. Knows Triton only.

With h the hidden row behind the activation and dh the gradient in front of it (which `low_rank.fused` makes of dy), an
expert's gradients are sums over the rows t that were routed to it:

    d down = sum_t dh[t]^T source[t]        d down_bias = sum_t dh[t]
    d up   = scale * sum_t h[t]^T dy[t]     d up_bias   = scale * sum_t dy[t]

Down and up are routed independently, so each side has its own grouping and its own launch of the one kernel here. A
program owns some columns of one expert's gradient and walks over that expert's tiles: nobody else writes there, the
additions have one order, and there are no atomics. Results go where the weight lies in the arena, in a buffer laid out
like it, so that the records of the forward address it too.

Shapes: T rows, R rank class, E elements of the arena, S table rows (0, the identity, included), K tiles of one side.
"""

from collections.abc import Iterator

import triton
import triton.language as tl

from adamix_kernels.gpu.low_rank import (
    DOWN,
    DOWN_BIAS,
    RANK,
    UP,
    UP_BIAS,
    dot,
    field,
    load_rows,
    offset_of,
    scale_of,
)
from adamix_kernels.gpu.specimen import Specimen
from adamix_kernels.plans import Facts, Rule


@triton.jit(do_not_specialize=["size"])
def grouped(
    out, units, features, records, tiles, bounds, size,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, R: tl.constexpr, OF_UP: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One side's gradients, `units^T features` by expert; grid (chunks of BLOCK_N columns, S, SPLITS).

    Experts without rows are left out: their part of `out` stays as it is.

    Args:
        out: [E], laid out as the arena. With SPLITS > 1 fp32 [SPLITS, E]: each part of the rows has a plane of its own.
        units: [T, R]. OF_UP: h; otherwise dh, which has the scale in it.
        features: [T, WIDTH] of the same dtype, row stride STRIDE. OF_UP: dy; otherwise source.
        records: int64 [S, 8], see `records.py`.
        tiles: int32 [K, 2], (first row, end row) of tiles of up to BLOCK_M rows, those of one expert side by side.
        bounds: int32 [S + 1]: the tiles of table row s are `bounds[s]:bounds[s + 1]`.
        size: E, a multiple of 8.
    """
    chunk, slot, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin, end = tl.load(bounds + slot), tl.load(bounds + slot + 1)
    if begin == end:
        return
    if SPLITS > 1:
        share = tl.cdiv(end - begin, SPLITS)
        begin += part * share
        end = tl.minimum(end, begin + share)
        # E is a multiple of 8. Written so, the compiler knows it as well, or every store would be one element wide.
        out += part.to(tl.int64) * (size // 8) * 8
    cols, r = chunk * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, R)
    acc = tl.zeros([R, BLOCK_N], tl.float32)
    # The bias's gradient is the sum over rows of one operand: blocks are added up whole, and reduced once at the end.
    if OF_UP:
        sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    else:
        sums = tl.zeros([BLOCK_M, R], tl.float32)
    for tile in range(begin, end):
        rows = tl.load(tiles + 2 * tile) + tl.arange(0, BLOCK_M)
        row_mask = rows < tl.load(tiles + 2 * tile + 1)
        left = load_rows(units, rows, row_mask, r, R, R, R)
        right = load_rows(features, rows, row_mask, cols, WIDTH, STRIDE, BLOCK_N)
        sums += right.to(tl.float32) if OF_UP else left.to(tl.float32)
        acc = dot(tl.trans(left), right, acc, PRECISION, INTERPRETED)

    if OF_UP:
        matrix, bias = offset_of(records, slot, UP), offset_of(records, slot, UP_BIAS)
        scale = scale_of(records, slot, R)
        acc *= scale
        sums *= scale
    else:
        matrix, bias = offset_of(records, slot, DOWN), offset_of(records, slot, DOWN_BIAS)
    rank = field(records, slot, RANK)
    at = out + matrix + r.to(tl.int64)[:, None] * WIDTH + cols[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=(r < rank)[:, None] & (cols < WIDTH)[None, :])
    total = tl.sum(sums, 0).to(out.dtype.element_ty)
    if OF_UP:
        tl.store(out + bias + cols, total, mask=(cols < WIDTH) & (bias >= 0))
    else:
        tl.store(out + bias + r, total, mask=(r < rank) & (bias >= 0) & (chunk == 0))


def specimens(rule: Rule, facts: Facts) -> Iterator[Specimen]:
    """Both sides under one rule of the plans."""
    plan, data = rule.plan, f"*{facts.dtype}"
    operands = {"units": data, "features": data, "records": "*i64", "tiles": "*i32", "bounds": "*i32", "size": "i32"}
    types = operands | {"out": "*fp32" if plan.splits > 1 else data}
    sizes = {"WIDTH": facts.features, "STRIDE": facts.features, "R": facts.rank, "SPLITS": plan.splits}
    sizes |= {"BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n, "PRECISION": "ieee", "INTERPRETED": False}
    name = f"{rule.name}, {facts.dtype}, R={facts.rank}, H={facts.features}"
    options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages}
    for side in ("down", "up"):
        yield Specimen(f"weight gradients, {side}", grouped, types, sizes | {"OF_UP": side == "up"}, name, options)
