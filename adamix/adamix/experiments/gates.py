"""What an adapter must score before it may replace another one: gates, and the verdict on a measurement.

A gate is written as text, which people and files do: `baseline`, `accuracy>=0.8`, `mse<=2`, `no-worse:accuracy`. Pure
functions of numbers: nothing here knows models, files or servers.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from adamix.data import TaskData
from adamix.errors import InvalidConfig

Kind = Literal["baseline", "bound", "no-worse"]

BASELINE = "baseline"
_NO_WORSE = "no-worse:"
_NAME = r"[a-z][a-z0-9_]{0,63}"
_BOUND = re.compile(rf"({_NAME})\s*(>=|<=)\s*(\S+)")
# Of every other metric more is better.
LOWER_IS_BETTER = frozenset({"mse", "loss", "perplexity", "nll", "ece", "ter"})
# The metric in which each task type is compared with a constant answer.
_BASELINE_METRIC = {"classification": "accuracy", "multilabel": "micro_f1", "regression": "mse"}


@dataclass(frozen=True)
class Gate:
    """One condition on the metrics of an adapter.

    Attributes:
        text: as it was written.
        metric: its name; empty for the baseline, whose metric depends on the task.
        at_least: the bound is the smallest value that passes, else the largest.
        bound: of a gate of that kind.
    """

    text: str
    kind: Kind
    metric: str = ""
    at_least: bool = True
    bound: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """How one gate judged.

    Attributes:
        gate: its text.
        value: what was measured; None where that is not there or not finite.
        bound: what it was held against; None where there was nothing.
        reason: why the gate does not hold, as a part of a sentence; empty where it does.
    """

    gate: str
    metric: str
    value: float | None
    bound: float | None
    reason: str = ""

    @property
    def holds(self) -> bool:
        return not self.reason


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Raises:
        InvalidConfig: it is none.
    """
    stripped = text.strip()
    if stripped == BASELINE:
        return Gate(stripped, "baseline")
    if stripped.startswith(_NO_WORSE):
        metric = stripped.removeprefix(_NO_WORSE)
        if re.fullmatch(_NAME, metric):
            return Gate(stripped, "no-worse", metric, at_least=metric not in LOWER_IS_BETTER)
    elif match := _BOUND.fullmatch(stripped):
        bound = _number(match[3])
        if bound is not None:
            return Gate(stripped, "bound", match[1], match[2] == ">=", bound)
    raise InvalidConfig(
        f"a gate is `baseline`, METRIC>=NUMBER, METRIC<=NUMBER or no-worse:METRIC, not {text[:60]!r}", field="gate"
    )


def check_metric_names(gates: Sequence[Gate], known: Sequence[str]) -> None:
    """Refuse gates on metrics that will not be measured.

    Raises:
        InvalidConfig: naming the first one.
    """
    for gate in gates:
        if gate.metric and gate.metric not in known:
            raise InvalidConfig(
                f"the gate {gate.text} is on a metric this task does not have; it has {', '.join(known)}", field="gate"
            )


def baseline(data: TaskData) -> tuple[str, float]:
    """The metric that a task is first judged by, and what the best constant answer scores in it on these rows.

    Classification: the accuracy of the most frequent label. Multi-label: the micro F1 of the best constant set of
    labels, which are the k most frequent ones for some k. Regression: the mean squared error of the mean.
    """
    metric = _BASELINE_METRIC[data.task_type]
    labels = [example.label for example in data.examples]
    if data.task_type == "regression":
        return metric, float(np.var(np.array(labels, dtype=np.float64)))
    if data.task_type == "classification":
        return metric, max(Counter(labels).values()) / len(labels)
    counts = Counter(label for chosen in labels if isinstance(chosen, tuple) for label in chosen)
    total, hits, best = sum(counts.values()), 0, 0.0
    for size, (_, count) in enumerate(counts.most_common(), start=1):
        hits += count
        best = max(best, 2 * hits / (size * len(labels) + total))
    return metric, best


def judge(
    gates: Sequence[Gate],
    metrics: Mapping[str, float],
    constant: tuple[str, float] | None,
    live: Sequence[Mapping[str, float]] = (),
) -> list[Verdict]:
    """What each gate says to these metrics. None holds for no metrics at all, or for some that are not finite.

    Args:
        metrics: of the adapter, by name.
        constant: the answer of `baseline` on the same rows; None where the task knows no constant answer, and the
            gate of that name asks for finite metrics alone.
        live: the metrics of every version that answers now; `no-worse` asks for the best of them, and holds where
            no version answers.
    """
    verdicts = []
    unsound = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    for gate in gates:
        if not metrics:
            verdicts.append(Verdict(gate.text, gate.metric, None, None, "nothing was measured"))
        elif unsound:
            verdicts.append(Verdict(gate.text, unsound[0], None, None, f"{unsound[0]} is not a finite number"))
        elif gate.kind == "baseline":
            verdicts.append(_judge_baseline(gate, metrics, constant))
        elif gate.kind == "no-worse":
            verdicts.append(_judge_no_worse(gate, metrics, live))
        else:
            verdicts.append(_compare(gate, gate.metric, metrics, gate.bound, at_least=gate.at_least))
    return verdicts


def _judge_baseline(gate: Gate, metrics: Mapping[str, float], constant: tuple[str, float] | None) -> Verdict:
    if constant is None:
        return Verdict(gate.text, "", None, None)
    metric, bound = constant
    verdict = _compare(gate, metric, metrics, bound, at_least=metric not in LOWER_IS_BETTER)
    if verdict.holds and verdict.value != bound:
        return verdict
    reason = f"{metric} {_shown(verdict.value)} is no better than {bound:.4f}, that of the best constant answer"
    return replace(verdict, reason=reason)


def _judge_no_worse(gate: Gate, metrics: Mapping[str, float], live: Sequence[Mapping[str, float]]) -> Verdict:
    bounds = [version[gate.metric] for version in live if gate.metric in version]
    if len(bounds) < len(live):
        reason = f"a live version tells no {gate.metric} to compare with"
        return Verdict(gate.text, gate.metric, metrics.get(gate.metric), None, reason)
    if not bounds:
        return Verdict(gate.text, gate.metric, metrics.get(gate.metric), None)
    bound = max(bounds) if gate.at_least else min(bounds)
    verdict = _compare(gate, gate.metric, metrics, bound, at_least=gate.at_least)
    if verdict.holds:
        return verdict
    return replace(
        verdict, reason=f"{gate.metric} {_shown(verdict.value)} is worse than {bound:.4f}, that of the live version"
    )


def _compare(gate: Gate, metric: str, metrics: Mapping[str, float], bound: float, *, at_least: bool) -> Verdict:
    value = metrics.get(metric)
    if value is not None and (value >= bound if at_least else value <= bound):
        return Verdict(gate.text, metric, value, bound)
    side = "least" if at_least else "most"
    return Verdict(gate.text, metric, value, bound, f"{metric} {_shown(value)} is not at {side} {bound:g}")


def _shown(value: float | None) -> str:
    return "(not measured)" if value is None else f"{value:.4f}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
