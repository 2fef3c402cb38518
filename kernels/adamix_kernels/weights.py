"""The tensors of one slot at one site, as views into wherever they live; in training, those of all experts of a
projection. Knows no slots and no files.

Shapes: D hidden size, R bottleneck dim or LoRA rank, H width of the pooled features, C outputs of a head, M experts,
G groups of rows.
Bottleneck and LoRA matrices are both stored [R, features], so that the long side is contiguous in both products.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The elementwise function `name`: gelu (erf form), gelu_tanh, relu, silu, tanh or identity.

    Raises:
        ValueError: there is no activation of that name.
    """
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}") from None


@dataclass(frozen=True, eq=False)
class LowRank:
    """What both kinds of adapters have in common: `scale * (act(x down^T + down_bias) up + up_bias)`.

    Attributes:
        down, down_bias, up, up_bias, scale, activation: as in `BottleneckWeights`.
        down_t: [D, R], a view of `down`.
        bias_and_up: [1 + R, D], a view of `up_bias` and `up`, if they lie so in memory: a row of ones beside the hidden
            units then adds the bias in the same product.
        group: adapters with equal groups fit into one batched product.
    """

    down: Tensor
    down_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    scale: float
    activation: str
    down_t: Tensor = field(init=False)
    bias_and_up: Tensor | None = field(init=False)
    group: tuple[object, ...] = field(init=False)

    def __post_init__(self) -> None:
        joined = None if self.up_bias is None else _joined(self.up_bias, self.up)
        group = (len(self.down), self.activation, self.scale, self.down_bias is None, self.up_bias is None)
        object.__setattr__(self, "down_t", self.down.t())
        object.__setattr__(self, "bias_and_up", joined)
        object.__setattr__(self, "group", (*group, joined is None))

    def with_up_of(self, other: "LowRank") -> "LowRank":
        """This adapter's down projection and activation with the other's up projection and scale."""
        if other is self:
            return self
        if self.down.shape[0] != other.up.shape[0]:
            raise ValueError(f"down has rank {len(self.down)} and the up of another adapter {len(other.up)}")
        return LowRank(self.down, self.down_bias, other.up, other.up_bias, other.scale, self.activation)


@dataclass(frozen=True, eq=False)
class BottleneckWeights:
    """A bottleneck adapter, `A(x) = scale * (act(x down^T + down_bias) up + up_bias)` (Houlsby et al. 2019).

    Attributes:
        down: [R, D], `down_proj.weight` as torch keeps it.
        down_bias: [R] or None.
        up: [R, D], `up_proj.weight` transposed.
        up_bias: [D] or None.
        scale: factor on the adapter's output.
        activation: a name `activation()` knows.

    Raises:
        ValueError: shapes disagree or the activation is unknown.
    """

    down: Tensor
    down_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    scale: float
    activation: str

    def __post_init__(self) -> None:
        _require_matrix(self.down, "down")
        rank, features = self.down.shape
        _require_shape(self.up, (rank, features), "up")
        _require_shape(self.down_bias, (rank,), "down_bias")
        _require_shape(self.up_bias, (features,), "up_bias")
        activation(self.activation)

    @cached_property
    def low_rank(self) -> LowRank:
        return LowRank(self.down, self.down_bias, self.up, self.up_bias, self.scale, self.activation)


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A low-rank update, `A(x) = scale * (x a^T) b` (Hu et al. 2021, eq. 3).

    Attributes:
        a: [R, in], `lora_A` as peft keeps it.
        b: [R, out], `lora_B` transposed.
        scale: alpha / rank, or whatever the adapter was trained with.

    Raises:
        ValueError: the ranks of `a` and `b` differ.
    """

    a: Tensor
    b: Tensor
    scale: float

    def __post_init__(self) -> None:
        _require_matrix(self.a, "a")
        _require_matrix(self.b, "b")
        if self.a.shape[0] != self.b.shape[0]:
            raise ValueError(f"a has rank {self.a.shape[0]} but b has rank {self.b.shape[0]}")

    @cached_property
    def low_rank(self) -> LowRank:
        return LowRank(self.a, None, self.b, None, self.scale, "identity")


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """A task head, `act(x dense^T + dense_bias) out^T + out_bias`; every part but the features is optional.

    Attributes:
        dense: [H, H] or None; without it neither its bias nor the activation is applied.
        dense_bias: [H] or None.
        activation: name of the function after `dense`, or None.
        out: [C, H], or None for an embedding: the features pass through.
        out_bias: [C] or None.

    Raises:
        ValueError: shapes disagree or the activation is unknown.
    """

    dense: Tensor | None
    dense_bias: Tensor | None
    activation: str | None
    out: Tensor | None
    out_bias: Tensor | None

    def __post_init__(self) -> None:
        if self.dense is not None:
            _require_matrix(self.dense, "dense")
            _require_shape(self.dense_bias, (self.dense.shape[0],), "dense_bias")
        if self.out is not None:
            _require_matrix(self.out, "out")
            _require_shape(self.out_bias, (self.out.shape[0],), "out_bias")
        if self.dense is not None and self.out is not None and self.dense.shape[0] != self.out.shape[1]:
            raise ValueError(f"dense gives {self.dense.shape[0]} features but out takes {self.out.shape[1]}")
        if self.activation is not None:
            activation(self.activation)


@dataclass(frozen=True, eq=False)
class RoutedProjection:
    """`y[g] = x[g] W[experts[g]]^T + b[experts[g]]` for each group g of rows (AdaMix, section 3.1).

    Attributes:
        weights: M of them, [out, in] each, as `torch.nn.Linear` keeps them.
        biases: M of them, [out] each, or None.
        experts: the expert of each of the G groups, on the host: its values choose which weights are read.

    Raises:
        ValueError: there is no weight, the number of biases is another, or an expert does not exist.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor] | None
    experts: Sequence[int]

    def __post_init__(self) -> None:
        if not self.weights or (self.biases is not None and len(self.biases) != len(self.weights)):
            raise ValueError("a routed projection needs at least one weight, and as many biases or none")
        if self.experts and not 0 <= min(self.experts) <= max(self.experts) < len(self.weights):
            raise ValueError(f"route names an expert outside 0..{len(self.weights) - 1}")

    @property
    def out_features(self) -> int:
        return len(self.weights[0])

    @property
    def in_features(self) -> int:
        return self.weights[0].shape[1]


def _require_matrix(tensor: Tensor, name: str) -> None:
    if tensor.ndim != 2:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be a matrix")


def _require_shape(tensor: Tensor | None, shape: tuple[int, ...], name: str) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; the other tensors need {list(shape)}")


def _joined(row: Tensor, matrix: Tensor) -> Tensor | None:
    """`row` on top of `matrix` as one view, if that is how they lie in memory."""
    is_joined = (
        row.is_contiguous()
        and matrix.is_contiguous()
        and row.dtype == matrix.dtype
        and row.untyped_storage().data_ptr() == matrix.untyped_storage().data_ptr()
        and row.storage_offset() + row.numel() == matrix.storage_offset()
    )
    return row.as_strided((1 + len(matrix), len(row)), (len(row), 1)) if is_joined else None
