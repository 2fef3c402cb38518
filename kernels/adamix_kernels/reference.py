"""Every op in plain torch, one segment after another: the definition the faster forms are held to.

Autograd follows everything here. Each op works on any device and floating dtype, in the dtype of its inputs.

Shapes: T packed rows, G segments, D hidden size, N requests (one row of features each). `weights` is a sequence
indexed by slot; slot 0 and None are the identity.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights, HeadWeights, LoraWeights, LowRank, RoutedProjection, activation


def bottleneck_(x: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]) -> Tensor:
    """`x += A(x)` per row, in place on x [T, D]; identity rows stay bit for bit."""
    # Autograd keeps the rows that went in, so those must not be overwritten.
    rows = x.clone()
    return x.copy_(_add_bottleneck(rows, rows, segments, weights))


def bottleneck_norm(
    s: Tensor,
    segments: Segments,
    weights: Sequence[BottleneckWeights | None],
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """`y = LN(s + A(LN(s)))` per row, [T, D] -> [T, D]; identity rows are `LN(s)`."""
    shape = norm_weight.shape
    normed = F.layer_norm(s, shape, norm_weight, norm_bias, eps)
    return F.layer_norm(_add_bottleneck(s, normed, segments, weights), shape, norm_weight, norm_bias, eps)


def lora_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None = None,
) -> Tensor:
    """`y += scale * (x a^T) b` on the columns `window` of y [T, out], in place, from x [T, in]."""
    columns = slice(None) if window is None else slice(*window)
    for (_, start, end), adapter in zip(segments, adapters_of(segments, weights), strict=True):
        if adapter is not None:
            y[start:end, columns] += adapter.scale * (x[start:end] @ adapter.down.T @ adapter.up)
    return y


def lora_slices_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[LoraWeights | None]],
    windows: Sequence[tuple[int, int]],
) -> Tensor:
    """`lora_` of several slices of one projection (q, k and v; gate and up), which read the same x."""
    for of_slice, window in zip(weights, windows, strict=True):
        lora_(y, x, segments, of_slice, window)
    return y


def head(features: Tensor, segments: Segments, weights: Sequence[HeadWeights | None]) -> list[Tensor]:
    """The outputs of every segment, [n_g, C_g] each, from pooled features [N, H]."""
    return [_head_of(features[start:end], weights[slot] if slot else None) for slot, start, end in segments]


def routed_linear(
    x: Tensor, experts: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> Tensor:
    """`y[g] = x[g] W[experts[g]]^T + b[experts[g]]`, [G, N, in] -> [G, N, out] (AdaMix, stochastic routing)."""
    outputs = [
        F.linear(rows, weights[expert], None if biases is None else biases[expert])
        for rows, expert in zip(x, experts, strict=True)
    ]
    return torch.stack(outputs) if outputs else x.new_empty(0, x.shape[1], weights[0].shape[0])


def routed_low_rank(
    source: Tensor,
    residual: Tensor | None,
    down: RoutedProjection,
    up: RoutedProjection,
    scale: float,
    activation_name: str,
    linear: Callable[..., Tensor] = routed_linear,
) -> Tensor:
    """`residual + scale * up(act(down(source)))` with the experts of each group, [G, N, in] -> [G, N, out].

    The adapter computes in the dtype of its weights (autocast decides where it is on); `linear` is a `routed_linear`.
    """
    rows = source.to(down.weights[0].dtype)
    hidden = activation(activation_name)(linear(rows, down.experts, down.weights, down.biases))
    delta = linear(hidden, up.experts, up.weights, up.biases)
    if scale != 1.0:
        delta = delta * scale
    return delta.to(source.dtype) if residual is None else residual + delta.to(residual.dtype)


def adapters_of(
    segments: Segments, weights: Sequence[BottleneckWeights | None] | Sequence[LoraWeights | None]
) -> list[LowRank | None]:
    """What each segment adds: None for the identity; down and up of two slots where the segment names two."""
    downs = (weights[slot] if slot else None for slot in segments.slots.tolist())
    found = [None if adapter is None else adapter.low_rank for adapter in downs]
    if not segments.has_own_up_slots:
        return found
    for position, (slot, up_slot) in enumerate(segments.pairs):
        down, up = found[position], weights[up_slot] if up_slot else None
        if (down is None) != (up is None):
            raise ValueError(f"a segment pairs slot {slot} with {up_slot}, and only one of them has weights")
        found[position] = None if down is None or up is None else down.with_up_of(up.low_rank)
    return found


def _add_bottleneck(
    residual: Tensor, source: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]
) -> Tensor:
    """`residual + A(source)` per row."""
    parts = []
    for (_, start, end), adapter in zip(segments, adapters_of(segments, weights), strict=True):
        rows = residual[start:end]
        if adapter is not None:
            hidden = activation(adapter.activation)(F.linear(source[start:end], adapter.down, adapter.down_bias))
            rows = rows + adapter.scale * F.linear(hidden, adapter.up.T, adapter.up_bias)
        parts.append(rows)
    return torch.cat(parts) if parts else residual.clone()


def _head_of(features: Tensor, weights: HeadWeights | None) -> Tensor:
    if weights is None:
        return features
    if weights.dense is not None:
        features = F.linear(features, weights.dense, weights.dense_bias)
        if weights.activation is not None:
            features = activation(weights.activation)(features)
    return features if weights.out is None else F.linear(features, weights.out, weights.out_bias)
