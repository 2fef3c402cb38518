"""What a draw of routes may and may not depend on."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adamix.routing.routing import draw_route, draw_token_routes
from adamix.rows.labelled import TokenRow


def test_draws_are_uniform_and_independent() -> None:
    """Over seeds: every expert at every projection equally often, and down and up of a point in every pair."""
    routes = np.stack([draw_route(seed, 3, 4) for seed in range(2000)])
    assert routes.shape == (2000, 3, 2)
    for column in routes.reshape(2000, 6).T:
        assert stats.chisquare(np.bincount(column, minlength=4)).pvalue > 1e-4
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (routes[:, 0, 0], routes[:, 0, 1]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 1e-4


def test_texts_and_tokens_are_drawn_independently() -> None:
    """Neighbours in every pair equally often: rows of one seed, tokens of a row, and the same row by two seeds."""
    rows = [TokenRow((4, 5 + number, 6), None, False) for number in range(2001)]
    texts = draw_token_routes(0, rows, 1, 4, "sentence")[:, 0, 0, 0]
    tokens = draw_token_routes(0, rows, 1, 4, "token")[:, :, 0, 0]
    other = draw_token_routes(1, rows, 1, 4, "token")[:, 0, 0, 0]
    for first, second in ((texts[1:], texts[:-1]), (tokens[:, 0], tokens[:, 1]), (tokens[:, 0], other)):
        pairs = np.zeros((4, 4))
        np.add.at(pairs, (first, second), 1)
        assert stats.chisquare(pairs.reshape(-1)).pvalue > 1e-4


def test_draws_are_the_same_on_every_machine() -> None:
    """Published figures are drawn by seeds: another version of a library must not change them."""
    assert draw_route(0, 2, 4).tolist() == [[1, 2], [3, 1]]
    (tokens,) = draw_token_routes(7, [TokenRow((2, 9, 3), None, False)], 1, 8, "token").tolist()
    assert tokens == [[[1, 3]], [[0, 7]], [[2, 6]]]


@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    num_experts=st.integers(1, 9),
    num_points=st.integers(0, 3),
)
def test_a_row_is_drawn_alone(seed: int, lengths: list[int], num_experts: int, num_points: int) -> None:
    rows = [TokenRow(tuple(range(4 + i, 4 + i + n)), None, False) for i, n in enumerate(lengths)]
    for granularity in ("sentence", "token"):
        routes = draw_token_routes(seed, rows, num_points, num_experts, granularity)
        assert routes.shape == (len(rows), max(lengths), num_points, 2)
        assert routes.size == 0 or (routes.min() >= 0 and routes.max() < num_experts)
        for index, row in enumerate(rows):
            (alone,) = draw_token_routes(seed, [row], num_points, num_experts, granularity)
            assert np.array_equal(routes[index, : len(row)], alone)
            if granularity == "sentence":
                assert np.array_equal(alone, np.broadcast_to(alone[:1], alone.shape))
