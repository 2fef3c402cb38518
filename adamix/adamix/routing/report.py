"""What random routes and ensembles of a mixture say beside its merged adapter: spread of metrics, and calibration.

Measures by a probe, of labelled text (`MixtureProbe`) or of texts to be written (`TextProbe`); knows no terminal and
no files.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from adamix.evaluation.labelled import Evaluation
from adamix.generation.evaluation import TextEvaluation
from adamix.routing.calibration import Calibration, Disagreement, calibrate, disagreement, spread
from adamix.routing.choice import Routing
from adamix.routing.probe import MixtureProbe
from adamix.routing.routing import average
from adamix.routing.text_probe import TextProbe, TokenEvaluation

MONTE_CARLO = Routing("random")


class Measured(Protocol):
    """What was measured on one data set.

    Attributes:
        rows: examples, or sources of texts.
        truncated: of these, how many were cut.
    """

    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def rows(self) -> int: ...
    @property
    def truncated(self) -> int: ...


Result = TypeVar("Result", bound=Measured)
Result_co = TypeVar("Result_co", bound=Measured, covariant=True)


class Probe(Protocol[Result_co]):
    """One mixture on one data set, to be measured by many routes."""

    def evaluate(self, routing: Routing, seed: int = 0) -> Result_co:
        """Measure by one routing; `seed` is of a random one."""


@dataclass(frozen=True)
class Summary:
    """One metric over several draws. `std` is the sample's standard deviation; None of a single draw."""

    mean: float
    std: float | None
    minimum: float
    maximum: float


@dataclass(frozen=True)
class DrawsReport(Generic[Result]):
    """Draws of a random routing, and the merged adapter on the same rows.

    Attributes:
        draws: the metrics by seed, from 0 on.
        first: the whole of the first draw.
    """

    routing: Routing
    draws: tuple[dict[str, float], ...]
    first: Result
    merged: Result

    def summary(self) -> dict[str, Summary]:
        """Over the draws, by metric."""
        return {name: summarise(draw[name] for draw in self.draws) for name in self.merged.metrics}

    def document(self) -> dict[str, Any]:
        """For JSON; `metrics` are means over the draws."""
        summary = self.summary()
        return {
            "metrics": {name: value.mean for name, value in summary.items()},
            "rows": self.merged.rows,
            "truncated": self.merged.truncated,
            "routing": str(self.routing),
            "draws": [{"seed": seed, "metrics": draw} for seed, draw in enumerate(self.draws)],
            "summary": {
                name: {"mean": s.mean, "std": s.std, "min": s.minimum, "max": s.maximum} for name, s in summary.items()
            },
            "merged": self.merged.metrics,
        }


@dataclass(frozen=True)
class EnsembleReport(Generic[Result]):
    """An ensemble of paths, and how the ways to average experts compare in their probabilities.

    Attributes:
        ensemble: as the routing says.
        num_routes: random routes of the Monte-Carlo estimate, by seeds from 0 on.
        calibration: of `merged`, `ensemble-paired` and `ensemble-all` (mean probabilities over the paths), and
            `monte-carlo` (over the random routes); empty for a regression and for texts.
        disagreement: of the random routes; None for a regression.
        spread: of a regression's values over the random routes; empty for other tasks.
        monte_carlo: of texts: the metrics of the mean probabilities over the random routes; empty for labels.
    """

    routing: Routing
    ensemble: Result
    merged: Result
    num_routes: int
    calibration: dict[str, Calibration]
    disagreement: Disagreement | None
    spread: dict[str, float]
    monte_carlo: dict[str, float] = field(default_factory=dict)

    def uncertainty(self) -> dict[str, float]:
        """What the random routes disagree about, in the terms of the task."""
        return self.spread if self.disagreement is None else self.disagreement.numbers()

    def document(self) -> dict[str, Any]:
        """For JSON; `metrics` are those of the ensemble."""
        return {
            "metrics": self.ensemble.metrics,
            "rows": self.ensemble.rows,
            "truncated": self.ensemble.truncated,
            "routing": str(self.routing),
            "merged": self.merged.metrics,
            "calibration": {name: found.numbers() for name, found in self.calibration.items()},
            **({"monte_carlo": self.monte_carlo} if self.monte_carlo else {}),
            "uncertainty": {"routes": self.num_routes, **self.uncertainty()},
        }


