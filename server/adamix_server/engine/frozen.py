"""Lays a frozen backbone's linears out for the CPU, and lets each compute the activation behind it.

The model stays the one of transformers; only leaves of its tree are exchanged for equal ones. The model runner compares
the result with the untouched model when it starts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from adamix.backbones.sites import Family
from adamix.errors import FailedPrecondition, InvalidConfig
from adamix_kernels.frozen_linear import (
    FUSED_ACTIVATIONS,
    Bf16Linear,
    FrozenLinear,
    InvariantLinear,
    in_blocks,
    is_available,
)
from adamix_kernels.invariant import one_thread
from adamix_kernels.weights import activation as function_of
from adamix_server.config import QuantizeName

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


@dataclass(frozen=True)
class FrozenDecoder:
    """What became of a decoder.

    Attributes:
        head: the language-model head, to be used in place of the one that was given. Where that is tied to the
            embedding, a packed one is a second copy of the largest matrix of a small model.
        is_packed: whether products are packed, so that each number of rows costs memory.
    """

    head: nn.Module
    is_packed: bool


def freeze_decoder(
    model: nn.Module, head: nn.Module, family: Family, *, deterministic: bool, quantize: QuantizeName
) -> FrozenDecoder:
    """Exchange, in place, the linears at a decoder's sites, and give its language-model head a packed form.

    A `Conv1D` of transformers (GPT-2) stays as it is.

    Raises:
        FailedPrecondition: `deterministic`, and a part's bits depend on what shares the step.
        InvalidConfig: this CPU has no packed product with bf16 weights.
    """
    if deterministic:
        make_invariant(model, family)
        return FrozenDecoder(_invariant(head), is_packed=True)
    pack = _packing(next(model.parameters()), quantize)
    if pack is None:
        return FrozenDecoder(head, is_packed=False)
    for layer in model.get_submodule(family.layers).children():
        for path in family.sites.values():
            if isinstance(linear := layer.get_submodule(path.module), nn.Linear):
                layer.set_submodule(path.module, pack(linear))
    return FrozenDecoder(pack(head) if isinstance(head, nn.Linear) else head, is_packed=True)


def _packing(weight: torch.Tensor, quantize: QuantizeName) -> Callable[[nn.Linear], FrozenLinear] | None:
    """What packs the linears of a body with weights like this one, if anything does."""
    if quantize == "none":
        return FrozenLinear if weight.device.type == "cpu" and is_available(weight.dtype) else None
    if weight.dtype == torch.bfloat16:
        return _packing(weight, "none")
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not is_available(torch.bfloat16):
        raise InvalidConfig(
            "weights in bf16 beside values in fp32 are to be had on CPUs that multiply bf16; leave out --quantize, or "
            "use --dtype bfloat16",
            field="quantize",
        )
    return Bf16Linear


def make_invariant(model: nn.Module, family: Family) -> None:
    """Exchange, in place, what gives a row other bits in other company: all linears of a body and its activations.

    Raises:
        FailedPrecondition: a linear is not fp32 on a CPU whose torch has the packed product.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(path, _invariant(module))
    if family.mlp_activation is not None:
        for layer in model.get_submodule(family.layers).children():
            layer.set_submodule(family.mlp_activation, _InBlocks(layer.get_submodule(family.mlp_activation)))


def _invariant(module: nn.Module) -> InvariantLinear:
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
