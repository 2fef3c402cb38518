"""The measured rate of an engine: what full batches took, weighted by tokens."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.engine.token_rate import HALF_LIFE_TOKENS, TokenRate

rates = st.floats(1.0, 1e6)
full_batches = st.lists(st.tuples(st.integers(512, 1024), rates), max_size=50)


def after(first: float, batches: list[tuple[int, float]]) -> float:
    rate = TokenRate(first, full_tokens=1024)
    for num_tokens, tokens_per_s in batches:
        rate.add(num_tokens, num_tokens / tokens_per_s)
    return rate.tokens_per_s


@given(rates, full_batches)
def test_it_lies_among_what_was_measured(first: float, batches: list[tuple[int, float]]) -> None:
    seen = [first, *(tokens_per_s for _, tokens_per_s in batches)]
    assert min(seen) * (1 - 1e-9) <= after(first, batches) <= max(seen) * (1 + 1e-9)


@given(rates, rates)
def test_half_of_what_a_token_takes_is_of_the_last_half_life(before: float, since: float) -> None:
    found = after(before, [(1024, since)] * (HALF_LIFE_TOKENS // 1024))
    assert 1 / found == pytest.approx((1 / before + 1 / since) / 2)


@given(rates, st.integers(512, 1024), rates)
def test_tokens_count_and_not_batches(first: float, num_tokens: int, tokens_per_s: float) -> None:
    whole, halves = TokenRate(first, 512), TokenRate(first, 512)
    seconds = num_tokens / tokens_per_s
    whole.add(2 * num_tokens, 2 * seconds)
    halves.add(num_tokens, seconds)
    halves.add(num_tokens, seconds)
    assert whole.tokens_per_s == pytest.approx(halves.tokens_per_s)


@given(rates, st.integers(1, 511), st.floats(1e-6, 1e3))
def test_a_batch_less_than_half_full_says_nothing(first: float, num_tokens: int, seconds: float) -> None:
    rate = TokenRate(first, full_tokens=1024)
    rate.add(num_tokens, seconds)
    assert rate.tokens_per_s == pytest.approx(first)


def test_a_batch_that_left_work_over_says_how_fast_the_engine_is() -> None:
    rate = TokenRate(1000.0, full_tokens=1024)
    for _ in range(1000):
        rate.add(300, 0.04, is_behind=True)
    assert rate.tokens_per_s == pytest.approx(7500.0)


def test_a_batch_half_full_says_something() -> None:
    rate = TokenRate(1000.0, full_tokens=1024)
    rate.add(512, 0.0)  # a clock too coarse to see it
    assert rate.tokens_per_s == pytest.approx(1000.0)
    rate.add(512, 1.0)
    assert rate.tokens_per_s < 1000.0


@given(rates, st.integers(0, 1 << 30))
def test_waits_are_sums_of_tokens(tokens_per_s: float, num_tokens: int) -> None:
    assert TokenRate(tokens_per_s, 1).seconds(num_tokens) == pytest.approx(num_tokens / tokens_per_s)


@pytest.mark.parametrize("tokens_per_s", [0.0, -1.0, math.nan])
def test_an_engine_computes_something(tokens_per_s: float) -> None:
    with pytest.raises(ValueError, match="computes none"):
        TokenRate(tokens_per_s, 1024)


def test_steps_in_which_nothing_left_the_queue_count_to_the_next_one() -> None:
    whole, parts = TokenRate(1000.0, 1024), TokenRate(1000.0, 1024)
    whole.add(100, 5.0, is_behind=True)
    for seconds in (2.0, 1.5, 0.5):
        parts.add(0, seconds, is_behind=True)
    parts.add(100, 1.0, is_behind=True)
    assert parts.tokens_per_s == pytest.approx(whole.tokens_per_s)


def test_steps_in_which_nothing_waited_do_not() -> None:
    whole, parts = TokenRate(1000.0, 1024), TokenRate(1000.0, 1024)
    whole.add(100, 1.0, is_behind=True)
    parts.add(0, 2.0, is_behind=True)
    parts.add(0, 1.0)
    parts.add(100, 1.0, is_behind=True)
    assert parts.tokens_per_s == whole.tokens_per_s
