"""The grouped low-rank update, which bottleneck adapters and LoRA have in common. Knows Triton only.

    out[t] = residual[t] + scale * (act(source[t] down^T + down_bias) up + up_bias)        for every row t of a batch

Each row has its own adapter. Rows of one adapter lie together, and a *tile* is a block of them: tiles never cross
a segment, so every program reads the weights of one adapter. Programs write disjoint parts of the result, in a fixed
order of additions: a row's result depends on no other row, and there are no atomics.

Operands of all kernels here:

    base     [..]        the arena: every weight is `base + offset`; offsets count elements, in 64 bits.
    records  int64 [S,8] one for each slot: see `records.py`. Rank 0 is the identity.
    tiles    int32 [N,4] down slot, up slot, first row, end row. The two slots differ where the experts of a mixture
                         are drawn independently. A tile whose slot is -1, or outside the table, is left out: the grid
                         is fixed, the number of tiles is not.

Ranks differ within one launch: R is the largest, a power of two >= 16; rows of `down` and `up` beyond a slot's rank are
neither read nor counted. The rows of an adapter whose rank is larger come out as NaN, never as a part of the adapter: a
captured graph may meet one that was loaded after the capture. Sums are fp32 and activations are computed in fp32; the
hidden row is rounded once, to the dtype of the weights.

Three kernels: `fused` does all in one launch, one program a tile; `shrink` and `expand` split the features, for few
rows of many features, where one program a tile would leave most of the device idle.
"""

import triton
import triton.language as tl

from adamix_kernels.gpu.activations import activate, derivative

FIELDS = tl.constexpr(8)
DOWN, DOWN_BIAS, UP, UP_BIAS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
RANK, ACTIVATION, SCALE = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """`a b + acc`. The interpreter multiplies the bits of bf16 numbers, so there the operands are widened first."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def slot_exists(slot, num_slots):
    return (slot >= 0) & (slot < num_slots)


@triton.jit
def field(records, slot, FIELD: tl.constexpr):
    return tl.load(records + slot.to(tl.int64) * FIELDS + FIELD)


@triton.jit
def offset_of(records, slot, FIELD: tl.constexpr):
    # Tensors begin on 16 bytes (`records.py` sees to it). The compiler must be told here, at the load itself: what it
    # is told of an argument of an inlined function is lost, and every load from there on would fetch one element.
    return tl.multiple_of(tl.load(records + slot.to(tl.int64) * FIELDS + FIELD), 8)


@triton.jit
def bias_of(records, slot, FIELD: tl.constexpr):
    """The offset of a bias, negative where there is none: the record of an identity has zeros for all its fields."""
    return tl.where(field(records, slot, RANK) > 0, offset_of(records, slot, FIELD), -8)


@triton.jit
def scale_of(records, slot, R: tl.constexpr):
    """The factor on an adapter's output, fp32; NaN if its rank is larger than the launch provides for."""
    scale = field(records, slot, SCALE).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(field(records, slot, RANK) > R, float("nan"), scale)


