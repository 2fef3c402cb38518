"""The ops on rows in C, for CPUs: every row by itself, with whatever adapter its slot has.

Where segments are short, as those of texts that are being generated are, the forms of `cpu` pay for each segment. Here
a batch is one call whatever the number of adapters, which reads the weights where their records (`gpu.records`) say
they lie. No row's bits depend on its company, on its place, or on the number of threads. fp32, for inference; segments
with the up projection of another slot are not computed. Knows no model.

`SlotTable`s have their records at hand. For other sequences they are made in every call, which costs more than the op.

Milliseconds that 64 rows, each with a bottleneck of its own of rank 16, cost at 576 features on two threads of a Zen 4
CPU: 0.4 in place of 2.0. The loop of `cpu` catches up at some hundred rows of one adapter.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_kernels import invariant, native
from adamix_kernels.gpu.records import Records, SlotTable, records_of
from adamix_kernels.segments import Segments, TileMap
from adamix_kernels.weights import BottleneckWeights, HeadWeights, LoraWeights

Adapters = Sequence[BottleneckWeights | None] | Sequence[LoraWeights | None]

# Segments of fewer rows are short.
SHORT_ROWS = 8


def is_available(dtype: torch.dtype) -> bool:
    """Whether these ops can be had for tensors of this dtype on a CPU."""
    return dtype == torch.float32 and native.load() is not None


def host_base(dtype: torch.dtype) -> Tensor:
    """A base for records of weights anywhere in host memory: it begins at address 0, and offsets are addresses."""
    return torch.empty(0, dtype=dtype)


def bottleneck_(x: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]) -> Tensor:
    """See `reference.bottleneck_`. Raises ValueError where this form cannot compute it."""
    _adapt(x, x, x, segments, weights)
    return x


def bottleneck_norm(
    s: Tensor,
    segments: Segments,
    weights: Sequence[BottleneckWeights | None],
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """See `reference.bottleneck_norm`; norms are by row. Raises ValueError as `bottleneck_`."""
    shape = norm_weight.shape
    normed = F.layer_norm(s, shape, norm_weight, norm_bias, eps)
    out = torch.empty_like(normed)
    _adapt(out, s if s.stride(1) == 1 else s.contiguous(), normed, segments, weights)
    return F.layer_norm(out, shape, norm_weight, norm_bias, eps)


def lora_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None = None,
) -> Tensor:
    """See `reference.lora_`. Raises ValueError as `bottleneck_`."""
    out = y if window is None else y[:, slice(*window)]
    _adapt(out, out, x, segments, weights)
    return y


def lora_slices_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[LoraWeights | None]],
    windows: Sequence[tuple[int, int]],
) -> Tensor:
    """See `reference.lora_slices_`. Raises ValueError as `bottleneck_`."""
    for of_slice, window in zip(weights, windows, strict=True):
        lora_(y, x, segments, of_slice, window)
    return y


def head(features: Tensor, segments: Segments, weights: Sequence[HeadWeights | None]) -> list[Tensor]:
    """See `reference.head`: every row alone. Heads are small beside the texts they are read from."""
    slots = np.repeat(segments.slots, segments.lengths)
    each = Segments(slots, np.arange(len(slots) + 1))
    outputs = invariant.head(features, each, weights)
    return [torch.cat(outputs[start:end]) for _, start, end in segments]


def adapt_short(
    out: Tensor, residual: Tensor, source: Tensor, segments: Segments, weights: Adapters
) -> list[int] | None:
    """`out = residual + A(source)` on the rows of the short segments, if their records are at hand.

    Returns:
        The other segments, by position; None, and nothing was done, if this form cannot compute any.
    """
    if not isinstance(weights, SlotTable) or _why_not(out, residual, source, segments, weights.records):
        return None
    blocks, long = _cut(segments)
    if len(blocks) and not _run(out, residual, source, blocks, weights.records):
        return None
    return long


def _adapt(out: Tensor, residual: Tensor, source: Tensor, segments: Segments, weights: Adapters) -> None:
    if source.stride(1) != 1:
        source = source.contiguous()
    records = records_of(weights)
    if records is None or records.features is None:
        if out is not residual:
            out.copy_(residual)
        return
    if reason := _why_not(out, residual, source, segments, records):
        raise ValueError(f"rows cannot be adapted one by one: {reason}")
    if not _run(out, residual, source, _blocks(segments), records):
        raise ValueError(f"rows cannot be adapted one by one: a rank is larger than {native.LARGEST_RANK}")


def _why_not(out: Tensor, residual: Tensor, source: Tensor, segments: Segments, records: Records) -> str | None:
    """What keeps this form from a batch, or None."""
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (out, source, records.base)):
        return "it takes fp32 on a CPU"
    if records.features != (source.shape[1], out.shape[1]):
        return f"the adapters' features (in, out) are {records.features}, not {(source.shape[1], out.shape[1])}"
    if any(t.stride(1) != 1 for t in (out, residual, source)) or not records.table.is_contiguous():
        return "the features of a row do not lie together"
    if segments.has_own_up_slots:
        return "a segment has the up projection of another slot"
    return None if native.load() is not None else "the native kernels were not built, or are turned off"


def _run(out: Tensor, residual: Tensor, source: Tensor, blocks: TileMap, records: Records) -> bool:
    library = native.load()
    return library is not None and library.adapt(
        out,
        residual,
        source,
        slot=blocks.slot,
        first=blocks.first_row,
        end=blocks.end_row,
        table=records.table,
        base=records.base,
    )


# Every layer asks for the same blocks.
_blocks_of: WeakKeyDictionary[Segments, TileMap] = WeakKeyDictionary()
_cuts_of: WeakKeyDictionary[Segments, tuple[TileMap, list[int]]] = WeakKeyDictionary()


def _blocks(segments: Segments) -> TileMap:
    """All rows in blocks of one slot."""
    found = _blocks_of.get(segments)
    if found is None:
        found = _blocks_of[segments] = segments.tile_map(native.MOST_ROWS)
    return found


def _cut(segments: Segments) -> tuple[TileMap, list[int]]:
    """The blocks of the short segments, and which are not short."""
    found = _cuts_of.get(segments)
    if found is None:
        blocks = _blocks(segments)
        segment = np.searchsorted(segments.indptr, blocks.first_row, side="right") - 1
        short = segments.lengths < SHORT_ROWS
        kept = short[segment]
        of_short = TileMap(
            blocks.slot[kept], blocks.up_slot[kept], blocks.first_row[kept], blocks.end_row[kept], blocks.block_rows
        )
        found = _cuts_of[segments] = of_short, np.flatnonzero(~short).tolist()
    return found
