"""How far probabilities can be trusted: calibration errors, proper scores, and what random routes disagree about.

Pure arithmetic in fp64 on logits and targets; knows neither models nor where logits came from. A regression's head puts
out a number and no distribution: without an assumed variance it has no calibration, and only the spread of its values
over routes is reported.

Sources: expected calibration error, Guo et al. 2017 (arXiv 1706.04599, equation 3), over bins of equal width, or of
equal count (Nguyen and O'Connor 2015, arXiv 1508.05154); Brier's score, Brier 1950; random routes as samples of a
posterior, as Gal and Ghahramani 2016 (arXiv 1506.02142) read dropout; mutual information, Houlsby et al. 2011 (arXiv
1112.5745).

Shapes: S routes, N rows, C classes, E events (what has one probability and either happens or not).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamix.data.task import TaskType

DEFAULT_BINS = 15


@dataclass(frozen=True)
class Bin:
    """Events of like confidence.

    Attributes:
        count: events in the bin.
        confidence: their mean probability.
        frequency: the share of them that happened.
    """

    count: int
    confidence: float
    frequency: float


@dataclass(frozen=True)
class Calibration:
    """How probabilities compare with what happened.

    Of a classification the events are "the likeliest class is the right one", one for each row. Of a multi-label task
    they are "this label holds", one for each row and label: a label is a coin of its own.

    Attributes:
        ece: expected calibration error, `sum_b n_b/E * |frequency_b - confidence_b|`.
        nll: mean of `-log p(target)`, in nats.
        brier: mean of `sum_c (p_c - [target is c])^2`, from 0 to 2; of a multi-label task the mean of `(p - y)^2` over
            rows and labels, from 0 to 1.
        accuracy: share of right decisions; of a multi-label task over rows and labels, at a probability of 1/2.
        bins: those that are not empty, least confident first.
    """

    ece: float
    nll: float
    brier: float
    accuracy: float
    bins: tuple[Bin, ...]

    def numbers(self) -> dict[str, float]:
        """All but the bins."""
        return {"ece": self.ece, "nll": self.nll, "brier": self.brier, "accuracy": self.accuracy}


def calibrate(
    task_type: TaskType,
    logits: NDArray[Any],
    targets: NDArray[Any],
    *,
    num_bins: int = DEFAULT_BINS,
    adaptive: bool = False,
) -> Calibration:
    """Compare the probabilities of logits `[N, C]` with class ids `[N]`, or with zeros and ones `[N, C]`.

    Args:
        adaptive: bins of equal count instead of equal width.

    Raises:
        ValueError: a regression has no probabilities; or there are no rows.
    """
    logs = log_probabilities(task_type, logits)
    if not len(logs):
        raise ValueError("there are no rows to calibrate on")
    chances = np.exp(logs)
    if task_type == "multilabel":
        holds = np.asarray(targets, dtype=bool)
        confidence, happened = chances[..., 1].reshape(-1), holds.reshape(-1)
        nll = -np.where(holds, logs[..., 1], logs[..., 0]).mean()
        brier = np.mean((confidence - happened) ** 2)
        accuracy = np.mean((confidence >= 0.5) == happened)
    else:
        rows = np.arange(len(logs))
        predicted = np.argmax(logits, axis=-1)
        confidence, happened = chances[rows, predicted], predicted == targets
        nll = -logs[rows, targets].mean()
        brier = np.mean(np.sum((chances - np.eye(chances.shape[1])[targets]) ** 2, axis=1))
        accuracy = happened.mean()
    bins = reliability_bins(confidence, happened, num_bins=num_bins, adaptive=adaptive)
    ece = sum(b.count * abs(b.frequency - b.confidence) for b in bins) / len(confidence)
    return Calibration(float(ece), float(nll), float(brier), float(accuracy), bins)


def reliability_bins(
    confidence: NDArray[np.float64], happened: NDArray[np.bool_], *, num_bins: int, adaptive: bool = False
) -> tuple[Bin, ...]:
    """Events `[E]` by confidence, without the empty bins.

    Bins of equal width are `((b-1)/B, b/B]`, as in Guo et al.; probability 0 belongs to the first. Those of equal count
    cut the sorted events into B parts that differ by one event at most, and part equal confidences where they must.
    """
    if adaptive:
        members = np.array_split(np.argsort(confidence, kind="stable"), num_bins)
    else:
        # The bounds as fractions, not b * width: a confidence that is a bound must compare equal to it.
        index = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")
        members = [np.flatnonzero(index == number) for number in range(num_bins)]
    return tuple(
        Bin(len(chosen), float(confidence[chosen].mean()), float(happened[chosen].mean()))
        for chosen in members
        if len(chosen)
    )


@dataclass(frozen=True)
class Disagreement:
    """What random routes know and where they differ: means over rows (and labels), in nats.

    Attributes:
        predictive_entropy: of the mean probabilities: all uncertainty.
        expected_entropy: mean of each route's entropy: what the routes agree is uncertain.
        mutual_information: the difference, between an event and the route: what they disagree about. Never negative.
    """

    predictive_entropy: float
    expected_entropy: float
    mutual_information: float

    def numbers(self) -> dict[str, float]:
        return {
            "predictive_entropy": self.predictive_entropy,
            "expected_entropy": self.expected_entropy,
            "mutual_information": self.mutual_information,
        }


def disagreement(task_type: TaskType, routes: NDArray[Any]) -> Disagreement:
    """The uncertainty of logits `[S, N, C]` by routes that are equally likely. Raises ValueError for a regression."""
    logs = log_probabilities(task_type, routes)
    mean = np.exp(logs).mean(0)
    # A mean of fp64 probabilities may underflow to 0, and 0 log 0 is 0.
    total = -np.sum(mean * np.log(np.where(mean > 0, mean, 1.0)), axis=-1).mean()
    expected = -np.sum(np.exp(logs) * logs, axis=-1).mean()
    return Disagreement(float(total), float(expected), max(0.0, float(total - expected)))


def spread(values: NDArray[Any]) -> dict[str, float]:
    """Of a regression's values `[S, N]` by S >= 2 routes: the standard deviation over routes, its mean and largest."""
    deviations = np.asarray(values, dtype=np.float64).std(axis=0, ddof=1)
    return {"mean_deviation": float(deviations.mean()), "largest_deviation": float(deviations.max())}


def log_probabilities(task_type: TaskType, logits: NDArray[Any]) -> NDArray[np.float64]:
    """fp64, of the same shape as logits `[..., C]`; of a multi-label task `[..., C, 2]`: it does not hold, it holds.

    Raises:
        ValueError: a regression has no probabilities.
    """
    if task_type == "regression":
        raise ValueError("a regression's head puts out values, which have no probabilities")
    values = np.asarray(logits, dtype=np.float64)
    if task_type == "multilabel":
        # log(1 / (1 + e^-z)) = -log(e^0 + e^-z)
        return np.stack([-np.logaddexp(0.0, values), -np.logaddexp(0.0, -values)], axis=-1)
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
