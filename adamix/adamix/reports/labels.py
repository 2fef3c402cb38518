"""What an adapter's answers on labelled rows say beyond their metrics: by class, by confusion, by row.

Pure arithmetic on logits and targets; knows no model, no file and no page.

Shapes: N rows, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamix.data import Example, TaskData
from adamix.evaluation.labelled import Evaluation, adapter_targets, label_type
from adamix.files.manifest import HeadSpec
from adamix.routing.calibration import Calibration, calibrate, log_probabilities

NUM_HARDEST = 20
# A table of more is not read by anybody; what is left out is said.
MAX_CLASSES = 60
MAX_CONFUSIONS = 20


@dataclass(frozen=True)
class ClassRow:
    """One label by its id: how often it holds (`support`) and is given (`given`), and how well both agree."""

    index: int
    label: str
    support: int
    given: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class HardRow:
    """A row that the adapter found hard.

    Attributes:
        loss: `-log p(label)` of a classification, its sum over labels, or the squared error of a regression.
        confidence: probability of what was predicted; None of a regression and of several labels.
        is_right: None of a regression, whose numbers are never quite right.
    """

    text: str
    pair: str | None
    label: str
    prediction: str
    loss: float
    confidence: float | None
    is_right: bool | None


@dataclass(frozen=True)
class LabelReport:
    """What there is to say.

    Attributes:
        classes: by support, the most frequent first; at most MAX_CLASSES of `num_classes`.
        confusion: `[C, C]` counts, rows the label and columns the prediction, in the order of `classes`; empty of more
            classes and of other tasks than classification.
        confusions: (label, prediction, count) of the most frequent mistakes.
        points: (target, prediction) of a regression.
        hardest: those with the largest loss.
    """

    classes: tuple[ClassRow, ...]
    num_classes: int
    confusion: tuple[tuple[int, ...], ...]
    confusions: tuple[tuple[str, str, int], ...]
    calibration: Calibration | None
    points: tuple[tuple[float, float], ...]
    hardest: tuple[HardRow, ...]


def report_labels(head: HeadSpec, data: TaskData, result: Evaluation) -> LabelReport:
    """What the answers to all rows of a data set say; `data` and `result` are in one order."""
    task_type = label_type(head)
    logits = np.asarray(result.logits, dtype=np.float64)
    targets = adapter_targets(head, data)
    if task_type == "regression":
        predicted = np.array([float(value) for value in result.predictions])  # type: ignore[arg-type]  # numbers
        losses = (predicted - targets) ** 2
        points = tuple(zip(targets.tolist(), predicted.tolist(), strict=True))
        return LabelReport((), 0, (), (), None, points, _hardest(data, result, losses, None, None))
    logs = log_probabilities(task_type, logits)
    if task_type == "multilabel":
        holds = targets.astype(bool)
        given = np.exp(logs[..., 1]) >= head.effective_threshold
        losses = -np.where(holds, logs[..., 1], logs[..., 0]).sum(-1)
        classes = _classes(head.labels, holds, given)
        hardest = _hardest(data, result, losses, np.all(holds == given, axis=1), None)
        return LabelReport(
            classes[:MAX_CLASSES], len(classes), (), (), calibrate(task_type, logits, targets), (), hardest
        )
    chosen = logits.argmax(-1)
    every = np.arange(head.num_labels)
    classes = _classes(head.labels, targets[:, None] == every, chosen[:, None] == every)
    matrix = np.zeros((head.num_labels, head.num_labels), dtype=np.int64)
    np.add.at(matrix, (targets, chosen), 1)
    losses = -logs[np.arange(len(logs)), targets]
    return LabelReport(
        classes=classes[:MAX_CLASSES],
        num_classes=len(classes),
        confusion=_in_order(matrix, classes),
        confusions=_confusions(matrix, head.labels),
        calibration=calibrate(task_type, logits, targets),
        points=(),
        hardest=_hardest(data, result, losses, chosen == targets, np.exp(logs.max(-1))),
    )


def _classes(labels: Sequence[str], holds: NDArray[np.bool_], given: NDArray[np.bool_]) -> tuple[ClassRow, ...]:
    """Of labels `[N, C]` that hold and are given; those that do neither are left out."""
    found = []
    for index, label in enumerate(labels):
        support, count = int(holds[:, index].sum()), int(given[:, index].sum())
        hits = int((holds[:, index] & given[:, index]).sum())
        if support or count:
            found.append(
                ClassRow(
                    index=index,
                    label=label,
                    support=support,
                    given=count,
                    precision=hits / count if count else 0.0,
                    recall=hits / support if support else 0.0,
                    f1=2 * hits / (support + count),
                )
            )
    return tuple(sorted(found, key=lambda row: -row.support))


def _in_order(matrix: NDArray[np.int64], classes: Sequence[ClassRow]) -> tuple[tuple[int, ...], ...]:
    if len(classes) > MAX_CLASSES:
        return ()
    return tuple(tuple(int(matrix[row.index, column.index]) for column in classes) for row in classes)


def _confusions(matrix: NDArray[np.int64], labels: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    flat = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [divmod(int(place), wrong.shape[1]) for place in flat]
    return tuple((labels[row], labels[column], int(wrong[row, column])) for row, column in pairs if wrong[row, column])


def _hardest(
    data: TaskData,
    result: Evaluation,
    losses: NDArray[Any],
    right: NDArray[np.bool_] | None,
    confidence: NDArray[Any] | None,
) -> tuple[HardRow, ...]:
    found = []
    for index in np.argsort(-losses, kind="stable")[:NUM_HARDEST].tolist():
        example = data.examples[index]
        found.append(
            HardRow(
                text=example.text,
                pair=example.pair,
                label=_label(data, example),
                prediction=_shown(result.predictions[index]),
                loss=float(losses[index]),
                confidence=None if confidence is None else float(confidence[index]),
                is_right=None if right is None else bool(right[index]),
            )
        )
    return tuple(found)


def _label(data: TaskData, example: Example) -> str:
    if isinstance(example.label, tuple):
        return _shown(sorted(data.labels[index] for index in example.label))
    return data.labels[int(example.label)] if data.labels else _shown(float(example.label))


def _shown(prediction: object) -> str:
    if isinstance(prediction, list):
        return ", ".join(sorted(prediction)) or "(none)"
    return f"{prediction:.4g}" if isinstance(prediction, float) else str(prediction)
