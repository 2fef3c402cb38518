"""Exchanges the parts of a frozen decoder for equal ones that are fast on CPUs, and whose rows keep to themselves.

The model stays the one of transformers; only leaves of its tree are exchanged: linears for packed ones, RMS norms and
the products of gated feed-forwards for one pass in C, and rotary angles for a table of them. What computes something
else than the part it would replace stays out. The runner compares the result with the untouched model when it starts:
this is where whole layers of other code would be put in, too, held to the same comparison.

With all of this a row has the same bits whatever shares its step: a packed product, the kernels in C and the table give
them by row. What torch computes over all rows at once does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adamix.backbones.sites import Family
from adamix.errors import FailedPrecondition, InvalidConfig
from adamix_kernels import native
from adamix_kernels.frozen_linear import Bf16Linear, FrozenLinear, is_available
from adamix_kernels.rowwise import rms_norm, silu_mul
from adamix_server.config import QuantizeName
from adamix_server.engine.frozen import invariant

# Two parts are one if they agree so far, relative to their largest value, on a few random rows.
_SAME = 1e-5
_PROBE_ROWS = 3
# Positions that are added to a table of angles at a time.
_BLOCK_POSITIONS = 512


@dataclass(frozen=True)
class FrozenDecoder:
    """What became of a decoder.

    Attributes:
        head: the language-model head, to be used in place of the one that was given. Where that is tied to the
            embedding, a packed one is a second copy of it.
        is_packed: whether products are packed, so that each number of rows costs memory.
    """

    head: nn.Module
    is_packed: bool


def freeze_decoder(
    model: nn.Module, head: nn.Module, family: Family, *, deterministic: bool, quantize: QuantizeName
) -> FrozenDecoder:
    """Exchange parts of a decoder's body in place, and give its language-model head a packed form.

    A `Conv1D` of transformers (GPT-2) stays as it is.

    Args:
        deterministic: products of equally many rows, by `InvariantLinear`.

    Raises:
        FailedPrecondition: `deterministic`, and a part's bits depend on what shares the step.
        InvalidConfig: this CPU has no packed product with bf16 weights.
    """
    pack = invariant if deterministic else _packing(next(model.parameters()), quantize)
    with torch.inference_mode():
        _exchange_between_products(model, family)
    if pack is not None:
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                model.set_submodule(path, pack(module))
        head = pack(head) if isinstance(head, nn.Linear) else head
    if deterministic and (native.load() is None or not all(map(_is_by_row, (head, *model.modules())))):
        raise FailedPrecondition(
            "equal bits in every company are to be had of a decoder with RMS norms, gated feed-forwards and plain "
            "linears, in fp32 on CPUs for which the native kernels were built"
        )
    return FrozenDecoder(head, is_packed=pack is not None)


def _exchange_between_products(model: nn.Module, family: Family) -> None:
    rotary = getattr(model, "rotary_emb", None)
    if isinstance(rotary, nn.Module) and next(model.parameters()).device.type == "cpu":
        model.set_submodule("rotary_emb", AngleTable(rotary))
    for path, norm in list(model.named_modules()):
        if hasattr(norm, "variance_epsilon"):
            _exchange(model, path, FastNorm(norm), norm.weight)
    for path, mlp in list(model.get_submodule(family.layers).named_modules()):
        if isinstance(gate := getattr(mlp, "gate_proj", None), nn.Linear):
            _exchange(model, f"{family.layers}.{path}", FastGatedMlp(mlp), gate.weight)


def _exchange(model: nn.Module, path: str, fast: nn.Module, weight: torch.Tensor) -> None:
    """Put a part in the place of another, if it computes the same; both take rows as wide as `weight`."""
    rows = torch.randn(1, _PROBE_ROWS, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
    expected = model.get_submodule(path)(rows)
    if (fast(rows) - expected).abs().max() <= _SAME * expected.abs().max():
        model.set_submodule(path, fast)


def _is_by_row(module: nn.Module) -> bool:
    """Whether a module gives a row the same bits in every company; one that only holds others does."""
    known = (FrozenLinear, FastNorm, FastGatedMlp, AngleTable, nn.Embedding, nn.Dropout)
    return isinstance(module, known) or bool(list(module.children()))


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


class FastNorm(nn.Module):
    """An RMS norm in one pass."""

    weight: torch.Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, float(norm.variance_epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., H] -> [..., H]`."""
        return rms_norm(x, self.weight, self.eps)


class FastGatedMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))` with one pass between the products."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., H] -> [..., H]`."""
        y: torch.Tensor = self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))
        return y


class AngleTable(nn.Module):
    """Cosines and sines of rotary positions, each computed once, in blocks of equal size, when it is first needed."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        # Not as a part: what is in it has its place here.
        self._angles = rotary.forward
        self._table: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[1, T, E]` each, in the dtype of x, of int64 positions `[1, T]`."""
        cos, sin = self._up_to(int(position_ids.max()), x)
        return cos[position_ids], sin[position_ids]

    def _up_to(self, position: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        known = 0 if self._table is None else len(self._table[0])
        if self._table is not None and position < known:
            return self._table
        blocks = [] if self._table is None else [self._table]
        # Twice as many each time: the table is copied seldom.
        for first in range(known, max(2 * known, position + 1), _BLOCK_POSITIONS):
            cos, sin = self._angles(x, torch.arange(first, first + _BLOCK_POSITIONS)[None])
            blocks.append((cos[0], sin[0]))
        self._table = torch.cat([cos for cos, _ in blocks]), torch.cat([sin for _, sin in blocks])
        return self._table
