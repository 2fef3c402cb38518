"""What is asked follows its distributions, and the seed alone decides what it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_bench.serving.workload import Lengths, Requests, draw_arrivals, draw_tasks, draw_texts

COUNT = 40_000


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def requests_of(lengths: list[int]) -> Requests:
    token_ids = tuple(np.zeros(length, np.int32) for length in lengths)
    return Requests((0,) * len(lengths), ("",) * len(lengths), token_ids)


def test_lengths_are_lognormal_and_cut() -> None:
    drawn = Lengths().draw(COUNT, random())
    assert np.median(drawn) == pytest.approx(20, abs=0.6)
    assert drawn.min() == 4
    assert drawn.max() == 128
    inside = np.log(drawn[(drawn > 4) & (drawn < 128)])
    # Quartiles of a lognormal: median times e to the power of 0.674 sigma. Cutting moves no quartile.
    quartiles = np.quantile(drawn, [0.25, 0.75])
    np.testing.assert_allclose(quartiles, 20 * np.exp(np.array([-0.674, 0.674]) * 0.7), rtol=0.06)
    assert len(inside) > 0.97 * COUNT


def test_the_longest_is_the_backbones() -> None:
    assert Lengths(longest=30).draw(COUNT, random()).max() == 30


def test_distinct_gives_every_task_its_turn() -> None:
    tasks = draw_tasks("distinct", 35, 10, random())
    assert all(sorted(tasks[start : start + 10]) == list(range(10)) for start in (0, 10, 20))


def test_uniform_draws_each_task_alike() -> None:
    shares = np.bincount(draw_tasks("uniform", COUNT, 8, random()), minlength=8) / COUNT
    np.testing.assert_allclose(shares, 1 / 8, rtol=0.08)


def test_zipf_gives_the_second_task_half_of_the_first() -> None:
    counts = np.bincount(draw_tasks("zipf", COUNT, 100, random()), minlength=100)
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.08)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)


def test_identical_asks_one_task() -> None:
    assert set(draw_tasks("identical", 50, 10, random())) == {0}


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_variation(cv: float) -> None:
    arrivals = draw_arrivals(50.0, cv, COUNT, random())
    between = np.diff(arrivals, prepend=0.0)
    assert between.min() >= 0
    assert between.mean() == pytest.approx(1 / 50, rel=0.06)
    assert between.std() / between.mean() == pytest.approx(cv, rel=0.06, abs=1e-6)


def test_texts_have_the_words_for_their_lengths() -> None:
    texts = draw_texts(("red", "green", "blue"), [4, 9, 3], 2, random())
    assert [len(text.split()) for text in texts] == [2, 7, 1]
    assert {word for text in texts for word in text.split()} <= {"red", "green", "blue"}


def test_equal_seeds_draw_equals_and_other_seeds_do_not() -> None:
    for draw in (
        lambda seed: Lengths().draw(50, random(seed)),
        lambda seed: draw_tasks("zipf", 50, 9, random(seed)),
        lambda seed: draw_arrivals(10.0, 1.0, 50, random(seed)),
    ):
        np.testing.assert_array_equal(draw(3), draw(3))
        assert not np.array_equal(draw(3), draw(4))


@given(st.lists(st.integers(1, 128), min_size=1, max_size=200), st.integers(16, 512))
def test_batches_keep_the_order_and_the_budget(lengths: list[int], budget: int) -> None:
    batches = requests_of(lengths).batches(budget)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in batch) for batch in batches]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
    # No batch is cut before the next request would have gone over.
    firsts = [lengths[batch[0]] for batch in batches[1:]]
    assert all(size + first > budget for size, first in zip(sizes, firsts, strict=False))
