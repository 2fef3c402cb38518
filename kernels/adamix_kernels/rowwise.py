"""What stands between the products of a decoder's layer, row by row, each in two forms: torch's own, and C on CPUs.

In C a row's result depends on nothing but the row. For inference. Knows no model.

Shapes: `[..., D]`, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_kernels import native


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019). `weight` is [D]."""
    library = native.load()
    if library is None or not (_is_native(x) and _is_native(weight)) or weight.shape != x.shape[-1:]:
        return F.rms_norm(x, weight.shape, weight, eps)
    return library.rms_norm(_rows(x), weight.contiguous(), eps).view(x.shape)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, what a gated feed-forward puts between its products (Shazeer 2020); of equal shapes."""
    library = native.load()
    if library is None or not (_is_native(gate) and _is_native(up)) or gate.shape != up.shape:
        return F.silu(gate) * up
    return library.silu_mul(_rows(gate), _rows(up)).view(gate.shape)


def _is_native(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_cpu and x.numel() > 0


def _rows(x: Tensor) -> Tensor:
    """[T, D] with the features of a row together."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
