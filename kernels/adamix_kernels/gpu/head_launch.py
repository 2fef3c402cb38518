"""Task heads on a device: describes a batch's heads to the kernel of `heads.py` and launches it once.

What the kernel reads beside features and weights is one table of 64-bit numbers, built on the host and brought to the
device in one copy; nothing waits for the device. What the kernel does not take (fp64, H not a multiple of 8, weights
that do not begin on 16 bytes) goes to the plain form of `cpu`, which runs on every device. Forward only.

Shapes: N rows of features, H their width, G segments, C outputs of a head, S distinct heads of a batch, I items.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamix_kernels import cpu
from adamix_kernels.gpu import heads as kernels
from adamix_kernels.gpu.launch import INTERPRETED, on_device_of
from adamix_kernels.gpu.records import ABSENT, ALIGNMENT_BYTES, CODES, FIELDS, offset
from adamix_kernels.segments import Segments
from adamix_kernels.weights import HeadWeights

_STAGES = kernels.num_stages(amd=torch.version.hip is not None)
_NUM_OFFSETS = 4
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def head(features: Tensor, segments: Segments, weights: Sequence[HeadWeights | None]) -> list[Tensor]:
    """See `reference.head`. The results of one batch are views of one tensor; those of embedding heads, of `features`.

    Weights are read where they lay when their head was first used: the tensors of a HeadWeights must not be moved.

    Raises:
        ValueError: a head's weights are not for features of this width, dtype and device, or the device is a CPU and
            Triton's interpreter is not in use.
    """
    if features.device.type == "cpu" and not INTERPRETED:
        raise ValueError("Triton kernels need a CUDA device; on a CPU its interpreter runs them (TRITON_INTERPRET=1)")
    heads = [_with_layer(weights[slot]) if slot else None for slot in segments.slots.tolist()]
    if not any(heads):
        return [features[start:end] for _, start, end in segments]
    batch = _batch(features, segments, heads)
    if batch is None:
        return cpu.head(features, segments, weights)
    flat = _heads(features, batch.base, batch.table, batch.num_heads, batch.num_outputs, batch.plan)
    return [
        features[start:end] if each is None else piece.view(end - start, len(piece) // (end - start))
        for (_, start, end), each, piece in zip(segments, heads, flat.split_with_sizes(batch.sizes), strict=True)
    ]


def _with_layer(head: HeadWeights | None) -> HeadWeights | None:
    """The head, unless features pass through it."""
    return None if head is None or (head.dense is None and head.out is None) else head


@torch.library.custom_op("adamix::heads", mutates_args=())
def _heads(features: Tensor, base: Tensor, table: Tensor, num_heads: int, num_outputs: int, plan: str) -> Tensor:
    """The outputs of all items, [num_outputs].

    Args:
        features: [N, H].
        base: where the offsets in the records count from, and the rest of its storage. What lies beyond is found by its
            distance, so a copy of `base` will not do where weights have more than one storage.
        table: int64 [S * 8 + I * 5], the records and then the items.
        plan: the name of a plan for this dtype.
    """
    features = features.contiguous()
    out = features.new_empty(num_outputs)
    chosen = next(each for each in kernels.PLANS[features.element_size()] if each.name == plan)
    records, items = table[: num_heads * FIELDS], table[num_heads * FIELDS :]
    with on_device_of(features):
        kernels.heads[(len(items) // kernels.ITEM_FIELDS.value,)](
            out,
            features,
            base,
            records,
            items,
            num_heads,
            H=features.shape[1],
            **chosen.constexprs,
            PRECISION="ieee",
            INTERPRETED=INTERPRETED,
            num_warps=chosen.num_warps,
            num_stages=_STAGES,
        )
    return out


@_heads.register_fake
def _(features: Tensor, base: Tensor, table: Tensor, num_heads: int, num_outputs: int, plan: str) -> Tensor:
    return features.new_empty(num_outputs)


@dataclass(frozen=True)
class _Operands:
    """What features and weights have to agree on."""

    num_features: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{self.num_features} features in {self.dtype} on {self.device}"


@dataclass(frozen=True, eq=False)
class _Record:
    """A head as the kernel takes it, with offsets that count from the first of its own tensors in memory.

    Attributes:
        numbers: the 8 of the record, `ABSENT` for what the head does not have.
        origin: that first tensor.
        address: of `origin`, in bytes.
        width: C.
    """

    operands: _Operands
    numbers: tuple[int, ...]
    origin: Tensor
    address: int
    width: int


@dataclass(frozen=True, eq=False)
class _Batch:
    """What one launch needs beside the features.

    Attributes:
        heads: the head of each segment; None where the features pass through.
        base, table, num_heads, num_outputs, plan: as `_heads` takes them.
        sizes: the elements of each segment's outputs.
    """

    operands: _Operands
    heads: list[HeadWeights | None]
    base: Tensor
    table: Tensor
    num_heads: int
    num_outputs: int
    plan: str
    sizes: list[int]


# A head is described when it is first used, a batch when its first features come.
_records: WeakKeyDictionary[HeadWeights, _Record | None] = WeakKeyDictionary()
_batches: WeakKeyDictionary[Segments, _Batch] = WeakKeyDictionary()


def _batch(features: Tensor, segments: Segments, heads: list[HeadWeights | None]) -> _Batch | None:
    """What to launch; kept for as long as the segments live, unless their heads or the features change.

    None if the kernel does not take this batch.
    """
    operands = _Operands(features.shape[1], features.dtype, features.device)
    known = _batches.get(segments)
    if known is not None and known.operands == operands and all(map(operator.is_, known.heads, heads)):
        return known
    place: dict[HeadWeights, int] = {}
    for each in heads:
        if each is not None:
            place.setdefault(each, len(place))
    described = [_record(each) for each in place]
    records = [record for record in described if record is not None]
    if len(records) < len(described) or features.dtype not in _DTYPES or features.shape[1] % 8:
        return None
    for record in records:
        if record.operands != operands:
            raise ValueError(f"a head takes {record.operands}; these are {operands}")
    head_of_segment = np.array([-1 if each is None else place[each] for each in heads])
    widths = np.array([0 if each is None else records[place[each]].width for each in heads])
    sizes = segments.lengths * widths
    rows_per_segment = float(segments.lengths[head_of_segment >= 0].mean())
    plan = kernels.pick_plan(features.element_size(), rows_per_segment, int(widths.max()))
    items = _items(segments, head_of_segment, widths, sizes, plan)
    base = min(records, key=lambda record: record.address)
    batch = _batches[segments] = _Batch(
        operands=operands,
        heads=heads,
        base=_what_follows(base.origin),
        table=_to_device(np.concatenate([_rebased(records, base).ravel(), items.ravel()]), features.device),
        num_heads=len(records),
        num_outputs=int(sizes.sum()),
        plan=plan.name,
        sizes=sizes.tolist(),
    )
    return batch


def _items(
    segments: Segments,
    head_of_segment: NDArray[np.int64],
    widths: NDArray[np.int64],
    sizes: NDArray[np.int64],
    plan: kernels.Plan,
) -> NDArray[np.int64]:
    """int64 [I, 5]: every block of rows of a segment that has a head, with every block of its columns."""
    tiles = segments.tile_map(plan.block_m)
    segment = np.searchsorted(segments.indptr, tiles.first_row, side="right") - 1
    blocks = -(-widths[segment] // plan.block_c)
    tile = np.repeat(np.arange(len(tiles)), blocks)
    segment, first_row = segment[tile], tiles.first_row[tile].astype(np.int64)
    block = np.arange(len(tile)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    begin_of_segment = np.cumsum(sizes) - sizes
    begin = begin_of_segment[segment] + (first_row - segments.indptr[segment]) * widths[segment]
    return np.stack([head_of_segment[segment], first_row, tiles.end_row[tile], block * plan.block_c, begin], axis=1)


def _what_follows(tensor: Tensor) -> Tensor:
    """[..], all of a tensor's storage from its first element on: the rest of the arena, where there is one."""
    start = tensor.storage_offset()
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size() - start,), (1,), start)


