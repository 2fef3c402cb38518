"""The mean over routes of what a language model says of each token, without all routes' scores at once.

Scores are added one route after the other: together they would be routes times target tokens times the vocabulary.
Pure arithmetic; knows neither models nor routes.

Shapes: T target tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor


class MeanLogits:
    """The mean over routes of fp32 logits `[T, V]`."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, logits: Tensor) -> None:
        """One more route; the tensor is used up."""
        self._sum = logits if self._sum is None else self._sum.add_(logits)
        self._count += 1

    def logits(self) -> Tensor:
        """Of at least one route."""
        if self._sum is None:
            raise ValueError("a mean of no routes")
        return self._sum / self._count


class MeanProbabilities:
    """The mean over routes of the probabilities of fp32 logits `[T, V]`.

    Args:
        targets: int64 `[T]`. Their probabilities are averaged in fp64 from logarithms: in fp32 the mean of small ones
            would be 0, and its logarithm infinite.
    """

    def __init__(self, targets: Tensor) -> None:
        self._targets = targets.unsqueeze(-1)
        self._target_logs: list[Tensor] = []
        self._sum: Tensor | None = None
        self._entropy = 0.0

    def add(self, logits: Tensor) -> None:
        """One more route."""
        logs = logits.log_softmax(-1)
        self._target_logs.append(logs.gather(-1, self._targets).squeeze(-1).double())
        chances = logs.exp_()
        self._entropy += _entropy(chances)
        self._sum = chances if self._sum is None else self._sum.add_(chances)

    def losses(self) -> Tensor:
        """`-log` of the mean probability of each target, fp64 `[T]`."""
        logs = torch.stack(self._target_logs)
        return math.log(len(logs)) - logs.logsumexp(0)

    def likeliest(self) -> Tensor:
        """The token of the largest mean probability, int64 `[T]`."""
        return self._total().argmax(-1)

    def predictive_entropy(self) -> float:
        """Of the mean probabilities, summed over target tokens, in nats."""
        return _entropy(self._total() / len(self._target_logs))

    def expected_entropy(self) -> float:
        """The mean over routes of each one's entropy, summed over target tokens, in nats."""
        return self._entropy / len(self._target_logs)

    def _total(self) -> Tensor:
        if self._sum is None:
            raise ValueError("a mean of no routes")
        return self._sum


def _entropy(chances: Tensor) -> float:
    return float(torch.special.entr(chances).sum(-1).double().sum())
