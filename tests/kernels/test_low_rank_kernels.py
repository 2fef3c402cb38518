"""The low-rank kernels called directly, with tiles and addresses that no small batch of ours has."""

import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adamix_kernels import reference
from adamix_kernels.gpu.launch import fused, low_rank_, low_rank_norm, numbers
from adamix_kernels.gpu.records import ABSENT, described
from adamix_kernels.plans import Plan
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, cast, on_a_copy
from adamix_kernels.weights import BottleneckWeights

D = 48
INT32_MAX = 2**31 - 1
PLANS = {
    "fused": Plan("fused", block_m=16, block_h=32, num_warps=4, num_stages=2),
    "split": Plan("split", block_m=16, block_h=32, num_warps=4, num_stages=2, block_n=32, splits=2),
}


@pytest.fixture(params=PLANS)
def plan(request) -> list[int]:
    return numbers(PLANS[request.param])


def tiles_at(device: str, *tiles: tuple[int, int, int, int]) -> Tensor:
    return torch.tensor(tiles, dtype=torch.int32, device=device)


@pytest.mark.parametrize("bad", [-1, 2, INT32_MAX, -INT32_MAX - 1])
@pytest.mark.parametrize("has_residual", [False, True])
def test_tiles_of_slots_that_do_not_exist_write_nothing(bad, has_residual, plan, device):
    maker = WeightMaker()
    weights = cast([None, maker.bottleneck(5, D)], torch.float32, device)
    there = described(weights)
    x = maker.rows(64, D).to(device)
    out = x.clone()
    tiles = tiles_at(device, (bad, bad, 0, 16), (bad, 1, 16, 32), (1, bad, 32, 48), (1, 1, 48, 63))
    residual = x if has_residual else None
    low_rank_(out, residual, x.clone(), there.base, there.table[None], tiles, [0, D], 16, plan)
    assert torch.equal(out[:48], x[:48])
    assert torch.equal(out[63], x[63])
    assert_close(out[48:63], exact(x[48:63], weights))


@pytest.mark.parametrize("bad", [-1, 2, INT32_MAX])
def test_the_norm_leaves_out_tiles_of_slots_that_do_not_exist(bad, device):
    maker = WeightMaker()
    there = described(cast([None, maker.bottleneck(5, D)], torch.float32, device))
    s, ones, zeros = maker.rows(8, D).to(device), torch.ones(D, device=device), torch.zeros(D, device=device)
    out, tiles = torch.full_like(s, 7.0), tiles_at(device, (bad, bad, 0, 8))
    fused(out, s, s, there.base, there.table, tiles, rank=16, plan=PLANS["fused"], norm=(ones, zeros, 1e-5))
    assert bool((out == 7.0).all())


def test_an_adapter_of_a_rank_above_the_launch_comes_out_as_nan_and_not_in_part(plan, device):
    maker = WeightMaker()
    weights = cast([None, maker.bottleneck(17, D), maker.bottleneck(16, D)], torch.float32, device)
    there, x = described(weights), maker.rows(9, D).to(device)
    tiles = tiles_at(device, (1, 1, 0, 3), (2, 2, 3, 7), (0, 0, 7, 9))
    out = torch.zeros_like(x)
    low_rank_(out, x, x, there.base, there.table[None], tiles, [0, D], 16, plan)
    assert bool(out[:3].isnan().all())
    assert_close(out[3:7], exact(x[3:7], [None, weights[2]]))
    assert torch.equal(out[7:], x[7:])


def test_the_norm_of_an_adapter_above_the_rank_is_nan(device):
    maker = WeightMaker()
    there = described(cast([None, maker.bottleneck(17, D)], torch.float32, device))
    s, gain = maker.rows(4, D).to(device), torch.ones(D, device=device)
    tiles = tiles_at(device, (1, 1, 0, 3), (0, 0, 3, 4))
    y = low_rank_norm(s, gain, None, 1e-5, there.base, there.table, tiles, 16, numbers(PLANS["fused"]))
    assert bool(y[:3].isnan().all())
    assert_close(y[3:], torch.nn.functional.layer_norm(s[3:].double(), (D,)))


