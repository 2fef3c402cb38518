"""The bottleneck adapter and its two placements: mathematics only.

The projections are any modules that map the last dimension, so one class serves a merged adapter (`nn.Linear`) and
a mixture (`mixture.ExpertLinear`). Nothing here knows layers, backbones or routes.

Shapes: D hidden size, R rank (bottleneck units); `...` any leading dimensions.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from adamix.manifest import Activation
from adamix_kernels import dispatch


class Bottleneck(nn.Module):
    """`scale * up(act(down(x)))`, `[..., D] -> [..., D]` (Houlsby et al. 2019, eq. of section 2.1, without residual).

    AdaMix uses the exact (erf) GELU, biases on both projections and scale 1 (its released code).
    """

    def __init__(self, down: nn.Module, up: nn.Module, activation: Activation, scale: float) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.activation = dispatch.activation(activation)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        delta: Tensor = self.up(self.activation(self.down(x)))
        return delta if self.scale == 1.0 else delta * self.scale


class BottleneckAtLinear(nn.Module):
    """A linear point: `h = W x + b; h + A(h)`. At `mlp_out` this is AdaMix's placement, before dropout and LayerNorm.

    The adapter computes in fp32, whatever the backbone's dtype (autocast decides where it is on).

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
        start, stop = self.window or (0, h.shape[-1])
        delta: Tensor = self.adapter(h[..., start:stop].float()).to(h.dtype)
        if self.window is not None:
            delta = F.pad(delta, (start, h.shape[-1] - stop))
        return h + delta


class BottleneckAtNorm(nn.Module):
    """A norm point: `s -> LN(s + A(LN(s)))`, which is AdapterHub's Pfeiffer / `seq_bn`; both LN are the frozen one."""

    def __init__(self, inner: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter

    def forward(self, s: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`; `s` is the sum that enters the LayerNorm."""
        delta: Tensor = self.adapter(self.inner(s).float())
        result: Tensor = self.inner(s + delta.to(s.dtype))
        return result
