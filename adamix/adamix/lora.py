"""Low-rank adaptation of a linear: mathematics only (Hu et al. 2021, arXiv 2106.09685, section 4.1).

As in `bottleneck.py`, the two factors are any modules that map the last dimension.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Lora(nn.Module):
    """`scale * B(A(dropout(x)))`, `[..., in] -> [..., out]`, with `scale = alpha / rank`."""

    def __init__(self, a: nn.Module, b: nn.Module, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.a = a
        self.b = b
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        delta: Tensor = self.b(self.a(self.dropout(x)))
        return delta if self.scale == 1.0 else delta * self.scale


class LoraAtLinear(nn.Module):
    """`W x + b + L(x)`, computed in fp32 beside the frozen linear.

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
        delta: Tensor = self.adapter(x.float()).to(y.dtype)
        if self.window is not None:
            start, stop = self.window
            delta = F.pad(delta, (start, y.shape[-1] - stop))
        return y + delta
