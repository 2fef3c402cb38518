"""The one entry to the ops: checks what every implementation relies on, and chooses the implementation.

The table below says which implementations there are; `implementation=None` takes the first one for the tensor's device
that has the op, and while autograd records the first one that autograd can follow. Knows no model and no config.

Shapes: T packed rows, G segments (or, in the routed op, groups), D hidden size, N requests, R rank, C outputs.
`weights` is a sequence indexed by slot; slot 0 and None are the identity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights, HeadWeights, LoraWeights, RoutedProjection, activation

__all__ = [
    "BottleneckWeights",
    "HeadWeights",
    "LoraWeights",
    "RoutedProjection",
    "activation",
    "bottleneck_",
    "bottleneck_norm",
    "head",
    "implementations",
    "lora_",
    "lora_slices_",
    "routed_low_rank",
]


@dataclass(frozen=True)
class _Implementation:
    """Where an implementation's ops live, which of them it has, and which of those autograd can follow."""

    module: str
    has: frozenset[str]
    differentiable: frozenset[str]


_ON_ROWS = frozenset({"bottleneck_", "bottleneck_norm", "lora_", "lora_slices_", "head"})
_ROUTED = frozenset({"routed_low_rank"})
_OPS = _ON_ROWS | _ROUTED
_IMPLEMENTATIONS = {
    # Imported where it is used: it imports Triton, and on a CPU its kernels run in Triton's interpreter alone.
    "triton": _Implementation("adamix_kernels.gpu.ops", _ON_ROWS | _ROUTED, _ROUTED),
    "cpu": _Implementation("adamix_kernels.cpu", _OPS, _ROUTED | {"head"}),
    "reference": _Implementation("adamix_kernels.reference", _OPS, _OPS),
    # By name alone, for those who need a row's bits to be the same in every batch: the first is slower, the second
    # needs the native kernels and is for short segments.
    "invariant": _Implementation("adamix_kernels.invariant", _ON_ROWS, frozenset()),
    "rows": _Implementation("adamix_kernels.rows", _ON_ROWS, frozenset()),
}
# The plain torch forms of `cpu` run on every device torch has, only with another rule than on a CPU.
_ORDER_ON_DEVICE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cpu", "reference")}
_ORDER_ELSEWHERE = ("reference",)


def implementations(device_type: str = "cpu") -> tuple[str, ...]:
    """Names accepted by `implementation=`, in order of preference on a device of that type."""
    return _ORDER_ON_DEVICE.get(device_type, _ORDER_ELSEWHERE)


def bottleneck_(
    x: Tensor,
    segments: Segments,
    weights: Sequence[BottleneckWeights | None],
    *,
    implementation: str | None = None,
) -> Tensor:
    """Add each row's bottleneck adapter to it: `x += scale * (act(x down^T + down_bias) up + up_bias)`.

    Houlsby et al. 2019 where AdaMix puts it: a linear point, whose wrapped linear gives x. For inference, as `lora_`.

    Args:
        x: [T, D], fp32, fp64, bf16 or fp16; the weights share its dtype and device. Modified: identity rows are left
            as they are, bit for bit, and cost nothing.
        segments: the slot of each of the T rows.

    Returns:
        x.

    Raises:
        ValueError: rows or slots do not fit `segments`, or the implementation does not exist.
    """
    _check_batch(x, segments, weights)
    result: Tensor = _pick("bottleneck_", x, implementation)(x, segments, weights)
    return result


def bottleneck_norm(
    s: Tensor,
    segments: Segments,
    weights: Sequence[BottleneckWeights | None],
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    *,
    implementation: str | None = None,
) -> Tensor:
    """A bottleneck at a norm point: `n = LN(s); y = LN(s + scale * (act(n down^T + down_bias) up + up_bias))`.

    What AdapterHub's `seq_bn` (Pfeiffer et al. 2021) computes after the output block's LayerNorm.

    Args:
        s: [T, D], the input of the LayerNorm that is wrapped (output block plus its residual). Not modified.
        segments: the slot of each of the T rows.
        norm_weight, norm_bias, eps: of that LayerNorm; [D], [D] or None.

    Returns:
        [T, D], a new tensor; identity rows are `LN(s)`.

    Raises:
        ValueError: rows or slots do not fit `segments`, or the implementation does not exist.
    """
    _check_batch(s, segments, weights)
    op = _pick("bottleneck_norm", s, implementation)
    result: Tensor = op(s, segments, weights, norm_weight, norm_bias, eps)
    return result


def lora_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None = None,
    *,
    implementation: str | None = None,
) -> Tensor:
    """Add each row's low-rank update to a linear's output: `y[:, w0:w1] += scale * (x a^T) b` (Hu et al. 2021, eq. 3).

    For inference: y must not be needed by autograd.

    Args:
        y: [T, out], the output of the wrapped linear. Modified: identity rows and columns outside the window are left
            as they are, bit for bit.
        x: [T, in], its input.
        segments: the slot of each of the T rows.
        window: the columns (w0, w1) of y that the update belongs to, for one part of a fused QKV; None is all.

    Returns:
        y.

    Raises:
        ValueError: rows, slots or the window do not fit, or the implementation does not exist.
    """
    _check_lora(y, x, segments, weights, window)
    result: Tensor = _pick("lora_", y, implementation)(y, x, segments, weights, window)
    return result


