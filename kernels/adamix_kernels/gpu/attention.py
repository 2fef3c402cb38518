"""Attention within each sequence of a packed batch, by online softmax. Knows Triton only.

    out[t, h] = sum_u p[t, u] v[u, h'],    p[t, :] = softmax_u(scale * q[t, h] . k[u, h'])    u in the sequence of t

The scores of a row are never stored: keys are taken block by block, with the largest score and the sum of exponentials
so far (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1). A row's blocks are counted from the start of its
sequence, so its result is the same to the bit wherever the sequence lies and whatever lies beside it. Rows of other
sequences are never read, for a weight of zero would not hide a value that is not finite.

Shapes: T packed rows, N tiles, E head size; query head h reads the key and value head h' = h // GROUP.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import triton
import triton.language as tl

from adamix_kernels.gpu.low_rank import dot
from adamix_kernels.gpu.specimen import Specimen

INTERPRETED = triton.knobs.runtime.interpret

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend(
    acc, total, top, queries, rows, k, v, start, stop,
    HEAD_SIZE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Attend to the keys `start <= u < stop` as well, and with CAUSAL to none behind the row's own.

    Without MASKED all rows see all keys, and these fill whole blocks.

    Args:
        acc, total, top: fp32 [M, E], [M], [M]: the weighted sum of values, the sum of weights and the largest score (in
            powers of two) so far; the same is returned.
        queries: [M, E]; rows: their places in the packed batch.
        k, v: the first element of this head.
    """
    features = tl.arange(0, BLOCK_E)
    for n in range(start, stop, BLOCK_N):
        keys = n + tl.arange(0, BLOCK_N)
        at_k = k + keys.to(tl.int64)[:, None] * K_STRIDE + features[None, :]
        at_v = v + keys.to(tl.int64)[:, None] * V_STRIDE + features[None, :]
        if MASKED:
            there = (keys < stop)[:, None] & (features < HEAD_SIZE)[None, :]
            block_k, block_v = tl.load(at_k, mask=there, other=0.0), tl.load(at_v, mask=there, other=0.0)
        elif HEAD_SIZE == BLOCK_E:
            block_k, block_v = tl.load(at_k), tl.load(at_v)
        else:
            there = (features < HEAD_SIZE)[None, :]
            block_k, block_v = tl.load(at_k, mask=there, other=0.0), tl.load(at_v, mask=there, other=0.0)
        scores = tl.zeros([queries.shape[0], BLOCK_N], tl.float32)
        scores = dot(queries, tl.trans(block_k), scores, PRECISION, INTERPRETED) * (SCALE * _LOG2_E)
        if MASKED:
            seen = (keys < stop)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= rows[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        # Where every score so far is minus infinity, any finite number will do in its place: the weights are zero.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - shift[:, None])
        fading = tl.exp2(top - shift)
        total = total * fading + tl.sum(weights, 1)
        acc = dot(weights.to(block_v.dtype), block_v, acc * fading[:, None], PRECISION, INTERPRETED)
        top = higher
    return acc, total, top


@triton.jit
def varlen(
    out, q, k, v, tiles,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr,
    OUT_STRIDE: tl.constexpr, Q_STRIDE: tl.constexpr, Q_HEAD: tl.constexpr,
    K_STRIDE: tl.constexpr, K_HEAD: tl.constexpr, V_STRIDE: tl.constexpr, V_HEAD: tl.constexpr,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head; grid (N * HEADS,), the heads of a tile side by side.

    Args:
        out: [T, HEADS, E], contiguous but for its row stride.
        q, k, v: [T, HEADS or HEADS / GROUP, E], any stride of rows (Q_STRIDE, ...) and heads (Q_HEAD, ...).
        tiles: int32 [N, 3] (first query row, first row of its sequence, end row of its sequence). A tile is the BLOCK_M
            rows from its first row on, up to the end. A first row of -1 is a tile to leave out: the grid is fixed, the
            number of tiles is not.
    """
    tile, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    first = tl.load(tiles + 3 * tile)
    if first < 0:
        return
    begin, end = tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
    rows, features = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_E)
    inside = (rows < end)[:, None] & (features < HEAD_SIZE)[None, :]
    at_q = q + head * Q_HEAD + rows.to(tl.int64)[:, None] * Q_STRIDE + features[None, :]
    queries = tl.load(at_q, mask=inside, other=0.0)
    k += (head // GROUP) * K_HEAD
    v += (head // GROUP) * V_HEAD

    if CAUSAL:
        stop, seen_by_all = tl.minimum(end, first + BLOCK_M), first + 1
    else:
        stop, seen_by_all = end, end
    unmasked = begin + (seen_by_all - begin) // BLOCK_N * BLOCK_N
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc, total, top = attend(
        acc, total, top, queries, rows, k, v, begin, unmasked, HEAD_SIZE, K_STRIDE, V_STRIDE, SCALE,
        BLOCK_N, BLOCK_E, False, CAUSAL, PRECISION, INTERPRETED,
    )  # fmt: skip
    acc, total, top = attend(
        acc, total, top, queries, rows, k, v, unmasked, stop, HEAD_SIZE, K_STRIDE, V_STRIDE, SCALE,
        BLOCK_N, BLOCK_E, True, CAUSAL, PRECISION, INTERPRETED,
    )  # fmt: skip
    at_out = out + head * HEAD_SIZE + rows.to(tl.int64)[:, None] * OUT_STRIDE + features[None, :]
    tl.store(at_out, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Plan:
    """How a launch is shaped, for heads of up to `head_size` features.

    One plan serves all lengths: with another split into blocks a row's sums would have another order, and its bits
    would depend on the texts beside it. Blocks are low, because most texts are short.

    Attributes:
        block_m, block_n: queries and keys of a block.
    """

    head_size: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def constexprs(self, head_size: int) -> dict[str, int]:
        block_e = max(16, triton.next_power_of_2(head_size))
        return {"HEAD_SIZE": head_size, "BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_E": block_e}


# By (bytes of an element, precision of fp32 products), smallest heads first. They fit every target: 64 KB of shared
# memory on gfx942, 99 KB on the smaller NVIDIA devices. Products in full fp32 have their operands in registers: larger
# blocks would spill. With 64 queries, sm90 and sm100 would take TF32 products by instructions that want the values
# transposed, which makes every load of them four bytes wide.
PLANS: Mapping[tuple[int, str], tuple[Plan, ...]] = {
    (2, "ieee"): (Plan(64, 64, 64, 4, 3), Plan(128, 64, 32, 4, 3), Plan(256, 64, 32, 8, 2)),
    (4, "ieee"): (Plan(64, 32, 32, 4, 2), Plan(128, 32, 16, 8, 2), Plan(256, 32, 16, 8, 2)),
    (4, "tf32"): (Plan(128, 32, 32, 4, 2), Plan(256, 32, 16, 8, 2)),
}


def plan_for(element_bytes: int, head_size: int, precision: str = "ieee") -> Plan:
    """The plan for heads of `head_size` (1 to 256) features; `precision` matters to fp32 alone."""
    plans = PLANS[element_bytes, precision if element_bytes == 4 else "ieee"]
    return next(plan for plan in plans if head_size <= plan.head_size)


def specimens(target: str) -> Iterator[Specimen]:
    """Every plan in every dtype, with heads that fill their block and heads that do not. One table for all targets."""
    for kind, precision in (("bf16", "ieee"), ("fp16", "ieee"), ("fp32", "ieee"), ("fp32", "tf32")):
        for head_size in (64, 32, 80, 96, 128, 256):
            yield _specimen(kind, precision, head_size, causal=False)
        yield _specimen(kind, precision, 64, causal=True)


def _specimen(kind: str, precision: str, head_size: int, *, causal: bool) -> Specimen:
    plan = plan_for(4 if kind == "fp32" else 2, head_size, precision)
    heads = 12
    return Specimen(
        kernel="attention, causal" if causal else "attention",
        function=varlen,
        types={**dict.fromkeys(("out", "q", "k", "v"), f"*{kind}"), "tiles": "*i32"},
        constexprs={
            **dict.fromkeys(("OUT_STRIDE", "Q_STRIDE", "K_STRIDE", "V_STRIDE"), heads * head_size),
            **dict.fromkeys(("Q_HEAD", "K_HEAD", "V_HEAD"), head_size),
            **plan.constexprs(head_size),
            "HEADS": heads,
            "GROUP": 1,
            "SCALE": head_size**-0.5,
            "CAUSAL": causal,
            "PRECISION": precision,
            "INTERPRETED": False,
        },
        plan=f"{kind}{' tf32' if precision == 'tf32' else ''}, head of {head_size}",
        options={"num_warps": plan.num_warps, "num_stages": plan.num_stages},
    )