def report_draws(probe: Probe[Result], routing: Routing, num_seeds: int) -> DrawsReport[Result]:
    """Measure a random routing by the seeds 0 to `num_seeds - 1`, and the merged adapter."""
    merged, first = probe.evaluate(Routing()), probe.evaluate(routing)
    others = (probe.evaluate(routing, seed).metrics for seed in range(1, num_seeds))
    return DrawsReport(routing, (first.metrics, *others), first, merged)


def report_ensemble(probe: MixtureProbe, routing: Routing, num_routes: int) -> EnsembleReport[Evaluation]:
    """Measure an ensemble, and the calibration of every way to average: see `EnsembleReport`. Needs two routes."""
    task_type, targets = probe.rows.task_type, probe.rows.targets
    merged, ensemble = probe.logits(Routing()), probe.logits(routing)
    routes = torch.stack([probe.logits(MONTE_CARLO, seed) for seed in range(num_routes)])
    calibration: dict[str, Calibration] = {}
    if task_type != "regression":
        ways: dict[str, Tensor] = {
            "merged": merged,
            "ensemble-paired": probe.logits(Routing("ensemble", average="probabilities", pairing="paired")),
            "ensemble-all": probe.logits(Routing("ensemble", average="probabilities", pairing="all")),
            "monte-carlo": average(routes, task_type, "probabilities"),
        }
        calibration = {name: calibrate(task_type, logits.numpy(), targets) for name, logits in ways.items()}
    is_regression = task_type == "regression"
    return EnsembleReport(
        routing=routing,
        ensemble=probe.judge(ensemble),
        merged=probe.judge(merged),
        num_routes=num_routes,
        calibration=calibration,
        disagreement=None if is_regression else disagreement(task_type, routes.numpy()),
        spread=spread(routes[..., 0].numpy()) if is_regression else {},
    )


def report_text_ensemble(
    probe: TextProbe, routing: Routing, num_routes: int
) -> EnsembleReport[TokenEvaluation | TextEvaluation]:
    """Measure an ensemble on reference texts, and random routes: see `EnsembleReport`. Needs two routes.

    There is no calibration: the likeliest token of a text that could have been worded otherwise is no event that
    should happen as often as it is likely.
    """
    merged, ensemble, routes = probe.evaluate(Routing()), probe.evaluate(routing), probe.monte_carlo(num_routes)
    return EnsembleReport(
        routing=routing,
        ensemble=ensemble,
        merged=merged,
        num_routes=num_routes,
        calibration={},
        disagreement=routes.disagreement,
        spread={},
        monte_carlo=routes.metrics,
    )


def measure(
    probe: MixtureProbe, routing: Routing, seeds: int
) -> tuple[Evaluation, DrawsReport[Evaluation] | EnsembleReport[Evaluation] | None]:
    """The rows' predictions (of several draws, the first one's), and what there is to report beside them."""
    if routing.mode == "random":
        draws = report_draws(probe, routing, seeds)
        return draws.first, draws
    if routing.mode == "ensemble":
        ensemble = report_ensemble(probe, routing, seeds)
        return ensemble.ensemble, ensemble
    return probe.evaluate(routing), None


def measure_texts(
    probe: TextProbe, routing: Routing, seeds: int
) -> tuple[TokenEvaluation | TextEvaluation, DrawsReport[Any] | EnsembleReport[Any] | None]:
    """Of several draws the first one's result, and what there is to report beside it."""
    if routing.mode == "random":
        draws = report_draws(probe, routing, seeds)
        return draws.first, draws
    if routing.mode == "ensemble":
        ensemble = report_text_ensemble(probe, routing, seeds)
        return ensemble.ensemble, ensemble
    return probe.evaluate(routing), None


def num_passes(probe: MixtureProbe | TextProbe, routing: Routing, num_seeds: int) -> int:
    """How often each row passes through the backbone for a report; for progress."""
    if routing.mode == "random":
        return num_seeds + 1
    if routing.mode != "ensemble":
        return 1
    if isinstance(probe, TextProbe):
        return num_seeds + 1 + len(probe.experts.paths(routing.pairing))
    pairing = routing.pairing if probe.data.task_type == "regression" else "all"
    return num_seeds + 1 + len(set(probe.paths(pairing)) | set(probe.paths(routing.pairing)))


def summarise(values: Iterable[float]) -> Summary:
    """Mean, sample standard deviation and extremes of at least one value."""
    sample: Sequence[float] = list(values)
    std = statistics.stdev(sample) if len(sample) > 1 else None
    return Summary(statistics.fmean(sample), std, min(sample), max(sample))