def test_identity_reads_nothing_at_the_beginning_of_the_arena(plan, device):
    # The record of a slot that was never loaded is all zeros, which would be the address of the first weight.
    x, arena = torch.ones(3, D, device=device), torch.full((4 * D,), torch.nan, device=device)
    records = torch.zeros(1, 2, 8, dtype=torch.int64, device=device)
    out = torch.zeros_like(x)
    low_rank_(out, x, x, arena, records, tiles_at(device, (1, 1, 0, 2), (0, 0, 2, 3)), [0, D], 16, plan)
    assert torch.equal(out, x)


def test_weights_may_lie_beyond_the_reach_of_32_bits(plan, device):
    at, maker = far_apart(device), WeightMaker(dtype=torch.float16)
    near = maker.bottleneck(5, D)
    base, far = at(0, 8), 2**31 + 2**20

    def placed(tensor: Tensor, first: int) -> Tensor:
        return at(far + first, tensor.numel()).view(tensor.shape).copy_(tensor)

    weights = BottleneckWeights(
        placed(near.down, 0), placed(near.down_bias, 256), placed(near.up, 512), placed(near.up_bias, 1024), 1.0, "gelu"
    )
    records = torch.tensor([[[0] * 8, [far, far + 256, far + 512, far + 1024, 5, 1, 0x3F800000, 0]]], device=device)
    x = maker.rows(3, D).to(device)
    out = torch.zeros_like(x)
    low_rank_(out, x, x, base, records, tiles_at(device, (1, 1, 0, 3)), [0, D], 16, plan)
    assert_close(out, exact(x, [None, weights]))


def test_rows_may_lie_beyond_the_reach_of_32_bits(device):
    at, maker = far_apart(device), WeightMaker(dtype=torch.float16)
    first_row, stride = 2**20, 2**11 + 8
    weights = cast([None, maker.bottleneck(5, D)], torch.float16, device)
    there, x = described(weights), maker.rows(3, D).to(device)
    rows = [at((first_row + row) * stride, D).copy_(x[row]) for row in range(3)]
    # Row 0 of a very long tensor: the kernels find the others by its stride.
    out = at(0, D).as_strided((1, D), (stride, 1))
    tiles = tiles_at(device, (1, 1, first_row, first_row + 3))
    low_rank_(out, None, None, there.base, there.table[None], tiles, [0, D], 16, numbers(PLANS["fused"]))
    assert_close(torch.stack(rows), exact(x, weights))


def test_an_absent_bias_is_none_whatever_lies_before_the_base(plan, device):
    maker = WeightMaker()
    memory = torch.full((2 * D + 64,), 9.0, device=device)
    base, x = memory[64:], torch.ones(2, D, device=device)
    base.copy_(maker.rows(2 * D))
    records = torch.tensor([[[0] * 8, [0, ABSENT, D, ABSENT, 1, 0, 0x3F800000, 0]]], device=device)
    out = torch.zeros_like(x)
    low_rank_(out, x, x, base, records, tiles_at(device, (1, 1, 0, 2)), [0, D], 16, plan)
    assert_close(out, x.double() + (x.double() @ base[:D].double())[:, None] * base[D:].double())


def exact(x: Tensor, weights) -> Tensor:
    """All rows of x with the adapter of slot 1, in fp64."""
    wide = cast(weights, torch.float64, str(x.device))
    return on_a_copy(reference.bottleneck_, x.double(), Segments.from_lengths([1], [len(x)]), wide)


def far_apart(device: str) -> Callable[[int, int], Tensor]:
    """Memory of 2**31 + 2**24 fp16 numbers, as a function from (first, size) to those numbers.

    On a CPU nothing stands behind it but what is written. The interpreter copies the whole array that a tensor is part
    of, so each of those numbers is a tensor by itself.
    """
    size = 2**31 + 2**24
    if device == "cpu":
        memory = mmap.mmap(-1, 2 * size)
        return lambda first, count: torch.frombuffer(memory, dtype=torch.float16, count=count, offset=2 * first)
    array = torch.empty(size, dtype=torch.float16, device=device)
    return lambda first, count: array[first : first + count]
