"""When callers are told to come back: estimates, in the order in which they will be met."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server import retry
from adamix_server.retry import MAX_S, MIN_S, Lasting, RoomTurns

seconds = st.floats(0.0, 1e5)
sizes = st.integers(1, 512)


@given(seconds)
def test_chance_moves_an_estimate_by_a_fifth_at_most(estimate: float) -> None:
    assert 0.8 * estimate <= retry.jittered(estimate) <= 1.2 * estimate


@given(seconds)
def test_what_is_known_is_never_moved_to_sooner(known: float) -> None:
    assert known <= retry.delayed(known) <= 1.2 * known


def test_chance_moves_it() -> None:
    assert min(len({move(1.0) for _ in range(20)}) for move in (retry.jittered, retry.delayed)) > 1


def test_nobody_asks_for_who_is_awaited_before_he_is_expected() -> None:
    found = retry.until_back(now=100.0, since=98.0, expected=106.0)
    assert 0.8 * found == pytest.approx(6.0)


@given(seconds, seconds)
def test_who_is_late_is_given_a_third_as_long_again(away: float, late: float) -> None:
    found = retry.until_back(now=away + late, since=0.0, expected=away)
    assert found == pytest.approx(min(max((away + late) / 3, MIN_S), MAX_S))


@given(st.floats(0.1, 15.0), st.floats(1.0, 2.0), st.data())
def test_five_tries_meet_who_needs_up_to_twice_as_long_as_expected(
    expected: float, factor: float, data: st.DataObject
) -> None:
    now = 0.0
    for _ in range(4):
        now += data.draw(st.floats(0.8, 1.2)) * retry.until_back(now, since=0.0, expected=expected)
    assert now >= factor * expected


@given(st.floats(1.0, 20.0), seconds)
def test_who_stands_still_is_given_as_long_again_but_not_beyond_his_replacement(still: float, left: float) -> None:
    found = retry.until_moving(now=1000.0, since=1000.0 - still, expected=1000.0 + left)
    assert found <= still + 1e-6
    assert found <= max(retry.until_back(1000.0, 1000.0 - still, 1000.0 + left), MIN_S)
    assert retry.until_moving(now=1000.0, since=1000.0 - still, expected=1000.0 + still) == pytest.approx(still)


def test_the_longer_a_trouble_has_lasted_the_longer_it_is_left_alone() -> None:
    trouble = Lasting()
    assert trouble.next(100.0) == 1.0
    assert trouble.next(101.0) == 1.0
    assert [trouble.next(100.0 + lasted) for lasted in (12.0, 30.0, 60.0)] == pytest.approx([4.0, 10.0, 20.0])
    assert [trouble.next(100.0 + lasted) for lasted in (89.0, 118.0)][-1] == MAX_S
    # It had ended, and begins anew.
    assert trouble.next(218.0 + MAX_S + 1.0) == 1.0


def advice(turns: RoomTurns, now: float, size: int, *, own: int = 10_000, queued: int = 10_000, rate: float) -> float:
    return turns.next(now, size, own=own, queued=queued, per_s=rate, batch=100)


@given(st.lists(sizes, min_size=2, max_size=40), st.floats(100.0, 1e5))
def test_each_comes_after_those_that_were_refused_before(refused: list[int], rate: float) -> None:
    turns = RoomTurns()
    told = [advice(turns, 50.0, size, rate=rate) for size in refused]
    assert all(earlier <= later for earlier, later in pairwise(told))
    # The room of all of them together has been freed by the last one's turn; or all of the room there is.
    everything = min(sum(refused) / rate, max(10_000 / rate, 5.0))
    assert told[-1] == pytest.approx(min(max(everything + 100 / rate, MIN_S), MAX_S))


@given(sizes, st.integers(1, 100_000), st.integers(1, 100_000), st.floats(1.0, 1e5))
def test_the_longer_the_queue_and_the_slower_the_engine_the_later(
    size: int, own: int, others: int, rate: float
) -> None:
    alone = advice(RoomTurns(), 0.0, size, own=own, queued=own, rate=rate)
    beside_others = advice(RoomTurns(), 0.0, size, own=own, queued=own + others, rate=rate)
    slower = advice(RoomTurns(), 0.0, size, own=own, queued=own, rate=rate / 2)
    assert alone <= beside_others
    assert alone <= slower
    assert MIN_S <= alone <= MAX_S


def test_turns_that_have_passed_hold_nobody_up() -> None:
    turns = RoomTurns()
    first = advice(turns, 0.0, 200, rate=100.0)
    assert first == pytest.approx(2.0 + 1.0)
    assert advice(turns, 60.0, 200, rate=100.0) == pytest.approx(first)


@pytest.mark.parametrize(("queued", "longest"), [(1000, 10.0), (100, 5.0)])
def test_nobody_waits_for_longer_than_until_the_room_is_empty_or_some_seconds(queued: int, longest: float) -> None:
    turns = RoomTurns()
    told = [advice(turns, 0.0, 100, own=queued, queued=queued, rate=100.0) for _ in range(50)]
    assert max(told) == pytest.approx(longest + 1)


def test_a_queue_that_was_never_measured_is_asked_again_in_a_second() -> None:
    assert advice(RoomTurns(), 0.0, 10, rate=0.0) == 1.0