def _rebased(records: list[_Record], base: _Record) -> NDArray[np.int64]:
    """int64 [S, 8]: the records with offsets that count from the first tensor of `base`, the lowest in memory."""
    table = np.array([record.numbers for record in records])
    shifts = np.array([record.address - base.address for record in records]) // base.origin.element_size()
    offsets = table[:, :_NUM_OFFSETS]
    offsets += np.where(offsets == ABSENT, 0, shifts[:, None])
    return table


def _record(head: HeadWeights) -> _Record | None:
    if head not in _records:
        _records[head] = _describe(head)
    return _records[head]


def _describe(head: HeadWeights) -> _Record | None:
    """The record of a head by itself; None if the kernel cannot read it."""
    dense, dense_bias, matrix, bias = head.dense, head.dense_bias, head.out, head.out_bias
    code = CODES[head.activation or "identity"] if dense is not None else CODES["identity"]
    if matrix is None:
        # It ends with its dense layer: that is then its output layer, whose results are activated.
        dense, dense_bias, matrix, bias = None, None, dense, dense_bias
    tensors = [each for each in (dense, dense_bias, matrix, bias) if each is not None]
    lie_well = all(each.is_contiguous() and each.data_ptr() % ALIGNMENT_BYTES == 0 for each in tensors)
    if matrix is None or not lie_well or (dense is not None and dense.shape[0] != dense.shape[1]):
        return None
    origin = min(tensors, key=Tensor.data_ptr)
    places = [ABSENT if each is None else offset(each, origin) for each in (dense, dense_bias, matrix, bias)]
    numbers = (*places, len(matrix), code, 0, 0)
    operands = _Operands(matrix.shape[1], matrix.dtype, matrix.device)
    return _Record(operands, numbers, origin, origin.data_ptr(), width=len(matrix))


def _to_device(table: NDArray[np.int64], device: torch.device) -> Tensor:
    """One copy that the host does not wait for: from page-locked memory, which the allocator keeps until it is done."""
    host = torch.from_numpy(table)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
