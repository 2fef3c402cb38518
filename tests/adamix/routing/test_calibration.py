"""Calibration by hand: small cases with pencil and paper, and what must hold for any probabilities."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adamix.routing.calibration import (
    Bin,
    calibrate,
    disagreement,
    log_probabilities,
    reliability_bins,
    spread,
)

_LOGITS = arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 4)),
    elements=st.floats(-30, 30),
)


def _logits(*probabilities: list[float]) -> Any:
    return np.log(np.array(probabilities))


def test_four_rows_by_hand() -> None:
    """Confidences 0.8, 0.8, 0.6, 0.6 of which right: yes, no, yes, no."""
    logits = _logits([0.8, 0.2], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4])
    found = calibrate("classification", logits, np.array([0, 0, 0, 1]), num_bins=10)
    # Two bins of two events, each half right: (2/4) |0.5 - 0.6| + (2/4) |0.5 - 0.8|.
    assert found.ece == pytest.approx(0.2)
    assert found.nll == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6) + math.log(0.4)) / 4)
    # A row adds (1 - p)^2 for its class and p^2 for the other.
    assert found.brier == pytest.approx((2 * 0.2**2 + 2 * 0.8**2 + 2 * 0.4**2 + 2 * 0.6**2) / 4)
    assert found.accuracy == 0.5
    assert [(b.count, b.frequency) for b in found.bins] == [(2, 0.5), (2, 0.5)]
    assert [b.confidence for b in found.bins] == pytest.approx([0.6, 0.8])


def test_a_class_among_three_by_hand() -> None:
    found = calibrate("classification", _logits([0.5, 0.3, 0.2]), np.array([1]))
    assert found.brier == pytest.approx(0.5**2 + 0.7**2 + 0.2**2)
    assert found.nll == pytest.approx(-math.log(0.3))
    assert (found.accuracy, found.ece) == (0.0, pytest.approx(0.5))


def test_labels_are_coins_of_their_own() -> None:
    """Two rows of two labels with probabilities 0.9, 0.2 and 0.4, 0.9; they hold: yes, no and yes, yes."""
    chances = np.array([[0.9, 0.2], [0.4, 0.9]])
    found = calibrate("multilabel", np.log(chances / (1 - chances)), np.array([[1, 0], [1, 1]]), num_bins=10)
    assert found.nll == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.9)) / 4)
    assert found.brier == pytest.approx((0.1**2 + 0.2**2 + 0.6**2 + 0.1**2) / 4)
    assert found.accuracy == 0.75
    # Bins of 0.2 (frequency 0), 0.4 (frequency 1) and 0.9 twice (frequency 1).
    assert found.ece == pytest.approx((0.2 + 0.6 + 2 * 0.1) / 4)


def test_bounds_belong_to_the_bin_below() -> None:
    """Guo et al.: bin b is ((b-1)/B, b/B]."""
    confidence = np.array([0.0, 0.2, 0.2 + 1e-12, 0.6, 1.0])
    bins = reliability_bins(confidence, np.ones(5, dtype=bool), num_bins=5)
    assert [b.count for b in bins] == [2, 1, 1, 1]
    # 3/15 and 0.2 are the same number; 3 * (1/15) would not be.
    assert len(reliability_bins(np.array([0.15, 3 / 15]), np.ones(2, dtype=bool), num_bins=15)) == 1


def test_adaptive_bins_have_equal_counts() -> None:
    confidence = np.array([0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.5])
    happened = np.array([1, 1, 1, 0, 1, 1, 0], dtype=bool)
    bins = reliability_bins(confidence, happened, num_bins=3, adaptive=True)
    assert [b.count for b in bins] == [3, 2, 2]
    assert bins[0] == Bin(3, pytest.approx((0.5 + 0.9 + 0.91) / 3), pytest.approx(2 / 3))
    assert [b.frequency for b in bins[1:]] == [0.5, 1.0]
    # Fewer events than bins leave the rest out.
    assert len(reliability_bins(confidence[:2], happened[:2], num_bins=15, adaptive=True)) == 2


def test_many_honest_forecasts_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40_000, 3))
    chances = np.exp(log_probabilities("classification", logits))
    targets = (chances.cumsum(1) < rng.random((40_000, 1))).sum(1)
    for adaptive in (False, True):
        # About sqrt(p(1-p)/n) for each of 15 bins of some 2,700 events: 0.01.
        assert calibrate("classification", logits, targets, adaptive=adaptive).ece < 0.01
    assert calibrate("classification", 3 * logits, targets).ece > 0.1


@given(_LOGITS, st.booleans(), st.integers(1, 20))
def test_what_holds_of_any_forecast(logits: Any, adaptive: bool, num_bins: int) -> None:
    rows = logits[0]
    targets = np.arange(len(rows)) % rows.shape[1]
    found = calibrate("classification", rows, targets, num_bins=num_bins, adaptive=adaptive)
    assert 0 <= found.ece <= 1
    assert found.nll >= -1e-12
    assert -1e-12 <= found.brier <= 2 + 1e-12
    assert sum(b.count for b in found.bins) == len(rows)
    mean = sum(b.count * b.frequency for b in found.bins) / len(rows)
    assert mean == pytest.approx(found.accuracy)
    # In one bin it is the difference of mean confidence and accuracy; finer bins cannot cancel more.
    coarse = calibrate("classification", rows, targets, num_bins=1).ece
    assert found.ece >= coarse - 1e-9
    order = np.arange(len(rows))[::-1]
    shifted = rows[order] + 5.0
    assert calibrate("classification", shifted, targets[order]).nll == pytest.approx(found.nll, abs=1e-9)


def test_certain_and_wrong_is_a_finite_number() -> None:
    found = calibrate("classification", np.array([[2000.0, -2000.0]]), np.array([1]))
    assert found.numbers() == {"ece": 1.0, "nll": 4000.0, "brier": 2.0, "accuracy": 0.0}
    assert calibrate("multilabel", np.array([[-2000.0]]), np.array([[1]])).nll == 2000.0


def test_two_routes_by_hand() -> None:
    """One sure of each class, the other one undecided, both about one row."""
    routes = _logits([0.9, 0.1], [0.5, 0.5])[:, None]
    found = disagreement("classification", routes)

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    assert found.predictive_entropy == pytest.approx(entropy(0.7))
    assert found.expected_entropy == pytest.approx((entropy(0.9) + entropy(0.5)) / 2)
    assert found.mutual_information == pytest.approx(entropy(0.7) - (entropy(0.9) + entropy(0.5)) / 2)
    # The same as one label: the logit of p is log p - log(1 - p).
    label = disagreement("multilabel", routes[..., :1] - routes[..., 1:])
    assert label.numbers() == pytest.approx(found.numbers())


def test_routes_that_contradict_one_another_share_one_bit() -> None:
    opposed = np.array([[[900.0, 0.0]], [[0.0, 900.0]]])
    found = disagreement("classification", opposed)
    assert found.expected_entropy == 0.0
    assert found.mutual_information == pytest.approx(math.log(2))


@given(_LOGITS, st.sampled_from(["classification", "multilabel"]))
def test_disagreement_is_bounded(routes: Any, task_type: Any) -> None:
    found = disagreement(task_type, routes)
    outcomes = routes.shape[-1] if task_type == "classification" else 2
    assert 0 <= found.mutual_information <= min(math.log(outcomes), math.log(len(routes)) + 1e-9) + 1e-9
    assert found.predictive_entropy <= math.log(outcomes) + 1e-9
    agreed = disagreement(task_type, np.stack([routes[0]] * 3))
    assert agreed.mutual_information == pytest.approx(0.0, abs=1e-9)


def test_the_spread_of_values() -> None:
    assert spread(np.array([[1.0, 5.0], [3.0, 5.0]])) == {
        "mean_deviation": pytest.approx(math.sqrt(2) / 2),
        "largest_deviation": pytest.approx(math.sqrt(2)),
    }


def test_what_has_no_probabilities_is_refused() -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        calibrate("regression", np.zeros((2, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="no rows"):
        calibrate("classification", np.zeros((0, 2)), np.zeros(0, dtype=int))