@triton.jit
def load_rows(data, rows, row_mask, cols, WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """A block `[rows, cols]`, zero outside. The mask over columns is left out where blocks divide the width."""
    at = data + rows.to(tl.int64)[:, None] * STRIDE + cols[None, :]
    if WIDTH % BLOCK == 0:
        block = tl.load(at, mask=row_mask[:, None], other=0.0)
    else:
        block = tl.load(at, mask=row_mask[:, None] & (cols < WIDTH)[None, :], other=0.0)
    return block


@triton.jit
def load_matrix(base, offset, rank, cols, R: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns of an adapter's matrix `[rank, WIDTH]`, as `[R, cols]`; rows beyond the rank are zero and not fetched."""
    r = tl.arange(0, R)
    return load_rows(base + offset, r, r < rank, cols, WIDTH, WIDTH, BLOCK)


@triton.jit
def load_vector(base, offset, cols, size):
    """Elements of a bias in fp32; zeros where the adapter has none (a negative offset)."""
    there = cols < tl.where(offset >= 0, size, 0)
    return tl.load(base + offset + cols, mask=there, other=0.0).to(tl.float32)


@triton.jit
def add_moments(mean, spread, count, block, col_mask, SIZE: tl.constexpr):
    """Mean and sum of squared deviations of each row, with one more block of columns (Chan et al. 1979)."""
    more = tl.sum(col_mask.to(tl.float32), 0)
    block_mean = tl.sum(tl.where(col_mask[None, :], block, 0.0), 1) / more
    off = tl.where(col_mask[None, :], block - block_mean[:, None], 0.0)
    delta = block_mean - mean
    total = count + more
    mean += delta * (more / total)
    spread += tl.sum(off * off, 1) + delta * delta * (count * more / total)
    return mean, spread, total


@triton.jit
def normalise(block, mean, rstd, weight, bias, cols, WIDTH: tl.constexpr):
    mask = cols < WIDTH
    w = tl.load(weight + cols, mask=mask, other=0.0).to(tl.float32)
    b = load_vector(bias, 0, cols, WIDTH)
    return (block - mean[:, None]) * rstd[:, None] * w[None, :] + b[None, :]


@triton.jit
def updated(
    residual, rows, row_mask, cols, hidden, base, matrix, bias, scale, rank,
    R: tl.constexpr, OUT: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """`residual + scale * (hidden matrix + bias)` at some columns, fp32 `[rows, cols]`."""
    w = load_matrix(base, matrix, rank, cols, R, OUT, BLOCK)
    y = dot(hidden, w, tl.zeros([hidden.shape[0], BLOCK], tl.float32), PRECISION, INTERPRETED)
    y = (y + load_vector(base, bias, cols, OUT)[None, :]) * scale
    if HAS_RESIDUAL:
        kept = load_rows(residual, rows, row_mask, cols, OUT, RESIDUAL_STRIDE, BLOCK).to(tl.float32)
        # The sum of -0.0 and 0.0 is 0.0: identity rows are passed on, not added to.
        y = tl.where(rank > 0, kept + y, kept)
    return y


@triton.jit(do_not_specialize=["num_slots"])
def fused(
    out, residual, source, hidden, slopes, base, records, tiles, norm_weight, norm_bias, num_slots,
    IN: tl.constexpr, OUT: tl.constexpr, OUT_STRIDE: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr,
    SOURCE_STRIDE: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, IN_PLACE: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
    SAVE_HIDDEN: tl.constexpr, BACKWARD: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The whole update of one tile, one program a tile; grid (N,).

    With NORM (a norm point) `residual` is the input s of a LayerNorm and `out = LN(s + A(LN(s)))`: both norms happen
    here, the second with the sum computed twice, since a product costs less than to store rows and read them again.
    With BACKWARD the roles of `down` and `up` are swapped: `source` is dy, `hidden` what the forward saved, and `out =
    residual + dh down` with `dh = scale * (dy up^T) * act'(hidden)`, which is stored to `slopes`.

    Args:
        out: [T, OUT], row stride OUT_STRIDE. IN_PLACE: it is `residual`, so identity rows are left as they are.
        residual: [T, OUT]; not read unless HAS_RESIDUAL. May be `source`.
        source: [T, IN].
        hidden: fp32 [T, R], what goes into the activation: written with SAVE_HIDDEN, read with BACKWARD.
        slopes: [T, R], dh, in the dtype it is given: written with BACKWARD.
        norm_weight, norm_bias: [OUT] (= [IN]), with NORM.
    """
    tile = tl.program_id(0)
    down_slot = tl.load(tiles + 4 * tile)
    up_slot = tl.load(tiles + 4 * tile + 1)
    if not (slot_exists(down_slot, num_slots) & slot_exists(up_slot, num_slots)):
        return
    first_row = tl.load(tiles + 4 * tile + 2)
    rows = first_row + tl.arange(0, BLOCK_M)
    row_mask = rows < tl.load(tiles + 4 * tile + 3)
    rank = field(records, down_slot, RANK)
    if IN_PLACE and rank == 0:
        return
    if BACKWARD:
        first, second = offset_of(records, up_slot, UP), offset_of(records, down_slot, DOWN)
        first_bias, second_bias = tl.full([], -8, tl.int64), tl.full([], -8, tl.int64)
        out_scale = 1.0
    else:
        first, second = offset_of(records, down_slot, DOWN), offset_of(records, up_slot, UP)
        first_bias, second_bias = bias_of(records, down_slot, DOWN_BIAS), bias_of(records, up_slot, UP_BIAS)
        out_scale = scale_of(records, up_slot, R)

    mean = tl.zeros([BLOCK_M], tl.float32)
    rstd = tl.zeros([BLOCK_M], tl.float32)
    if NORM:
        spread, count = tl.zeros([BLOCK_M], tl.float32), 0.0
        for h in range(0, IN, BLOCK_H):
            cols = h + tl.arange(0, BLOCK_H)
            s = load_rows(source, rows, row_mask, cols, IN, SOURCE_STRIDE, BLOCK_H).to(tl.float32)
            mean, spread, count = add_moments(mean, spread, count, s, cols < IN, BLOCK_H)
        rstd = tl.rsqrt(spread / IN + EPS)

    acc = tl.zeros([BLOCK_M, R], tl.float32)
    if rank > 0:
        for h in range(0, IN, BLOCK_H):
            cols = h + tl.arange(0, BLOCK_H)
            x = load_rows(source, rows, row_mask, cols, IN, SOURCE_STRIDE, BLOCK_H)
            if NORM:
                x = normalise(x.to(tl.float32), mean, rstd, norm_weight, norm_bias, cols, IN)
            w = load_matrix(base, first, rank, cols, R, IN, BLOCK_H)
            acc = dot(x.to(w.dtype), tl.trans(w), acc, PRECISION, INTERPRETED)
    units = tl.arange(0, R)
    acc += load_vector(base, first_bias, units, rank)[None, :]
    code = field(records, down_slot, ACTIVATION)
    at_hidden = rows.to(tl.int64)[:, None] * R + units[None, :]
    if BACKWARD:
        slope = derivative(tl.load(hidden + at_hidden, mask=row_mask[:, None], other=0.0), code)
        acc = acc * slope * scale_of(records, up_slot, R)
        tl.store(slopes + at_hidden, acc, mask=row_mask[:, None])
    else:
        if SAVE_HIDDEN:
            tl.store(hidden + at_hidden, acc, mask=row_mask[:, None])
        acc = activate(acc, code)
    h_row = acc.to(base.dtype.element_ty)

    # `out` may be `source`: all of a tile's rows have been read before the first is written.
    tl.debug_barrier()
    if NORM:
        mean2, spread, count = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M], tl.float32), 0.0
        for h in range(0, OUT, BLOCK_H):
            cols = h + tl.arange(0, BLOCK_H)
            y = updated(residual, rows, row_mask, cols, h_row, base, second, second_bias, out_scale, rank, R, OUT,
                        RESIDUAL_STRIDE, BLOCK_H, HAS_RESIDUAL, PRECISION, INTERPRETED)  # fmt: skip
            mean2, spread, count = add_moments(mean2, spread, count, y, cols < OUT, BLOCK_H)
        rstd2 = tl.rsqrt(spread / OUT + EPS)
        if rank == 0:
            mean2, rstd2 = mean, rstd
    for h in range(0, OUT, BLOCK_H):
        cols = h + tl.arange(0, BLOCK_H)
        y = updated(residual, rows, row_mask, cols, h_row, base, second, second_bias, out_scale, rank, R, OUT,
                    RESIDUAL_STRIDE, BLOCK_H, HAS_RESIDUAL, PRECISION, INTERPRETED)  # fmt: skip
        if NORM:
            y = normalise(y, mean2, rstd2, norm_weight, norm_bias, cols, OUT)
        at = out + rows.to(tl.int64)[:, None] * OUT_STRIDE + cols[None, :]
        tl.store(at, y.to(out.dtype.element_ty), mask=row_mask[:, None] & (cols < OUT)[None, :])


@triton.jit(do_not_specialize=["num_slots", "num_rows"])
def shrink(
    planes, source, base, records, tiles, num_slots, num_rows,
    IN: tl.constexpr, SOURCE_STRIDE: tl.constexpr, R: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """First half: `planes[i, p] = source[:, part p] down_i[:, part p]^T`; grid (N, SPLITS, slices).

    Several slices read one source with an adapter each: q, k and v of a fused projection. Stores are plain and to
    disjoint places: nothing has to be cleared first, and the sum over parts has one order.

    Args:
        planes: fp32 [slices, SPLITS, T, R]; rows of tiles that are left out stay as they are.
        records: int64 [slices, S, 8].
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tile, part, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(tiles + 4 * tile)
    if not slot_exists(slot, num_slots):
        return
    records += piece.to(tl.int64) * num_slots * FIELDS
    rank = field(records, slot, RANK)
    if rank == 0:
        return
    rows = tl.load(tiles + 4 * tile + 2) + tl.arange(0, BLOCK_M)
    row_mask = rows < tl.load(tiles + 4 * tile + 3)
    down = offset_of(records, slot, DOWN)
    acc = tl.zeros([BLOCK_M, R], tl.float32)
    for h in range(part * BLOCK_H, IN, SPLITS * BLOCK_H):
        cols = h + tl.arange(0, BLOCK_H)
        x = load_rows(source, rows, row_mask, cols, IN, SOURCE_STRIDE, BLOCK_H)
        w = load_matrix(base, down, rank, cols, R, IN, BLOCK_H)
        acc = dot(x.to(w.dtype), tl.trans(w), acc, PRECISION, INTERPRETED)
    plane = planes + (piece * SPLITS + part).to(tl.int64) * num_rows * R
    tl.store(plane + rows.to(tl.int64)[:, None] * R + tl.arange(0, R)[None, :], acc, mask=row_mask[:, None])


@triton.jit(do_not_specialize=["num_slots", "num_rows"])
def expand(
    out, residual, planes, base, records, tiles, chunks, num_slots, num_rows,
    OUT_STRIDE: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr, R: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IN_PLACE: tl.constexpr, PDL: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Second half: `out = residual + scale * (act(sum_p planes[i, p] + down_bias) up + up_bias)`; grid (N, chunks).

    Args:
        out, residual: [T, features of all slices]; IN_PLACE: `out` is `residual`.
        planes: fp32 [slices, SPLITS, T, R], from `shrink`.
        chunks: int32 [chunks, 4] of up to BLOCK_N columns each: (slice, first column within the slice, width of the
            slice, first column of the slice in `out`).
    """
    tile, chunk = tl.program_id(0), tl.program_id(1)
    down_slot = tl.load(tiles + 4 * tile)
    up_slot = tl.load(tiles + 4 * tile + 1)
    if not (slot_exists(down_slot, num_slots) & slot_exists(up_slot, num_slots)):
        return
    piece = tl.load(chunks + 4 * chunk)
    width = tl.multiple_of(tl.load(chunks + 4 * chunk + 2), 8)
    start = tl.multiple_of(tl.load(chunks + 4 * chunk + 3), 8)
    # Blocks are of 16 columns or more. Without any one of these hints, all loads of blocks are one element wide.
    cols = tl.multiple_of(tl.load(chunks + 4 * chunk + 1), 16) + tl.arange(0, BLOCK_N)
    col_mask = cols < width
    records += piece.to(tl.int64) * num_slots * FIELDS
    rank = field(records, down_slot, RANK)
    if IN_PLACE and rank == 0:
        return
    rows = tl.load(tiles + 4 * tile + 2) + tl.arange(0, BLOCK_M)
    row_mask = rows < tl.load(tiles + 4 * tile + 3)
    mask = row_mask[:, None] & col_mask[None, :]
    units = tl.arange(0, R)
    up = offset_of(records, up_slot, UP)
    at_up = base + up + units.to(tl.int64)[:, None] * width + cols[None, :]
    w = tl.load(at_up, mask=(units < rank)[:, None] & col_mask[None, :], other=0.0)
    at_rows = rows.to(tl.int64)[:, None]
    y = tl.load(residual + at_rows * RESIDUAL_STRIDE + (start + cols)[None, :], mask=mask, other=0.0).to(tl.float32)
    up_bias = load_vector(base, bias_of(records, up_slot, UP_BIAS), cols, width)
    acc = tl.zeros([BLOCK_M, R], tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if rank > 0:
        for part in range(SPLITS):
            plane = planes + (piece * SPLITS + part).to(tl.int64) * num_rows * R
            acc += tl.load(plane + at_rows * R + units[None, :], mask=row_mask[:, None], other=0.0)
    acc += load_vector(base, bias_of(records, down_slot, DOWN_BIAS), units, rank)[None, :]
    h_row = activate(acc, field(records, down_slot, ACTIVATION)).to(w.dtype)
    delta = dot(h_row, w, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, INTERPRETED)
    y = tl.where(rank > 0, y + (delta + up_bias[None, :]) * scale_of(records, up_slot, R), y)
    tl.store(out + at_rows * OUT_STRIDE + (start + cols)[None, :], y.to(out.dtype.element_ty), mask=mask)
