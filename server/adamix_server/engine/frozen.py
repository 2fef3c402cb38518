"""Lays a frozen backbone's linears out for the CPU, and lets each compute the activation behind it.

The model stays the one of transformers; only leaves of its tree are exchanged for equal ones. The model runner compares
the result with the untouched model when it starts.
"""

import torch
from torch import nn

from adamix.backbones.sites import Family
from adamix.errors import FailedPrecondition
from adamix_kernels.frozen_linear import (
    FUSED_ACTIVATIONS,
    FrozenLinear,
    InvariantLinear,
    in_blocks,
    is_available,
)
from adamix_kernels.invariant import one_thread
from adamix_kernels.weights import activation as function_of

# Two activations are one if they agree here: the two forms of GELU differ by 5e-4.
_PROBE = torch.linspace(-6, 6, 121)
_SAME = 1e-6


def freeze_linears(model: nn.Module, family: Family) -> bool:
    """Exchange the linears at a body's sites, in place; whether there were any that could be."""
    frozen = False
    for layer in model.get_submodule(family.layers).children():
        for site, path in family.sites.items():
            linear = layer.get_submodule(path.module)
            if not isinstance(linear, nn.Linear) or not _can_freeze(linear):
                continue
            fused = None
            if site == "mlp_in" and family.mlp_activation is not None:
                fused = _name_of(layer.get_submodule(family.mlp_activation))
                if fused is not None:
                    layer.set_submodule(family.mlp_activation, nn.Identity())
            layer.set_submodule(path.module, FrozenLinear(linear, fused))
            frozen = True
    return frozen


def make_invariant(model: nn.Module, family: Family) -> None:
    """Exchange, in place, what gives a row other bits in other company: all linears of a body and its activations.

    Raises:
        FailedPrecondition: a linear is not fp32 on a CPU whose torch has the packed product.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(path, invariant(module))
    if family.mlp_activation is not None:
        for layer in model.get_submodule(family.layers).children():
            layer.set_submodule(family.mlp_activation, _InBlocks(layer.get_submodule(family.mlp_activation)))


def invariant(module: nn.Module) -> InvariantLinear:
    if not isinstance(module, nn.Linear) or module.weight.dtype != torch.float32 or not _can_freeze(module):
        raise FailedPrecondition("equal bits in every company are to be had in fp32 on CPUs with oneDNN alone")
    return InvariantLinear(module)


class _InBlocks(nn.Module):
    """An elementwise module on blocks of rows, one thread each: where a vectorised loop ends is the same for all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with one_thread():
            return in_blocks(self.inner, x)


def _can_freeze(linear: nn.Linear) -> bool:
    return linear.weight.device.type == "cpu" and is_available(linear.weight.dtype)


def _name_of(module: nn.Module) -> str | None:
    """Which fused activation a module computes, by what it does; None if none."""
    for name in sorted(FUSED_ACTIVATIONS):
        if torch.allclose(module(_PROBE), function_of(name)(_PROBE), rtol=0, atol=_SAME):
            return name
    return None
