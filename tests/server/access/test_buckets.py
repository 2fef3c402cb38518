"""A bucket that goes into debt: what it gives over time, whatever the clock does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.access.buckets import Bucket
from adamix_server.access.quotas import MAX_QUOTA

_AMOUNTS = st.floats(0, 1_000)


def test_it_is_open_while_anything_is_left_and_a_debt_closes_it_for_so_long() -> None:
    bucket = Bucket(rate=100.0, burst=100.0, now=0.0)
    assert bucket.take(99.0, 0.0)
    # One unit is left, so a call of any size is admitted, and paid for afterwards.
    assert bucket.take(301.0, 0.0)
    assert (bucket.level(0.0), bucket.used(0.0)) == (-300.0, 4.0)
    closed_s = bucket.closed_s(0.0)
    assert closed_s == pytest.approx(3.0, abs=0.002)
    assert not bucket.take(1.0, 2.999)
    assert bucket.take(1.0, closed_s)


@pytest.mark.parametrize("rate", [1 / 60, 1.0, 7.0, 1e4, float(MAX_QUOTA)])
def test_it_is_open_when_it_said_and_not_before(rate: float) -> None:
    bucket = Bucket(rate, rate, now=1e6)
    assert bucket.take(3 * rate, 1e6)
    closed_s = bucket.closed_s(1e6)
    assert closed_s is not None
    assert bucket.closed_s(1e6 + closed_s) == 0.0
    bucket = Bucket(rate, rate, now=1e6)
    assert bucket.take(3 * rate, 1e6)
    assert bucket.level(1e6 + closed_s - 0.01) <= 0


def test_a_rate_of_0_never_opens() -> None:
    bucket = Bucket(0.0, 0.0, now=0.0)
    assert not bucket.take(0.0, 1e9)
    assert bucket.closed_s(1e9) is None


def test_of_what_comes_in_whole_units_one_must_be_left() -> None:
    bucket = Bucket(3 / 60, 3.0, now=0.0, least=1.0)
    assert [bucket.take(1.0, 0.1 * i) for i in range(5)] == [True] * 3 + [False] * 2
    assert bucket.closed_s(0.4) == pytest.approx(20 - 0.4, abs=0.01)
    assert Bucket(0.0, 0.0, now=0.0, least=1.0).closed_s(9.0) is None


def test_it_lends_what_is_left_but_never_less_than_is_needed() -> None:
    bucket = Bucket(10.0, 10.0, now=0.0)
    assert bucket.lend(2.0, 8.0, 0.0) == 8.0
    assert bucket.lend(5.0, 9.0, 0.0) == 5.0  # 2 are left
    assert bucket.lend(1.0, 1.0, 0.0) == 0.0
    bucket.give(4.0)
    assert bucket.lend(0.5, 9.0, 0.0) == 1.0


def test_what_was_taken_and_not_used_comes_back_but_never_more_than_the_burst() -> None:
    bucket = Bucket(10.0, 10.0, now=0.0)
    assert bucket.take(1_000.0, 0.0)
    bucket.give(995.0)
    assert bucket.level(0.0) == 5.0
    bucket.give(1_000.0)
    assert bucket.level(0.0) == 10.0
    assert bucket.is_full(0.0)


def test_another_rate_counts_from_now_on_and_what_is_owed_stays() -> None:
    bucket = Bucket(10.0, 10.0, now=0.0)
    assert bucket.take(110.0, 0.0)
    bucket.reshape(100.0, 100.0, 1.0)  # 90 are owed by now
    assert bucket.closed_s(1.0) == pytest.approx(0.9, abs=0.002)
    bucket.reshape(5.0, 2.0, 3.0)
    assert bucket.level(3.0) == 2.0


@given(
    st.floats(0.1, 1e6),
    st.floats(1, 10),
    st.lists(st.tuples(st.floats(-1e6, 1e6), _AMOUNTS), max_size=50),
)
def test_it_never_gives_more_than_its_rate_its_burst_and_one_call(
    rate: float, burst_s: float, steps: list[tuple[float, float]]
) -> None:
    now, ahead_s, taken = 0.0, 0.0, 0.0
    bucket = Bucket(rate, rate * burst_s, now)
    for elapsed_s, units in steps:
        now += elapsed_s
        ahead_s += max(elapsed_s, 0.0)
        if bucket.take(units, now):
            taken += units
        assert taken <= (rate * burst_s + rate * ahead_s) * (1 + 1e-9) + 1_000


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_a_clock_that_jumps_does_no_harm(first: float, second: float) -> None:
    bucket = Bucket(10.0, 20.0, now=0.0)
    assert bucket.take(50.0, 0.0)
    for jump in (first, second):
        before = bucket.level(0.0)
        assert before <= bucket.level(jump) <= 20.0
    # From wherever the clock is, a second is worth a second.
    bucket = Bucket(10.0, 20.0, now=first)
    assert bucket.take(50.0, first)
    assert not bucket.take(1.0, second) or second > first + 2.9
