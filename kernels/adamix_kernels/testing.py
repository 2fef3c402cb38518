"""What tests and benchmarks of the ops share: an error measure, awkward batches, random weights.

Shapes: T rows, D features, R rank, H pooled features, C outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights, HeadWeights, LoraWeights

Weights = TypeVar("Weights", BottleneckWeights, LoraWeights, HeadWeights)
Arguments = ParamSpec("Arguments")


def error_ratio(actual: Tensor, expected: Tensor) -> float:
    """`rms(actual - expected) / rms(expected)` in fp64: 0 when both are zero or empty, NaN when either has NaN."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {list(actual.shape)} where {list(expected.shape)} was expected")
    wanted = expected.detach().double()
    error = torch.linalg.vector_norm(actual.detach().double() - wanted)
    return float(error / torch.linalg.vector_norm(wanted)) if bool(error != 0) else 0.0


def tolerance(dtype: torch.dtype) -> float:
    """The error ratio that rounding explains: four units in the last place.

    An op rounds its result, its hidden row, the bias and the scaled sum once each, independently, for a ratio of
    about half a unit; the rest leaves room for the order of the sums in fp32 and fp64, whose error grows with the
    square root of D. A wrong slot, bias, scale or row gives a ratio above 0.01 even in the smallest batch here.
    """
    return 4 * torch.finfo(dtype).eps


def assert_close(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """Raise AssertionError unless `actual` equals `expected` (of higher precision) up to the rounding of its dtype."""
    ratio, limit = error_ratio(actual, expected), tolerance(actual.dtype)
    if not ratio <= limit:
        raise AssertionError(f"{name}: error ratio {ratio:.3g} exceeds {limit:.3g} ({actual.dtype})")


def on_a_copy(
    op: Callable[Concatenate[Tensor, Arguments], Tensor],
    rows: Tensor,
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Tensor:
    """What an op that changes its first argument in place makes of `rows`, which stay as they are."""
    return op(rows.clone(), *arguments, **options)


@dataclass(frozen=True)
class BatchShape:
    """The segments of one batch and the ranks behind its slots; `ranks[0]` and rank 0 stand for the identity."""

    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def segments(self) -> Segments:
        return Segments.from_lengths(self.slots, self.lengths)


ODD_SHAPES = {
    "empty": BatchShape((), (), (0, 4)),
    "identity only": BatchShape((0,), (5,), (0, 4)),
    "one row": BatchShape((1,), (1,), (0, 4)),
    "one adapter": BatchShape((2,), (131,), (0, 4, 16)),
    "identity at both ends": BatchShape((0, 1, 0), (3, 7, 2), (0, 8)),
    "rows of one": BatchShape((1, 2, 1, 3, 2), (1, 1, 1, 1, 1), (0, 5, 5, 5)),
    "mixed ranks, an empty slot": BatchShape((3, 1, 4, 0, 2, 5), (17, 1, 33, 4, 9, 6), (0, 8, 3, 16, 0, 8)),
    "one long among short": BatchShape((1, 2, 3, 4, 5), (200, 1, 2, 3, 1), (0, 16, 16, 16, 16, 16)),
    "more tiles than rows fill": BatchShape((1, 2, 3), (65, 64, 63), (0, 7, 7, 7)),
}


class WeightMaker:
    """Random weights whose adapters move a unit row by about one unit, from one seed, on the CPU."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def rows(self, *shape: int) -> Tensor:
        """Standard normal, of any shape."""
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64).to(self.dtype)

    def matrix(self, rows: int, columns: int, fan_in: int) -> Tensor:
        """Normal with variance 1 / fan_in, so that a product with unit rows has unit variance."""
        return self.rows(rows, columns) / math.sqrt(fan_in)

    def bottleneck(
        self, rank: int, features: int, *, scale: float = 1.0, activation: str = "gelu", biases: bool = True
    ) -> BottleneckWeights:
        return BottleneckWeights(
            down=self.matrix(rank, features, fan_in=features),
            down_bias=self.rows(rank) if biases else None,
            up=self.matrix(rank, features, fan_in=rank),
            up_bias=self.rows(features) if biases else None,
            scale=scale,
            activation=activation,
        )

    def lora(self, rank: int, in_features: int, out_features: int, *, scale: float = 1.0) -> LoraWeights:
        a = self.matrix(rank, in_features, fan_in=in_features)
        return LoraWeights(a, self.matrix(rank, out_features, fan_in=rank), scale)

    def head(self, features: int, outputs: int, *, dense: bool = True, activation: str = "tanh") -> HeadWeights:
        return HeadWeights(
            dense=self.matrix(features, features, fan_in=features) if dense else None,
            dense_bias=self.rows(features) if dense else None,
            activation=activation if dense else None,
            out=self.matrix(outputs, features, fan_in=features),
            out_bias=self.rows(outputs),
        )


def cast(weights: Sequence[Weights | None], dtype: torch.dtype, device: str = "cpu") -> list[Weights | None]:
    """Every tensor of every slot in `dtype` on `device`, for a comparison with higher precision or another device."""
    return [each if each is None else _cast(each, dtype, device) for each in weights]


def _cast(weights: Weights, dtype: torch.dtype, device: str) -> Weights:
    values = {field.name: getattr(weights, field.name) for field in fields(weights)}
    moved: dict[str, Any] = {name: v.to(device, dtype) for name, v in values.items() if isinstance(v, Tensor)}
    return replace(weights, **moved)
