"""Kernels are launched on the device of their operands, whichever device is the current one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from adamix_kernels import dispatch
from adamix_kernels.attention import SequenceLayout, varlen_attention
from adamix_kernels.gpu import attention, head_launch, heads, launch, low_rank, ops, training
from adamix_kernels.plans import Plan
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, cast, on_a_copy

D = 48
SEGMENTS = Segments.from_lengths([1, 0], [3, 2])
PLANS = {
    "fused": Plan("fused", block_m=16, block_h=32, num_warps=4, num_stages=2),
    "split": Plan("split", block_m=16, block_h=32, num_warps=4, num_stages=2, block_n=32, splits=2),
}


class Watched:
    """A kernel that notes its launches, and whether a device had been chosen for them."""

    def __init__(self, name, kernel, chosen, launched) -> None:
        self._name, self._kernel, self._chosen, self._launched = name, kernel, chosen, launched

    def __getitem__(self, grid):
        assert self._chosen, f"{self._name} is launched on the current device"
        self._launched.add(self._name)
        return self._kernel[grid]


@pytest.fixture
def launched(monkeypatch) -> set[str]:
    """The names of the kernels that were launched, each of which must have chosen its device."""
    chosen: list[torch.device] = []
    names: set[str] = set()

    @contextmanager
    def choose(operand) -> Iterator[None]:
        chosen.append(operand.device)
        yield
        chosen.pop()

    for module in (launch, head_launch, training):
        monkeypatch.setattr(module, "on_device_of", choose)
    places = ((low_rank, "fused"), (low_rank, "shrink"), (low_rank, "expand"))
    for module, name in (*places, (heads, "heads"), (attention, "varlen"), (training, "grouped")):
        monkeypatch.setattr(module, name, Watched(name, getattr(module, name), chosen, names))
    return names


def test_every_launch_chooses_the_device_of_its_operands(launched, monkeypatch, device):
    maker = WeightMaker()
    x, gain = maker.rows(5, D).to(device), torch.ones(D, device=device)
    weights = cast([None, maker.bottleneck(5, D)], torch.float32, device)
    for plan in PLANS:
        with monkeypatch.context() as patch:
            patch.setattr(ops, "pick", lambda op, architecture, facts, only=None, plan=plan: PLANS[only or plan])
            on_a_copy(dispatch.bottleneck_, x, SEGMENTS, weights, implementation="triton")
            dispatch.bottleneck_norm(x, SEGMENTS, weights, gain, None, 1e-5, implementation="triton")
    head = dispatch.HeadWeights(None, None, None, torch.ones(3, D, device=device), None)
    dispatch.head(x, SEGMENTS, [None, head], implementation="triton")
    q = maker.rows(5, D).to(device).view(5, 3, 16)
    varlen_attention(q, q, q, SequenceLayout.from_lengths([3, 2]), implementation="triton")
    down = dispatch.RoutedProjection([torch.ones(4, D, device=device, requires_grad=True)], None, [0])
    up = dispatch.RoutedProjection([torch.ones(D, 4, device=device, requires_grad=True)], None, [0])
    dispatch.routed_low_rank(x[None], None, down, up, 1.0, "gelu", implementation="triton").sum().backward()
    assert launched == {"fused", "shrink", "expand", "heads", "varlen", "grouped"}


@pytest.mark.parametrize(("index", "expected"), [(0, []), (1, [torch.device("cuda", 1)])])
def test_the_current_device_is_left_alone_where_it_is_the_right_one(index, expected, monkeypatch):
    chosen = []

    @contextmanager
    def device(which) -> Iterator[None]:
        chosen.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    with launch.on_device_of(SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))):
        assert chosen == expected


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("plan", PLANS)
def test_ops_compute_on_a_device_that_is_not_the_current_one(plan, monkeypatch):
    monkeypatch.setattr(ops, "pick", lambda *_: PLANS[plan])
    maker = WeightMaker()
    x, weights = maker.rows(5, D).to("cuda:1"), cast([None, maker.bottleneck(5, D)], torch.float32, "cuda:1")
    with torch.cuda.device(0):
        y = on_a_copy(dispatch.bottleneck_, x, SEGMENTS, weights, implementation="triton")
    wide = cast(weights, torch.float64, "cuda:1")
    assert_close(y, on_a_copy(dispatch.bottleneck_, x.double(), SEGMENTS, wide, implementation="reference"))
