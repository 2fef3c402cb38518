"""The ops on rows in the one form in which no segment's bits depend on any other segment.

Each segment is computed by itself: fresh tensors of its own rows, so that shapes and alignments are its own, on one
thread, so that no vectorised loop is cut where others' rows end. Whoever gives each sequence a segment of its own gets
the same bits for it in every batch; `cpu` is faster and chooses its form by what shares the batch. For CPUs and for
inference. Knows no model.

What is written into rows of the batch is one addition per value, which has one result however it is vectorised.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_kernels import reference
from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights, HeadWeights, LoraWeights, LowRank, activation


def bottleneck_(x: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]) -> Tensor:
    """See `reference.bottleneck_`."""
    return _add(x, x, segments, reference.adapters_of(segments, weights))


def bottleneck_norm(
    s: Tensor,
    segments: Segments,
    weights: Sequence[BottleneckWeights | None],
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """See `reference.bottleneck_norm`. Rows without an adapter are normed once, as everywhere; norms are by row."""
    shape = norm_weight.shape
    normed = F.layer_norm(s, shape, norm_weight, norm_bias, eps)
    for (_, start, end), adapter in zip(segments, reference.adapters_of(segments, weights), strict=True):
        if adapter is not None:
            with one_thread():
                total = s[start:end] + _update(normed[start:end], adapter)
                normed[start:end] = F.layer_norm(total, shape, norm_weight, norm_bias, eps)
    return normed


def lora_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None = None,
) -> Tensor:
    """See `reference.lora_`."""
    _add(y if window is None else y[:, slice(*window)], x, segments, reference.adapters_of(segments, weights))
    return y


def lora_slices_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[LoraWeights | None]],
    windows: Sequence[tuple[int, int]],
) -> Tensor:
    """See `reference.lora_slices_`."""
    for of_slice, window in zip(weights, windows, strict=True):
        lora_(y, x, segments, of_slice, window)
    return y


def head(features: Tensor, segments: Segments, weights: Sequence[HeadWeights | None]) -> list[Tensor]:
    """See `reference.head`."""
    outputs = []
    with one_thread():
        for slot, start, end in segments:
            alone = Segments.from_lengths([slot], [end - start])
            outputs += reference.head(features[start:end].clone(), alone, weights)
    return outputs


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to the calling thread (costs 0.2 us; the pool of threads survives)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _add(out: Tensor, source: Tensor, segments: Segments, adapters: Sequence[LowRank | None]) -> Tensor:
    """`out += A(source)` per row; `out` may be `source`."""
    with one_thread():
        for (_, start, end), adapter in zip(segments, adapters, strict=True):
            if adapter is not None:
                out[start:end].add_(_update(source[start:end], adapter))
    return out


def _update(rows: Tensor, adapter: LowRank) -> Tensor:
    """`scale * (act(rows down^T + down_bias) up + up_bias)`, a new tensor."""
    rows = rows.clone(memory_format=torch.contiguous_format)
    hidden = _product(rows, adapter.down_t, adapter.down_bias)
    delta = _product(activation(adapter.activation)(hidden), adapter.up, adapter.up_bias)
    return delta.mul_(adapter.scale)


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix)
