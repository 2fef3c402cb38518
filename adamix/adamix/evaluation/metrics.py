"""The metrics of each task type, as the GLUE benchmark defines them: numpy arrays in, named numbers out.

A metric that the data leave undefined (the correlation with a constant) is 0.0, so that results are always numbers.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamix.data.task import TaskType

_NEGATED = re.compile(r"(?:not|non|no)[\s_-]*(.+)", re.DOTALL)


def positive_class(labels: Sequence[str]) -> int:
    """The class of two that F1 is about: the second one, unless its name denies the first.

    The ids of a task's labels can follow the alphabet, in which `equivalent` comes before `not_equivalent`; GLUE
    counts them the other way round (MRPC, QQP), and F1 there is about the pairs that are equivalent.
    """
    denied = _NEGATED.fullmatch(labels[1].casefold()) if len(labels) == 2 else None
    return 0 if denied is not None and denied[1] == labels[0].casefold() else 1


def score(
    task_type: TaskType, predictions: NDArray[Any], targets: NDArray[Any], *, num_labels: int, positive: int = 1
) -> dict[str, float]:
    """All metrics of a task type: which ones depends on the task alone, never on what occurs in the rows.

    Args:
        predictions, targets: `[N]` class ids or regression values, or `[N, C]` zeros and ones (multi-label).
        num_labels: the classes there are.
        positive: of two classes, the one that F1 is about: see `positive_class`.

    Returns:
        classification: accuracy, macro_f1, and of two classes f1 (of the positive one) and matthews;
        multi-label: micro_f1, macro_f1, exact_match; regression: pearson, spearman, mse.
    """
    from sklearn import metrics

    if task_type == "regression":
        return {
            "pearson": _correlation(predictions, targets),
            "spearman": _correlation(_ranks(predictions), _ranks(targets)),
            "mse": float(np.mean((predictions - targets) ** 2)),
        }
    if task_type == "multilabel":
        f1 = {
            average: metrics.f1_score(targets, predictions, average=average, zero_division=0.0)
            for average in ("micro", "macro")
        }
        exact = np.mean(np.all(predictions == targets, axis=1))
        return {"micro_f1": float(f1["micro"]), "macro_f1": float(f1["macro"]), "exact_match": float(exact)}
    result = {
        "accuracy": float(np.mean(predictions == targets)),
        "macro_f1": float(metrics.f1_score(targets, predictions, average="macro", zero_division=0.0)),
    }
    if num_labels == 2:
        result["f1"] = _f1(predictions, targets, positive)
        # Of two classes it is the correlation; sklearn's own warns where only one of them occurs.
        result["matthews"] = _correlation(predictions, targets)
    return result


def finite_json(value: Any) -> Any:
    """JSON values with None for every number that is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _f1(predictions: NDArray[Any], targets: NDArray[Any], positive: int) -> float:
    """`2 TP / (2 TP + FP + FN)` of one class of two."""
    wrong, found = np.sum(predictions != targets), np.sum((predictions == positive) & (targets == positive))
    return float(2 * found / (2 * found + wrong)) if found else 0.0


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    from scipy.stats import rankdata

    ranks: NDArray[Any] = rankdata(values)
    return ranks


def _correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Pearson's correlation."""
    if not (np.ptp(first) and np.ptp(second)):  # the mean of equal numbers may differ from them by a rounding
        return 0.0
    a, b = (np.asarray(v, dtype=np.float64) - np.mean(v, dtype=np.float64) for v in (first, second))
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else 0.0
