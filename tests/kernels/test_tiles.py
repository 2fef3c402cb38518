"""Tiles on the device: they cover each row once, room that is set aside always suffices, and nothing is kept alive."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamix_kernels import dispatch
from adamix_kernels.gpu import tiles as tiles_module
from adamix_kernels.gpu.tiles import UNUSED, DeviceTiles, Room, reserve, tiles_of
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, cast, on_a_copy

CPU = torch.device("cpu")
runs = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), max_size=10)
block_sizes = st.sampled_from([16, 32, 64])


def build(pairs):
    # The up projection is the neighbour's, to be told apart from the down projection.
    slots = [slot for slot, _ in pairs]
    return Segments.from_lengths(slots, [length for _, length in pairs], [slot and 1 + slot % 4 for slot in slots])


def rows_of(tiles):
    """(down slot, up slot) of each row that some tile covers, in the order of the tiles."""
    covered = {}
    for down, up, first, end in tiles.tolist():
        for row in range(first, end) if down != UNUSED else ():
            assert row not in covered
            covered[row] = (down, up)
    return covered


def expected_rows(segments):
    bounds = segments.indptr.tolist()
    spans = zip(segments.pairs, bounds[:-1], bounds[1:], strict=True)
    return {row: pair for pair, start, end in spans for row in range(start, end)}


@given(runs, block_sizes)
def test_every_row_is_in_exactly_one_tile_of_its_slots(pairs, block_rows):
    segments = build(pairs)
    tiles = tiles_of(segments, CPU).of(block_rows)
    assert tiles.dtype == torch.int32
    assert rows_of(tiles) == expected_rows(segments)
    assert bool((tiles[:, 3] - tiles[:, 2] <= block_rows).all())
    assert not bool((tiles[:, 0] == UNUSED).any())


@given(runs, runs, block_sizes, st.integers(0, 3))
def test_room_for_rows_and_segments_holds_any_batch_within_them(captured, later, block_rows, spare):
    captured, later = build(captured), build(later)
    num_rows = max(captured.num_rows, later.num_rows)
    captured = Segments.from_lengths([*captured.slots, 0], [*captured.lengths, num_rows - captured.num_rows])
    room = Room(max_segments=max(len(captured), len(later)) + spare, max_rank=16)
    reserved = reserve(captured, CPU, room)
    tiles = reserved.of(block_rows)
    assert rows_of(tiles) == expected_rows(captured)
    reserved.refill(later)
    assert rows_of(tiles) == expected_rows(later)
    assert reserved.of(block_rows) is tiles
    assert bool((tiles[:, 1:][tiles[:, 0] == UNUSED] == UNUSED).all())


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 64])
def test_room_suffices_for_the_worst_batches(num_rows):
    for num_segments in {1, 2, num_rows // 2 or 1, num_rows}:
        num_segments = min(num_segments, num_rows)
        # All rows but one each in segments of one: no batch of as many segments has more tiles.
        lengths = [1] * (num_segments - 1) + [num_rows - num_segments + 1]
        worst = Segments.from_lengths([1 + i % 2 for i in range(num_segments)], lengths)
        captured = Segments.from_lengths([0], [num_rows])
        reserved = reserve(captured, CPU, Room(num_segments, 16))
        tiles = reserved.of(16)
        reserved.refill(worst)
        assert rows_of(tiles) == expected_rows(worst)


def test_a_batch_that_does_not_fit_is_refused_and_changes_nothing():
    segments = Segments.from_lengths([1, 2], [5, 5])
    reserved = reserve(segments, CPU, Room(max_segments=2, max_rank=16))
    before = reserved.of(16).clone()
    with pytest.raises(ValueError, match="for 2 segments; the batch has 3"):
        reserved.refill(Segments.from_lengths([1, 2, 1], [1, 1, 1]))
    with pytest.raises(ValueError, match="batch of 11 rows"):
        reserved.refill(Segments.from_lengths([1], [11]))
    assert torch.equal(reserved.of(16), before)
    with pytest.raises(ValueError, match="3 segments, and the room is for 2"):
        reserve(Segments.from_lengths([1, 2, 1], [1, 1, 1]), CPU, Room(2, 16))


def test_tiles_without_room_take_no_other_batch():
    segments = Segments.from_lengths([1], [4])
    with pytest.raises(ValueError, match="no room was reserved"):
        tiles_of(segments, CPU).refill(Segments.from_lengths([2], [4]))


def test_all_who_ask_share_one_map_of_each_height():
    segments = Segments.from_lengths([1, 0], [20, 3])
    tiles = tiles_of(segments, CPU)
    assert tiles_of(segments, CPU) is tiles
    assert tiles.of(16) is tiles.of(16)
    assert tiles.of(16) is not tiles.of(32)
    other = Segments.from_lengths([1, 0], [20, 3])
    assert tiles_of(other, CPU) is not tiles


def test_a_batch_is_not_kept_alive_by_its_tiles():
    gc.collect()
    before = len(tiles_module._of_batch)
    segments = Segments.from_lengths([1], [4])
    tiles = tiles_of(segments, CPU)
    tiles.of(16)
    assert len(tiles_module._of_batch) == before + 1
    del segments
    gc.collect()
    assert len(tiles_module._of_batch) == before
    assert len(tiles.of(16)) == 1
    with pytest.raises(ValueError, match="no longer here"):
        tiles.of(32)


def test_what_was_reserved_is_found_by_the_ops_of_that_batch():
    segments = Segments.from_lengths([1], [4])
    plain = tiles_of(segments, CPU)
    reserved = reserve(segments, CPU, Room(3, 16))
    assert isinstance(reserved, DeviceTiles)
    assert tiles_of(segments, CPU) is reserved is not plain


def test_ops_compute_the_batch_that_was_put_in_last(device):
    maker = WeightMaker()
    weights = cast([None, maker.bottleneck(5, 48), maker.bottleneck(16, 48)], torch.float32, device)
    x, captured = maker.rows(20, 48).to(device), Segments.from_lengths([0], [20])
    reserved = reserve(captured, torch.device(device), Room(max_segments=4, max_rank=16))

    def run(segments):
        return on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")

    # Ranks are not looked at: the batch that is captured need not have any.
    assert torch.equal(run(captured), x)
    for runs in ([(1, 20)], [(2, 3), (1, 1), (0, 2), (2, 14)], [(0, 20)], [(1, 1), (2, 19)]):
        later = Segments.from_lengths([slot for slot, _ in runs], [length for _, length in runs])
        reserved.refill(later)
        wide = cast(weights, torch.float64, device)
        expected = on_a_copy(dispatch.bottleneck_, x.double(), later, wide, implementation="reference")
        assert_close(run(captured), expected)


def test_rows_of_an_adapter_above_the_room_come_out_as_nan(device):
    maker = WeightMaker()
    weights = cast([None, maker.bottleneck(17, 48), maker.bottleneck(16, 48)], torch.float32, device)
    x, segments = maker.rows(5, 48).to(device), Segments.from_lengths([1, 2], [2, 3])
    reserve(segments, torch.device(device), Room(max_segments=2, max_rank=16))
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    assert bool(y[:2].isnan().all())
    assert bool(y[2:].isfinite().all())


def test_what_was_uploaded_in_inference_mode_can_be_refilled_outside_it_and_no_new_height_appears_then():
    captured, later = Segments.from_lengths([1, 2], [20, 12]), Segments.from_lengths([3], [30])
    reserved = reserve(captured, CPU, Room(max_segments=4, max_rank=16))
    with torch.inference_mode():
        tiles = reserved.of(16)
    reserved.refill(later)
    assert tiles[:2].tolist() == [[3, 3, 0, 16], [3, 3, 16, 30]]
    assert tiles is reserved.of(16)
    with pytest.raises(ValueError, match="tiles of 32 rows"):
        reserved.of(32)
