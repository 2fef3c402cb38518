"""Records: where weights lie, in the numbers the kernels read; and what of that is refused."""

import gc
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adamix_kernels import dispatch
from adamix_kernels.gpu import ops
from adamix_kernels.gpu.launch import stacked
from adamix_kernels.gpu.records import ABSENT, CODES, SlotTable, offset, record_of, records_of
from adamix_kernels.plans import Plan
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, cast, on_a_copy
from adamix_kernels.weights import ACTIVATIONS, BottleneckWeights, LoraWeights


@pytest.fixture
def maker():
    return WeightMaker()


def at(base: Tensor, first: int, shape: tuple[int, ...]) -> Tensor:
    """The tensor that a record says begins `first` elements behind the base."""
    size = int(np.prod(shape))
    span = torch.empty(0, dtype=base.dtype)
    span.set_(base.untyped_storage(), base.storage_offset() + first, (size,), (1,))
    return span.view(shape)


def in_arena(arena: Tensor, weights: BottleneckWeights, first: int) -> BottleneckWeights:
    """The weights, copied into the arena one behind another from element `first` on."""
    placed = {}
    for name in ("down", "down_bias", "up", "up_bias"):
        tensor = getattr(weights, name)
        if tensor is not None:
            placed[name] = arena[first : first + tensor.numel()].view(tensor.shape).copy_(tensor)
            first += -(-tensor.numel() // 32) * 32
    return replace(weights, **placed)


def lowest(weights: BottleneckWeights) -> Tensor:
    """The tensor at the lowest address, which can be the base for the others."""
    tensors = (weights.down, weights.down_bias, weights.up, weights.up_bias)
    return min((each for each in tensors if each is not None), key=Tensor.data_ptr)


def test_a_record_names_each_tensor_by_its_distance_from_the_base(maker):
    arena = torch.zeros(2048)
    weights = in_arena(arena, maker.bottleneck(5, 48, scale=0.375, activation="silu"), 64)
    down, down_bias, up, up_bias, rank, code, scale, _ = record_of(weights.low_rank, arena)
    assert torch.equal(at(arena, down, (5, 48)), weights.down)
    assert torch.equal(at(arena, down_bias, (5,)), weights.down_bias)
    assert torch.equal(at(arena, up, (5, 48)), weights.up)
    assert torch.equal(at(arena, up_bias, (48,)), weights.up_bias)
    assert (rank, code) == (5, CODES["silu"])
    assert struct.unpack("<f", struct.pack("<i", scale)) == (0.375,)


def test_no_bias_is_a_negative_offset_and_no_weights_are_all_zeros(maker):
    weights = maker.bottleneck(5, 48, biases=False)
    record = record_of(weights.low_rank, lowest(weights))
    assert record[1] == record[3] == ABSENT < 0
    assert record_of(None, torch.zeros(1)) == [0] * 8


def test_every_activation_has_a_code_of_its_own():
    assert set(CODES) == set(ACTIVATIONS)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_dtype_than_the_base_are_refused(dtype, maker):
    weights = maker.bottleneck(5, 48)
    mixed = replace(weights, up=weights.up.to(dtype))
    with pytest.raises(ValueError, match="weights are"):
        record_of(mixed.low_rank, lowest(weights))
    with pytest.raises(ValueError, match="weights are"):
        records_of([None, mixed])


def test_weights_on_another_device_are_refused(maker):
    weights = maker.bottleneck(5, 48)
    with pytest.raises(ValueError, match="on meta"):
        record_of(replace(weights, up=weights.up.to("meta")).low_rank, lowest(weights))


def test_what_the_kernels_could_not_address_is_refused(maker):
    array = torch.zeros(256)
    with pytest.raises(ValueError, match="begin on 16 bytes"):
        offset(array[1:65], array)
    with pytest.raises(ValueError, match="contiguous"):
        offset(array.view(16, 16).t(), array)
    with pytest.raises(ValueError, match="before the base"):
        offset(array, array[64:])
    with pytest.raises(ValueError, match="arena does not begin"):
        offset(array[8:], array[1:])


def test_adapters_of_one_site_have_the_same_features(maker):
    with pytest.raises(ValueError, match=r"differ in their features.*\(48, 48\), \(64, 64\)"):
        records_of([maker.bottleneck(5, 48), maker.bottleneck(5, 64)])
    with pytest.raises(ValueError, match="differ in their features"):
        records_of([None, maker.lora(5, 48, 16), maker.lora(5, 48, 24)])
    assert records_of([None, maker.lora(5, 48, 16)]).features == (48, 16)


def test_a_sequence_without_weights_has_no_records():
    assert records_of([]) is None
    assert records_of([None, None]) is None


def misplaced(weights: BottleneckWeights, how: str) -> BottleneckWeights:
    if how == "columns":
        return replace(weights, down=weights.down.t().contiguous().t(), up=weights.up.t().contiguous().t())
    moved = {}
    for name in ("down", "down_bias", "up", "up_bias"):
        tensor = getattr(weights, name)
        array = torch.zeros(tensor.numel() + 1, device=tensor.device)
        moved[name] = array[1:].view(tensor.shape).copy_(tensor)
    return replace(weights, **moved)


@pytest.mark.parametrize("how", ["columns", "one element off"])
def test_weights_that_lie_badly_are_copied_and_the_copies_outlive_the_launch(how, maker, device, monkeypatch):
    def fill_what_was_freed(*arguments):
        gc.collect()
        # Whoever asks for memory of that size now must not be given that of the copies.
        hostile.extend(torch.full((numel,), torch.nan, device=device) for numel in (5 * 48, 48, 5) for _ in range(8))
        return low_rank_(*arguments)

    hostile, low_rank_ = [], ops.low_rank_
    monkeypatch.setattr(ops, "low_rank_", fill_what_was_freed)
    weights = [None, misplaced(cast([maker.bottleneck(5, 48)], torch.float32, device)[0], how)]
    assert records_of(weights).kept
    x, segments = maker.rows(3, 48).to(device), Segments.from_lengths([1], [3])
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    wide = cast(weights, torch.float64, device)
    assert_close(y, on_a_copy(dispatch.bottleneck_, x.double(), segments, wide, implementation="reference"))
    assert hostile


class TestSlotTable:
    def table(self, arena: Tensor, slots: int = 4) -> SlotTable[BottleneckWeights]:
        return SlotTable(torch.zeros(slots, 8, dtype=torch.int64, device=arena.device), arena)

    def upload(self, table: SlotTable[BottleneckWeights]) -> None:
        for slot in range(len(table)):
            table.records.table[slot] = torch.tensor(table.record(slot))

    def test_it_serves_batches_as_slots_come_and_go(self, maker, device):
        arena = torch.zeros(8192, device=device)
        table, x = self.table(arena), maker.rows(5, 48).to(device)
        segments = Segments.from_lengths([2, 0, 1], [2, 1, 2])

        def run() -> Tensor:
            self.upload(table)
            y = on_a_copy(dispatch.bottleneck_, x, segments, table, implementation="triton")
            plain = cast(list(table), torch.float64, device)
            assert_close(y, on_a_copy(dispatch.bottleneck_, x.double(), segments, plain, implementation="reference"))
            return y

        assert torch.equal(run(), x)
        table[1] = in_arena(arena, maker.bottleneck(5, 48), 0)
        assert torch.equal(run()[:3], x[:3])
        table[2] = in_arena(arena, maker.bottleneck(17, 48), 2048)
        first = run()
        table[1] = in_arena(arena, maker.bottleneck(5, 48), 6144)
        assert not torch.equal(run()[3:], first[3:])
        table[2] = None
        assert torch.equal(run()[:3], x[:3])
        assert table.records.ranks.tolist() == [0, 5, 0, 0]

    def test_it_is_a_sequence_of_its_weights(self, maker):
        arena = torch.zeros(2048)
        table, weights = self.table(arena), in_arena(arena, maker.bottleneck(5, 48), 0)
        table[2] = weights
        assert list(table) == [None, None, weights, None]
        assert table[2] is weights
        assert table[1:3] == [None, weights]

    def test_what_it_refuses_leaves_it_as_it_was(self, maker):
        arena = torch.zeros(4096)
        table, weights = self.table(arena), in_arena(arena, maker.bottleneck(5, 48), 0)
        table[1] = weights
        for bad, message in (
            (in_arena(arena, maker.bottleneck(5, 64), 2048), r"features.*\(64, 64\).*\(48, 48\)"),
            (misplaced(weights, "one element off"), "16 bytes"),
            (cast([weights], torch.float16)[0], "weights are"),
        ):
            with pytest.raises(ValueError, match=message):
                table[1] = bad
            assert table[1] is weights
            assert table.records.features == (48, 48)
            assert table.records.ranks.tolist() == [0, 5, 0, 0]


@pytest.mark.parametrize("kernel", ["fused", "split"])
@pytest.mark.parametrize("place", ["one arena", "two arenas", "a list and a table", "tables apart"])
def test_slices_find_their_weights_wherever_their_tables_lie(place, kernel, maker, device, monkeypatch):
    plan = Plan(kernel, block_m=16, block_h=32, num_warps=4, num_stages=2, block_n=32, splits=2)
    monkeypatch.setattr(ops, "pick", lambda *_: plan)
    arenas = [torch.zeros(4096, device=device) for _ in range(2)]
    tables = torch.zeros(3, 3, 8, dtype=torch.int64, device=device)
    first, second = maker.lora(5, 48, 16), maker.lora(3, 48, 24)

    def table_of(weights: LoraWeights, arena: Tensor, begin: int, records: Tensor) -> SlotTable[LoraWeights]:
        table = SlotTable[LoraWeights](records, arena)
        a = arena[begin : begin + weights.a.numel()].view(weights.a.shape).copy_(weights.a)
        b = arena[begin + 1024 : begin + 1024 + weights.b.numel()].view(weights.b.shape).copy_(weights.b)
        table[2] = LoraWeights(a, b, weights.scale)
        records[2] = torch.tensor(table.record(2))
        return table

    slices = [table_of(first, arenas[0], 0, tables[0])]
    match place:
        case "one arena":
            slices.append(table_of(second, arenas[0], 2048, tables[1]))
        case "two arenas":
            slices.append(table_of(second, arenas[1], 0, tables[1]))
        case "a list and a table":
            slices.append(cast([None, None, second], torch.float32, device))
        case "tables apart":
            slices.append(table_of(second, arenas[0], 2048, tables[2]))
    x, y = maker.rows(5, 48).to(device), maker.rows(5, 40).to(device)
    segments, windows = Segments.from_lengths([2, 1], [4, 1]), [(0, 16), (16, 40)]
    expected = y.double()
    for weights, window in zip((first, second), windows, strict=True):
        wide = cast([None, None, weights], torch.float64, device)
        expected = on_a_copy(dispatch.lora_, expected, x.double(), segments, wide, window, implementation="reference")
    assert_close(dispatch.lora_slices_(y, x, segments, slices, windows, implementation="triton"), expected)


def test_tables_that_follow_one_another_are_read_where_they_lie():
    tables = torch.arange(96).view(4, 3, 8)
    together = stacked([tables[1], tables[2]])
    assert torch.equal(together, tables[1:3])
    assert together.data_ptr() == tables[1].data_ptr()
    for apart in ([tables[0], tables[2]], [tables[1], tables[0]], [tables[0], tables[1].clone()]):
        assert torch.equal(stacked(apart), torch.stack(apart))
