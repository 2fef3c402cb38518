"""The bottleneck adapter and its two placements: mathematics only.

The projections are any modules that map the last dimension, so one class serves a merged adapter (`nn.Linear`) and
a mixture (`mixture.ExpertLinear`). Nothing here knows layers, backbones or routes.

Shapes: D hidden size, R rank (bottleneck units); `...` any leading dimensions.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from adamix.files.manifest import Activation
from adamix_kernels import dispatch


class Bottleneck(nn.Module):
    """`A(x) = scale * up(act(down(x)))`, `[..., D] -> [..., D]` (Houlsby et al. 2019, section 2.1).

    AdaMix uses the exact (erf) GELU, biases on both projections and scale 1 (its released code). The adapter computes
    in fp32, whatever the backbone's dtype (autocast decides where it is on).
    """

    def __init__(self, down: nn.Module, up: nn.Module, activation: Activation, scale: float) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.activation = activation
        self.scale = scale

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`residual + A(x)`, or `A(x)`, in the dtype of `residual` or else of x."""
        activation = dispatch.activation(self.activation)
        delta: Tensor = self.up(activation(self.down(x.float())))
        if self.scale != 1.0:
            delta = delta * self.scale
        return delta.to(x.dtype) if residual is None else residual + delta.to(residual.dtype)


class BottleneckAtLinear(nn.Module):
    """A linear point: `h = W x + b; h + A(h)`. At `mlp_out` this is AdaMix's placement, before dropout and LayerNorm.

    Args:
        window: (start, stop) output columns that the adapter reads and adds to, where `inner` is a fused projection;
            None: all.
    """

    def __init__(self, inner: nn.Module, adapter: Bottleneck, window: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., D]`."""
        h: Tensor = self.inner(x)
        if self.window is None:
            adapted: Tensor = self.adapter(h, h)
            return adapted
        start, stop = self.window
        return h + F.pad(self.adapter(h[..., start:stop]), (start, h.shape[-1] - stop))


class BottleneckAtNorm(nn.Module):
    """A norm point: `s -> LN(s + A(LN(s)))`, which is AdapterHub's Pfeiffer / `seq_bn`; both LN are the frozen one."""

    def __init__(self, inner: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter

    def forward(self, s: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`; `s` is the sum that enters the LayerNorm."""
        result: Tensor = self.inner(self.adapter(self.inner(s), s))
        return result
