"""Segments, tile maps and padded layouts: every row is where it should be, exactly once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_kernels.segments import Segments

runs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=12)


def build(pairs):
    return Segments.from_lengths([slot for slot, _ in pairs], [length for _, length in pairs])


def rows_of(pairs):
    return [slot for slot, length in pairs for _ in range(length)]


@given(runs)
def test_lengths_and_rows_describe_the_same_segments(pairs):
    rows = rows_of(pairs)
    by_length, by_row = build(pairs), Segments.from_lengths(rows, [1] * len(rows))
    for segments in (by_length, by_row):
        assert np.repeat(segments.slots, segments.lengths).tolist() == rows
        assert segments.num_rows == len(rows)
        assert segments.max_slot == max(rows, default=0)
    assert by_length.indptr.tolist() == by_row.indptr.tolist()


@given(runs)
def test_neighbours_differ_and_no_segment_is_empty(pairs):
    segments = build(pairs)
    assert (np.diff(segments.slots) != 0).all()
    assert (segments.lengths > 0).all()


@given(runs)
def test_iteration_walks_the_rows_in_order(pairs):
    segments = build(pairs)
    walked = [slot for slot, start, end in segments for _ in range(start, end)]
    assert walked == rows_of(pairs)
    assert len(list(segments)) == len(segments)
    assert all(type(value) is int for run in segments for value in run)


@given(runs, st.integers(1, 12))
def test_tiles_cover_each_row_once_and_never_cross_a_segment(pairs, block_rows):
    segments = build(pairs)
    tiles = segments.tile_map(block_rows)
    heights = tiles.end_row - tiles.first_row
    assert ((heights >= 1) & (heights <= block_rows)).all()
    covered = [row for a, b in zip(tiles.first_row, tiles.end_row, strict=True) for row in range(a, b)]
    assert covered == list(range(segments.num_rows))
    assert np.repeat(tiles.slot, heights).tolist() == rows_of(pairs)
    assert {tiles.slot.dtype, tiles.first_row.dtype, tiles.end_row.dtype} == {np.dtype(np.int32)}
    assert len(tiles) == sum(-(-length // block_rows) for length in segments.lengths)


@given(runs, st.none() | st.integers(1, 12))
def test_padded_index_lists_the_rows_of_all_adapters_once(pairs, block_rows):
    segments = build(pairs)
    padded = segments.padded_index(block_rows)
    assert padded.index[padded.mask].tolist() == [row for row, slot in enumerate(rows_of(pairs)) if slot]
    segment_of_row = np.repeat(np.arange(len(segments)), segments.lengths)
    assert (segment_of_row[padded.index] == padded.segment[:, None]).all()
    if block_rows is None:
        assert len(padded.index) == np.count_nonzero(segments.slots)


pairs_of_slots = st.lists(
    st.tuples(st.sampled_from([(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)]), st.integers(0, 9)), max_size=12
)


@given(pairs_of_slots, st.integers(1, 12))
def test_up_slots_follow_their_rows_through_merging_and_tiling(runs, block_rows):
    downs, ups = [down for (down, _), _ in runs], [up for (_, up), _ in runs]
    segments = Segments.from_lengths(downs, [length for _, length in runs], ups)
    rows = [pair for pair, length in runs for _ in range(length)]
    assert [pair for pair, length in zip(segments.pairs, segments.lengths, strict=True) for _ in range(length)] == rows
    assert all(left != right for left, right in itertools.pairwise(segments.pairs))
    assert segments.has_own_up_slots == any(down != up for down, up in rows)
    assert segments.max_slot == max((slot for pair in rows for slot in pair), default=0)
    tiles = segments.tile_map(block_rows)
    heights = tiles.end_row - tiles.first_row
    assert np.repeat(tiles.slot, heights).tolist() == [down for down, _ in rows]
    assert np.repeat(tiles.up_slot, heights).tolist() == [up for _, up in rows]
    assert tiles.up_slot.dtype == np.int32


def test_without_up_slots_both_projections_are_of_one_slot():
    segments = Segments.from_lengths([2, 0, 1], [1, 2, 3])
    assert not segments.has_own_up_slots
    assert segments.pairs == [(2, 2), (0, 0), (1, 1)]


@pytest.mark.parametrize(("slots", "up_slots"), [([1, 0], [1, 2]), ([1, 2], [1, 0]), ([1, 2], [1]), ([1, 2], [1, -1])])
def test_up_slots_that_do_not_go_with_the_slots_are_refused(slots, up_slots):
    with pytest.raises(ValueError, match=r"up_slots must name|slots must be in"):
        Segments(np.array(slots), np.array([0, 1, 2]), np.array(up_slots))


def test_padded_index_of_chosen_segments_repeats_the_last_row_of_a_tile():
    segments = Segments.from_lengths([3, 1, 2], [2, 4, 5])
    padded = segments.padded_index(3, keep=[0, 2])
    assert padded.index.tolist() == [[0, 1, 1], [6, 7, 8], [9, 10, 10]]
    assert padded.mask.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert padded.segment.tolist() == [0, 2, 2]


def test_equal_neighbours_given_directly_stay_apart():
    segments = Segments(np.array([1, 1]), np.array([0, 2, 3]))
    assert list(segments) == [(1, 0, 2), (1, 2, 3)]


def test_the_arrays_are_private_and_read_only():
    slots = np.array([1, 2])
    segments = Segments(slots, np.array([0, 1, 2]))
    slots[0] = 7
    assert segments.slots.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        segments.slots[0] = 7


@pytest.mark.parametrize(
    ("slots", "indptr", "message"),
    [
        ([1], [0, 1, 2], "3 entries"),
        ([], [], "0 entries"),
        ([1], [0, 0], "rise strictly"),
        ([1], [1, 2], "rise strictly"),
        ([1, 2], [0, 2, 1], "rise strictly"),
        ([1], [0, 2**31], "rise strictly"),
        ([-1], [0, 1], "slots must be"),
        ([2**31], [0, 1], "slots must be"),
        ([1.5], [0, 1], "array of integers"),
        ([True], [0, 1], "array of integers"),
        ([[1]], [0, 1], "one-dimensional"),
    ],
)
def test_malformed_arrays_are_refused(slots, indptr, message):
    with pytest.raises(ValueError, match=message):
        Segments(np.array(slots), np.array(indptr))


def test_negative_lengths_and_unequal_lists_are_refused():
    with pytest.raises(ValueError, match="negative"):
        Segments.from_lengths([1, 2], [3, -1])
    with pytest.raises(ValueError, match="2 slots but 1 lengths"):
        Segments.from_lengths([1, 2], [3])
    with pytest.raises(ValueError, match="slots must be"):
        Segments.from_lengths([0, -1], [1, 1])


def test_a_tile_needs_at_least_one_row():
    with pytest.raises(ValueError, match="block_rows"):
        Segments.from_lengths([1], [1]).tile_map(0)