def lora_slices_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[LoraWeights | None]],
    windows: Sequence[tuple[int, int]],
    *,
    implementation: str | None = None,
) -> Tensor:
    """`lora_` of several slices of one projection, which read the same x: q, k and v, or gate and up.

    Args:
        weights: for each slice, its weights by slot.
        windows: for each slice, its columns of y; they do not overlap.

    Raises:
        ValueError: as `lora_`, or the numbers of slices differ.
    """
    if not weights or len(weights) != len(windows) or len({len(each) for each in weights}) != 1:
        raise ValueError("lora_slices_ needs one window for each slice, and weights for as many slots in each")
    for of_slice, window in zip(weights, windows, strict=True):
        _check_lora(y, x, segments, of_slice, window)
    result: Tensor = _pick("lora_slices_", y, implementation)(y, x, segments, weights, windows)
    return result


def head(
    features: Tensor,
    segments: Segments,
    weights: Sequence[HeadWeights | None],
    *,
    implementation: str | None = None,
) -> list[Tensor]:
    """The task heads of a mixed batch: `act(f dense^T + dense_bias) out^T + out_bias`, each part optional.

    Args:
        features: [N, H], the pooled hidden state of each request.
        segments: the slot of each of the N requests.

    Returns:
        One [n_g, C_g] tensor per segment, in segment order; without an output layer it may share memory with
        `features`.

    Raises:
        ValueError: rows or slots do not fit `segments`, or the implementation does not exist.
    """
    _check_batch(features, segments, weights)
    result: list[Tensor] = _pick("head", features, implementation)(features, segments, weights)
    return result


def routed_low_rank(
    source: Tensor,
    residual: Tensor | None,
    down: RoutedProjection,
    up: RoutedProjection,
    scale: float,
    activation: str,
    *,
    implementation: str | None = None,
) -> Tensor:
    """An adapter whose projections are drawn among experts: `residual[g] + scale * up_g(act(down_g(source[g])))`.

    Bottleneck adapters and LoRA (no biases, identity) in training with stochastic routing (AdaMix, section 3.1); down
    and up are routed independently. Autograd follows every implementation. Experts that no group uses get no gradient
    (None, not zeros).

    Args:
        source: [G, N, in], the rows of G groups; they are brought to the dtype of the weights, or to autocast's.
        residual: [G, N, out], or `source` itself (then its gradient is one sum), or None: the update alone.
        down, up: in -> R and R -> out.
        activation: a name that `activation()` knows.

    Returns:
        [G, N, out] in the dtype of `residual`, or else of `source`.

    Raises:
        ValueError: shapes disagree, or the activation or the implementation does not exist.
    """
    if source.ndim != 3 or source.shape[-1] != down.in_features:
        raise ValueError(f"source has shape {list(source.shape)}; it must be [groups, rows, {down.in_features}]")
    if not len(down.experts) == len(up.experts) == len(source):
        raise ValueError(f"each of the {len(source)} groups needs one down and one up expert")
    if down.out_features != up.in_features:
        raise ValueError(f"down has rank {down.out_features} but up has rank {up.in_features}")
    if residual is not None and residual.shape != (*source.shape[:2], up.out_features):
        raise ValueError(f"residual has shape {list(residual.shape)}; the rows that come out have {up.out_features}")
    op = _pick("routed_low_rank", source, implementation)
    result: Tensor = op(source, residual, down, up, scale, activation)
    return result


def _pick(op: str, tensor: Tensor, implementation: str | None) -> Callable[..., Any]:
    if implementation is None:
        graph = torch.is_grad_enabled()
        implementation = next(
            name
            for name in implementations(tensor.device.type)
            if op in (_IMPLEMENTATIONS[name].differentiable if graph else _IMPLEMENTATIONS[name].has)
        )
    chosen = _IMPLEMENTATIONS.get(implementation)
    if chosen is None or op not in chosen.has:
        existing = ", ".join(name for name, each in _IMPLEMENTATIONS.items() if op in each.has)
        raise ValueError(f"{op} has no implementation {implementation!r}; it has: {existing}")
    return _function(chosen.module, op)


@cache
def _function(module: str, op: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(module), op)
    return function


def _check_batch(rows: Tensor, segments: Segments, weights: Sequence[object]) -> None:
    if rows.ndim != 2 or rows.shape[0] != segments.num_rows:
        raise ValueError(f"a tensor of shape {list(rows.shape)} does not fit segments of {segments.num_rows} rows")
    if segments.max_slot >= max(len(weights), 1):
        raise ValueError(f"segments use slot {segments.max_slot} but there are weights for {len(weights)} slots")


def _check_lora(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None,
) -> None:
    _check_batch(x, segments, weights)
    if y.ndim != 2 or y.shape[0] != x.shape[0]:
        raise ValueError(f"y of shape {list(y.shape)} does not fit x of shape {list(x.shape)}")
    if window is not None and not 0 <= window[0] < window[1] <= y.shape[1]:
        raise ValueError(f"the window {window} does not lie within the {y.shape[1]} columns of y")
