"""Low-rank adaptation of a linear: mathematics only (Hu et al. 2021, arXiv 2106.09685, section 4.1).

As in `bottleneck.py`, the two factors are any modules that map the last dimension.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Lora(nn.Module):
    """`L(x) = scale * B(A(dropout(x)))`, `[..., in] -> [..., out]`, with `scale = alpha / rank`, computed in fp32."""

    def __init__(self, a: nn.Module, b: nn.Module, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.a = a
        self.b = b
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`residual + L(x)`, or `L(x)`, in the dtype of `residual` or else of x."""
        delta: Tensor = self.b(self.a(self.dropout(x.float())))
        if self.scale != 1.0:
            delta = delta * self.scale
        return delta.to(x.dtype) if residual is None else residual + delta.to(residual.dtype)


class LoraAtLinear(nn.Module):
    """`W x + b + L(x)`: the update of a frozen linear beside it.

    Args:
        window: (start, stop) output columns that the LoRA adds to, where `inner` is a fused projection; None: all.
    """

    def __init__(self, inner: nn.Module, adapter: Lora, window: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        y: Tensor = self.inner(x)
        if self.window is None:
            adapted: Tensor = self.adapter(x, y)
            return adapted
        start, stop = self.window
        return y + F.pad(self.adapter(x).to(y.dtype), (start, y.shape[-1] - stop))
