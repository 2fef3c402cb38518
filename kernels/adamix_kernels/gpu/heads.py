"""The task heads of a mixed batch in one launch, forward only. Knows Triton only.

    out[t] = act(features[t] dense^T + dense_bias) matrix^T + bias        for every row t of a batch

Each row has its own head, and heads differ in everything but H: some have no dense layer, some share one (a frozen
pooler), widths C run from one label to thousands. The work is cut into *items*, up to BLOCK_M rows of one head by up to
BLOCK_C of its columns, one program each, so that a wide head is spread over the device. A program computes its hidden
rows in chunks of BLOCK_N units, which it never stores: a chunk is multiplied into the columns as soon as it is
activated. A head wider than BLOCK_C therefore computes its hidden rows once per block of columns, side by side.

Sums and activations are fp32; the hidden row is rounded once, to the dtype of the weights. A row's result depends on no
other row, and there are no atomics.

Shapes: N rows of features, H their width, C outputs of a head, S heads, I items.

Operands:

    base     [..]         every weight is `base + offset`, offset in elements, 64-bit; matrices begin on 16 bytes.
    records  int64 [S,8]  one record a head. DENSE, DENSE_BIAS, MATRIX and BIAS are offsets, negative for what the head
                          does not have; WIDTH is C, ACTIVATION one of `records.CODES`. Without a dense layer the
                          activation belongs to the result: thus a head is written that ends with its dense layer.
    items    int64 [I,5]  (head, first row, end row, first column, where in `out` column 0 of the first row lies). An
                          item whose head is not in 0..S-1 is one to leave out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import triton
import triton.language as tl

from adamix_kernels.gpu.activations import activate
from adamix_kernels.gpu.low_rank import dot, field, load_rows, load_vector, offset_of, slot_exists
from adamix_kernels.gpu.specimen import Specimen

DENSE, DENSE_BIAS, MATRIX, BIAS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
WIDTH, ACTIVATION = tl.constexpr(4), tl.constexpr(5)
ITEM_FIELDS = tl.constexpr(5)


@triton.jit
def features_times(
    features, rows, row_mask, matrix, units, unit_mask,
    H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """`features[rows] matrix[units]^T`, fp32 [BLOCK_M, BLOCK_U]; both operands are H wide."""
    acc = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
    for k in range(0, H, BLOCK_K):
        cols = k + tl.arange(0, BLOCK_K)
        x = load_rows(features, rows, row_mask, cols, H, H, BLOCK_K)
        w = load_rows(matrix, units, unit_mask, cols, H, H, BLOCK_K)
        acc = dot(x, tl.trans(w), acc, PRECISION, INTERPRETED)
    return acc


@triton.jit(do_not_specialize=["num_heads"])
def heads(
    out, features, base, records, items, num_heads,
    H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The rows and columns of one item, one program an item; grid (I,).

    Args:
        out: [..], every segment's [n, C] at its own place, one after another.
        features: [N, H], rows without gaps.
    """
    item = items + tl.program_id(0).to(tl.int64) * ITEM_FIELDS
    head = tl.load(item)
    if not slot_exists(head, num_heads):
        return
    first_row = tl.load(item + 1)
    rows = first_row + tl.arange(0, BLOCK_M)
    row_mask = rows < tl.load(item + 2)
    columns = tl.load(item + 3) + tl.arange(0, BLOCK_C)
    width = field(records, head, WIDTH)
    column_mask = columns < width
    dense, matrix = offset_of(records, head, DENSE), offset_of(records, head, MATRIX)
    code = field(records, head, ACTIVATION)

    if dense < 0:
        acc = features_times(features, rows, row_mask, base + matrix, columns, column_mask,
                             H, BLOCK_M, BLOCK_C, BLOCK_K, PRECISION, INTERPRETED)  # fmt: skip
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        dense_bias = field(records, head, DENSE_BIAS)
        for n in range(0, H, BLOCK_N):
            units = n + tl.arange(0, BLOCK_N)
            hidden = features_times(features, rows, row_mask, base + dense, units, units < H,
                                    H, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, INTERPRETED)  # fmt: skip
            hidden += load_vector(base, dense_bias, units, H)[None, :]
            w = load_rows(base + matrix, columns, column_mask, units, H, H, BLOCK_N)
            acc = dot(activate(hidden, code).to(w.dtype), tl.trans(w), acc, PRECISION, INTERPRETED)
    acc += load_vector(base, field(records, head, BIAS), columns, width)[None, :]
    if dense < 0:
        acc = activate(acc, code)
    at = out + tl.load(item + 4) + (rows - first_row)[:, None] * width + columns[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :])


@dataclass(frozen=True)
class Plan:
    """The sizes of a program's blocks: rows by columns of an item, units of a hidden chunk, features of a product."""

    name: str
    block_m: int
    block_c: int
    block_n: int
    block_k: int
    num_warps: int

    @property
    def constexprs(self) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_C": self.block_c, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}


# A head has mostly one row, and one program then fetches the whole dense layer: its blocks are as wide as shared memory
# allows, to keep many bytes in flight. Products of fp32 numbers have no matrix units, and wide blocks spill registers.
_HALF = (
    Plan("few rows, narrow", block_m=16, block_c=16, block_n=128, block_k=128, num_warps=8),
    Plan("few rows, wide", block_m=16, block_c=64, block_n=128, block_k=128, num_warps=8),
    Plan("many rows", block_m=64, block_c=64, block_n=64, block_k=64, num_warps=8),
)
_SINGLE = (
    Plan("few rows, narrow", block_m=16, block_c=16, block_n=64, block_k=32, num_warps=4),
    Plan("few rows, wide", block_m=16, block_c=64, block_n=64, block_k=32, num_warps=4),
    Plan("many rows", block_m=64, block_c=64, block_n=64, block_k=32, num_warps=8),
)
PLANS = {2: _HALF, 4: _SINGLE}
_MANY_ROWS = 32


def pick_plan(element_bytes: int, rows_per_segment: float, widest: int) -> Plan:
    """The plan for a batch whose segments have so many rows on average and whose widest head has `widest` columns."""
    narrow, wide, many = PLANS[element_bytes]
    if rows_per_segment >= _MANY_ROWS:
        return many
    return narrow if widest <= narrow.block_c else wide


def num_stages(*, amd: bool) -> int:
    """Blocks of a loop under way at once; the 64 KB of an AMD compute unit hold one stage less."""
    return 2 if amd else 3


def specimens(target: str) -> Iterator[Specimen]:
    """Every plan in every dtype, at the width of a BERT-base."""
    options = {"num_stages": num_stages(amd=target.startswith("gfx"))}
    for kind, element_bytes in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        pointers = dict.fromkeys(("out", "features", "base"), f"*{kind}")
        for plan in PLANS[element_bytes]:
            yield Specimen(
                kernel="heads",
                function=heads,
                types={**pointers, "records": "*i64", "items": "*i64", "num_heads": "i32"},
                constexprs={"H": 768, **plan.constexprs, "PRECISION": "ieee", "INTERPRETED": False},
                plan=f"{plan.name}, {kind}, H=768",
                options={"num_warps": plan.num_warps, **options},
            )
