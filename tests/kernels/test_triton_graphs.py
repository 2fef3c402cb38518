"""The low-rank ops as torch sees them: opaque, traceable, captured in a CUDA graph, never waiting for the device."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adamix_kernels import dispatch
from adamix_kernels.gpu import ops
from adamix_kernels.gpu.launch import low_rank_, low_rank_norm, numbers, precision
from adamix_kernels.gpu.records import SlotTable
from adamix_kernels.gpu.tiles import Room, reserve, tiles_of
from adamix_kernels.plans import Plan
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, cast, on_a_copy
from adamix_kernels.weights import BottleneckWeights

D = 48
PLANS = {
    "fused": Plan("fused", block_m=16, block_h=32, num_warps=4, num_stages=2),
    "split": Plan("split", block_m=16, block_h=32, num_warps=4, num_stages=2, block_n=32, splits=2),
}
SEGMENTS = Segments.from_lengths([1, 0, 2], [3, 1, 18])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=PLANS)
def plan(request) -> Plan:
    return PLANS[request.param]


def table_in_arena(device: str) -> SlotTable[BottleneckWeights]:
    """Two bottlenecks in an arena, and their records on the device: as an engine keeps them."""
    maker, first = WeightMaker(), 0
    arena = torch.zeros(8192, device=device)
    table = SlotTable[BottleneckWeights](torch.zeros(3, 8, dtype=torch.int64, device=device), arena)
    for slot, rank in ((1, 5), (2, 16)):
        plain, placed = maker.bottleneck(rank, D), {}
        for name in ("down", "down_bias", "up", "up_bias"):
            tensor = getattr(plain, name)
            placed[name] = arena[first : first + tensor.numel()].view(tensor.shape).copy_(tensor)
            first += -(-tensor.numel() // 32) * 32
        table[slot] = replace(plain, **placed)
        table.records.table[slot] = torch.tensor(table.record(slot))
    return table


class Operands:
    """What the ops take, for the batch of `SEGMENTS`. The base is all of the arena, which may therefore be copied."""

    def __init__(self, device: str) -> None:
        self.records = table_in_arena(device).records
        maker = WeightMaker()
        self.x = maker.rows(SEGMENTS.num_rows, D).to(device)
        self.gain, self.bias = maker.rows(D).to(device), maker.rows(D).to(device)

    def low_rank_(self, plan: Plan, out: Tensor, residual: Tensor | None, source: Tensor | None) -> tuple[object, ...]:
        tiles = tiles_of(SEGMENTS, out.device).of(plan.block_m)
        return out, residual, source, self.records.base, self.records.table[None], tiles, [0, D], 16, numbers(plan)

    def low_rank_norm(self, s: Tensor, bias: Tensor | None) -> tuple[object, ...]:
        plan = PLANS["fused"]
        tiles = tiles_of(SEGMENTS, s.device).of(plan.block_m)
        return s, self.gain, bias, 1e-5, self.records.base, self.records.table, tiles, 16, numbers(plan)


@pytest.mark.parametrize("in_place", [False, True])
def test_low_rank_keeps_the_promises_of_a_torch_op(in_place, plan, device):
    given = Operands(device)
    source = None if in_place else given.x
    torch.library.opcheck(low_rank_, given.low_rank_(plan, given.x.clone(), source, source))


@pytest.mark.parametrize(("has_bias", "has_gaps"), [(False, False), (True, False), (False, True)])
def test_the_norm_keeps_the_promises_of_a_torch_op(has_bias, has_gaps, device):
    given = Operands(device)
    # A view with gaps between its rows: what the fake says of the result's strides must hold for it as well.
    rows = torch.zeros(len(given.x), D + 8, device=device)[:, :D].copy_(given.x) if has_gaps else given.x
    torch.library.opcheck(low_rank_norm, given.low_rank_norm(rows, given.bias if has_bias else None))


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=[pytest.mark.gpu, needs_cuda])]
)
def test_compiled_code_gives_what_eager_code_gives(backend, plan, device):
    given = Operands(device)
    # Which tiles, records and plan is decided on the host, before: traced is what the device does.
    _, _, _, *adapters = given.low_rank_(plan, given.x, None, None)
    _, *norm = given.low_rank_norm(given.x, given.bias)

    def layer(x: Tensor) -> Tensor:
        y = torch.tanh(x)
        low_rank_(y, None, None, *adapters)
        return low_rank_norm(y * 2, *norm) + x

    expected = layer(given.x)
    torch.compiler.reset()
    actual = torch.compile(layer, fullgraph=True, backend=backend)(given.x)
    torch.compiler.reset()
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """From its call on, whatever would wait for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def forced(plan, monkeypatch) -> None:
    """Makes every op run as `plan`, unless the op itself asks for a kernel."""
    monkeypatch.setattr(ops, "pick", lambda op, architecture, facts, only=None: PLANS[only or plan.kernel])


@pytest.mark.gpu
@needs_cuda
def test_no_op_waits_for_the_device(forced, no_waiting):
    table, maker = table_in_arena("cuda"), WeightMaker()
    x, gain = maker.rows(SEGMENTS.num_rows, D).cuda(), torch.ones(D, device="cuda")
    # The records of weights in a list are made on the way.
    loras = cast([None, maker.lora(5, D, D), maker.lora(3, D, D)], torch.float32, "cuda")
    fresh = Segments.from_lengths([1, 0, 2], [3, 1, 18])
    no_waiting()
    y = on_a_copy(dispatch.bottleneck_, x, fresh, table, implementation="triton")
    dispatch.bottleneck_(y, fresh, table, implementation="triton")
    dispatch.bottleneck_norm(y, fresh, table, gain, None, 1e-5, implementation="triton")
    dispatch.lora_(y, x, fresh, loras, implementation="triton")


@pytest.mark.gpu
@needs_cuda
def test_a_captured_graph_serves_the_batches_that_are_put_in_later(forced):
    table, maker = table_in_arena("cuda"), WeightMaker()
    x, gain = maker.rows(40, D).cuda(), torch.ones(D, device="cuda")
    captured = Segments.from_lengths([1], [40])
    tiles = reserve(captured, x.device, Room(max_segments=6, max_rank=16))

    def step(segments: Segments) -> Tensor:
        y = on_a_copy(dispatch.bottleneck_, x, segments, table, implementation="triton")
        y = dispatch.bottleneck_norm(y, segments, table, gain, None, 1e-5, implementation="triton")
        return dispatch.bottleneck_(y, segments, table, implementation="triton")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(captured)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step(captured)
    for runs in ([(2, 40)], [(1, 1), (0, 7), (2, 3), (1, 29)], [(0, 40)], [(2, 17), (1, 23)]):
        later = Segments.from_lengths([slot for slot, _ in runs], [length for _, length in runs])
        x.copy_(maker.rows(40, D))
        tiles.refill(later)
        graph.replay()
        assert_close(y, step(later).double())


def test_fp32_is_multiplied_exactly_unless_torch_may_round_its_own_products():
    assert precision(torch.float32) == "ieee"
    torch.set_float32_matmul_precision("high")
    try:
        assert precision(torch.float32) == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_whoever_allows_tf32_by_the_setting_of_one_backend_is_heard_as_well():
    # Once it is set so, torch refuses to answer by the older setting.
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "tf32"
    try:
        assert precision(torch.float32) == "tf32"
    finally:
        setting.fp32_precision = before
    assert precision(torch.float32) == "ieee"
