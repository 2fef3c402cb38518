"""A frozen linear layer computes what the layer it replaces computes, activation included."""

import pytest
import torch
from torch import nn

from adamix_kernels.frozen_linear import (
    FUSED_ACTIVATIONS,
    Bf16Linear,
    FrozenLinear,
    is_available,
    padded_rows,
    padded_step_rows,
)
from adamix_kernels.testing import assert_close
from adamix_kernels.weights import activation

pytestmark = pytest.mark.skipif(not is_available(torch.float32), reason="this torch has no packed product")


@pytest.mark.parametrize("name", [None, *sorted(FUSED_ACTIVATIONS)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 384, 1536), (7, 33, 5), (130, 64, 96)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_equals_the_layer_in_fp64(name: str | None, shape: tuple[int, int, int], has_bias: bool) -> None:
    rows, width_in, width_out = shape
    torch.manual_seed(0)
    linear = nn.Linear(width_in, width_out, bias=has_bias)
    x = torch.randn(1, rows, width_in)
    exact = nn.functional.linear(x.double(), linear.weight.double(), None if not has_bias else linear.bias.double())
    frozen = FrozenLinear(linear, name)
    with torch.inference_mode():
        assert_close(frozen.linear(x), exact)
        expected = activation(name)(exact) if name else exact
        assert_close(frozen(x), expected)
        assert_close(frozen.activate(frozen.linear(x)), expected)


def test_it_keeps_one_copy_of_the_weight_and_follows_no_later_change() -> None:
    linear = nn.Linear(4, 4)
    x = torch.ones(1, 4)
    frozen = FrozenLinear(linear)
    before = frozen(x)
    with torch.no_grad():
        linear.weight.zero_()
    assert torch.equal(frozen(x), before)
    assert not list(frozen.parameters())


def test_sizes_are_few_and_close() -> None:
    sizes = {padded_rows(n) for n in range(1, 1025)}
    assert len(sizes) == 48
    for n in range(1, 20_000):
        assert n <= padded_rows(n) <= max(n + 15, n * 17 // 16)
        assert padded_rows(padded_rows(n)) == padded_rows(n)


def test_sizes_of_steps_are_few_and_never_one() -> None:
    sizes = {padded_step_rows(rows) for rows in range(1, 257)}
    assert len(sizes) == 23
    assert min(sizes) == 4
    assert all(rows <= padded_step_rows(rows) <= rows + 15 for rows in range(1, 257))


@pytest.mark.parametrize("make", [FrozenLinear, Bf16Linear])
# As long as sums have to be for a single row to have other bits.
@pytest.mark.parametrize("widths", [(1536, 96), (576, 64), (2048, 33)])
def test_a_row_has_the_same_bits_in_a_step_of_any_size(make: type[FrozenLinear], widths: tuple[int, int]) -> None:
    if make is Bf16Linear and not is_available(torch.bfloat16):
        pytest.skip("this processor does not multiply bf16")
    torch.manual_seed(0)
    frozen, x = make(nn.Linear(*widths)), torch.randn(256, widths[0])
    with torch.inference_mode():
        all_rows = frozen(x)
        for rows in sorted({padded_step_rows(rows) for rows in range(1, 257)}):
            assert torch.equal(frozen(x[:rows]), all_rows[:rows])


@pytest.mark.skipif(not is_available(torch.bfloat16), reason="this processor does not multiply bf16")
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_weight_in_bf16_is_rounded_and_its_bias_is_not(has_bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 96, bias=has_bias)
    x = torch.randn(1, 5, 64)
    with torch.inference_mode():
        if has_bias:
            linear.bias += 1000.0
        product = (x.bfloat16().double() @ linear.weight.bfloat16().double().T).float()
        actual = Bf16Linear(linear)(x)
        assert actual.dtype == torch.float32
        expected = product + linear.bias if has_bias else product
        # Half a unit in the last of bf16's eight bits: of the product, however large the bias is.
        assert (actual - expected).abs().max() <= 2**-8 * product.abs().max()


def test_other_dtypes_are_not_offered() -> None:
    assert not is_available(torch.float64)
    assert not is_available(torch.int8)
