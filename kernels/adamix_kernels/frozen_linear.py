"""A linear layer that is never trained again, with its weight laid out once for the CPU's matrix product.

`F.linear` on a CPU takes the weight as it lies and, for fp32, makes separate passes for the bias and for the
activation behind it. oneDNN does all three in one pass over a weight in its own blocked layout. On two cores of a
Zen 4 CPU, torch 2.13, fp32, 1,000 rows: 384 -> 384 takes 1.40 ms instead of 1.56, 1536 -> 384 5.30 instead of 5.90, and
384 -> 1536 with GELU 5.72 instead of 7.11. Results differ by the order of sums only.

For every number of rows and every shape oneDNN compiles code of its own and keeps it, 0.85 MB each time: whoever calls
with changing numbers of rows does well to round them up to `padded_rows`. Knows no model.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from adamix_kernels.weights import activation as function_of

# Activations that the product computes on its way out: our name -> (its name, its variant).
_FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", ""), "tanh": ("tanh", "")}
FUSED_ACTIVATIONS = frozenset(_FUSED)


# Sizes per doubling of the number of rows; the smallest step between two sizes.
_SIZES_PER_OCTAVE, _SMALLEST_STEP = 16, 16
# The smallest sizes of a step; up to so many rows, further ones are multiples of eight.
_SMALL_STEPS, _MOST_EIGHTS = (4, 6, 8, 12), 64


def padded_rows(num_rows: int) -> int:
    """The next of few sizes, at most a sixteenth (or 15 rows) above `num_rows`: 48 sizes up to 1,024 rows."""
    step = max(_SMALLEST_STEP, (1 << (num_rows - 1).bit_length()) // (2 * _SIZES_PER_OCTAVE))
    return -(-num_rows // step) * step


def padded_step_rows(num_rows: int) -> int:
    """The next of few sizes for a step of a decoder, whose rows are few: 4, 6, 8, 12, eights, then `padded_rows`.

    Never one row: that is a product by another code of oneDNN's, with another order of sums, and would have other bits
    than beside a second one. All products of SmolLM2-135M in fp32 take 46 ms of two threads with 1 row, 52 with 2, 37
    with 4 or 6, 47 with 8, 54 with 12, 62 with 16.
    """
    if num_rows > _MOST_EIGHTS:
        return padded_rows(num_rows)
    return next((size for size in _SMALL_STEPS if size >= num_rows), -(-num_rows // 8) * 8)


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU has the packed product for `dtype`, and it multiplies."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        ones = torch.ones(16, 16, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(ones, None)  # noqa: SLF001 - public only through a compiler
        product = torch.ops.mkldnn._linear_pointwise(ones, packed, None, "gelu", [], "none")  # noqa: SLF001
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool(torch.allclose(product, torch.full_like(product, 16.0)))


class FrozenLinear(nn.Module):
    """`activation(x W^T + b)` for inference on a CPU. Takes the weight over: only the packed copy is kept.

    Args:
        linear: the layer; fp32 or bf16, on the CPU, `is_available` for its dtype.
        activation: one of `FUSED_ACTIVATIONS`, computed with the product; None for none.
    """

    def __init__(self, linear: nn.Linear, activation: str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._activation = activation
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)  # noqa: SLF001
        bias: Tensor | None = linear.bias
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        return self._product(x, *_FUSED[self._activation]) if self._activation else self.linear(x)

    def linear(self, x: Tensor) -> Tensor:
        """The product without the activation."""
        return self._product(x, "none", "")

    def activate(self, y: Tensor) -> Tensor:
        """The activation alone, for outputs of `linear` that were changed in between."""
        return function_of(self._activation)(y) if self._activation else y

    def _product(self, x: Tensor, fused: str, variant: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, fused, [], variant)  # noqa: SLF001
        return y


class InvariantLinear(FrozenLinear):
    """A `FrozenLinear` that gives a row the same bits in whatever company and place, at some cost in speed.

    oneDNN chooses its code by the number of rows, so every product here has exactly `BLOCK_ROWS` of them.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)

    def _product(self, x: Tensor, fused: str, variant: str) -> Tensor:
        return in_blocks(lambda rows: super(InvariantLinear, self)._product(rows, fused, variant), x)


class Bf16Linear(FrozenLinear):
    """A layer whose weight is kept in bf16, for half the bytes to be read: fp32 in and out, the product in bf16.

    The bias is added in fp32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        half = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        half.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        super().__init__(half)
        bias: Tensor | None = linear.bias
        self._fp32_bias = None if bias is None else bias.detach()

    def _product(self, x: Tensor, fused: str, variant: str) -> Tensor:
        y = super()._product(x.to(torch.bfloat16), fused, variant).to(x.dtype)
        return y if self._fp32_bias is None else y.add_(self._fp32_bias)


# Rows of a product in deterministic mode. A batch is filled up to a multiple: more rows make short batches dear, fewer
# make long ones dear.
BLOCK_ROWS = 64


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` on blocks of exactly `BLOCK_ROWS` rows of x `[..., T, features]`, one after another.

    Raises:
        ValueError: the rows are no multiple of a block.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) % BLOCK_ROWS:
        raise ValueError(f"{len(rows)} rows are no multiple of {BLOCK_ROWS}")
    parts = [function(block) for block in torch.split(rows, BLOCK_ROWS)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], -1)
