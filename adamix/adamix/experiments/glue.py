"""GLUE's results as the paper tabulates them: the metrics of each task, and the two averages over eight tasks.

Table 1 of the paper (RoBERTa-large) averages the accuracies of QQP and MRPC, Table 2 (BERT-base) their F1; the other
terms are the same: accuracy of MNLI, QNLI, SST-2 and RTE, Matthews correlation of CoLA, Pearson's of STS-B. MNLI counts
once, by its matched dev set; the mismatched one stands beside it. Works on numbers by name; knows neither models nor
how the data are read (`adamix.data.glue`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from adamix.errors import InvalidData

# The metrics of each task in the order they are reported, by the names of `metrics.score`.
METRICS: dict[str, tuple[str, ...]] = {
    "mnli": ("accuracy",),
    "mnli-mm": ("accuracy",),
    "qnli": ("accuracy",),
    "sst2": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "mrpc": ("accuracy", "f1"),
    "cola": ("matthews",),
    "rte": ("accuracy",),
    "stsb": ("pearson", "spearman"),
}
_AVERAGED = tuple(task for task in METRICS if task != "mnli-mm")


@dataclass(frozen=True)
class GlueReport:
    """Results in percent.

    Attributes:
        scores: of each task that was given, its metrics of `METRICS`.
        average: over the eight tasks with the accuracies of QQP and MRPC, as in Table 1; None until all are there.
        average_f1: with their F1, as in Table 2.
        missing: tasks that the averages lack.
    """

    scores: dict[str, dict[str, float]]
    average: float | None
    average_f1: float | None
    missing: tuple[str, ...]


def report(results: Mapping[str, Mapping[str, float]]) -> GlueReport:
    """Tabulate the metrics of several tasks.

    Args:
        results: `metrics` of `evaluate`, by the names of `METRICS`, as fractions.

    Raises:
        InvalidData: no such task, or one lacks a metric of its own.
    """
    unknown = sorted(set(results) - set(METRICS))
    if unknown:
        raise InvalidData(f"{unknown[0][:40]!r} is not one of the GLUE tasks {', '.join(METRICS)}")
    scores: dict[str, dict[str, float]] = {}
    for task, names in METRICS.items():
        if task not in results:
            continue
        lacking = [name for name in names if name not in results[task]]
        if lacking:
            raise InvalidData(f"the results of {task} have no {lacking[0]}: they are of another data set")
        scores[task] = {name: 100.0 * results[task][name] for name in names}
    missing = tuple(task for task in _AVERAGED if task not in scores)
    return GlueReport(scores, _average(scores, "accuracy"), _average(scores, "f1"), missing)


def _average(scores: Mapping[str, Mapping[str, float]], of_paraphrases: str) -> float | None:
    """The mean over eight tasks, with one of the two metrics of QQP and MRPC."""
    values = []
    for task in _AVERAGED:
        if task not in scores:
            return None
        values.append(scores[task][of_paraphrases if task in ("qqp", "mrpc") else METRICS[task][0]])
    return sum(values) / len(values)
