"""What answers say by class, by confusion and by row: against scikit-learn, and against what can be counted by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from adamix.data import Example, TaskData
from adamix.evaluation.labelled import Evaluation, Prediction
from adamix.files.manifest import HeadSpec, label_map
from adamix.reports.labels import MAX_CLASSES, NUM_HARDEST, report_labels

LABELS = ("a", "b", "c", "never")


def _head(kind: str, labels: tuple[str, ...] = LABELS) -> HeadSpec:
    return HeadSpec(type=kind, pooling="mean", num_labels=len(labels) or 1, id2label=label_map(list(labels)) or None)  # type: ignore[arg-type]


def _result(predictions: list[Prediction], logits: np.ndarray) -> Evaluation:
    return Evaluation({}, len(predictions), 0, predictions, logits.tolist())


def test_classes_and_confusion_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets = rng.choice(3, 200, p=(0.6, 0.3, 0.1))
    logits = rng.normal(size=(200, 4)) + 2.0 * np.eye(4)[targets]
    logits[:, 3] = -9.0
    chosen = logits.argmax(1)
    examples = tuple(Example(f"text {i}", int(label)) for i, label in enumerate(targets))
    data = TaskData("rows", "classification", LABELS, examples)
    found = report_labels(_head("classification"), data, _result([LABELS[i] for i in chosen], logits))
    assert [row.label for row in found.classes] == ["a", "b", "c"], "a label that never occurs has no row"
    expected = precision_recall_fscore_support(targets, chosen, labels=[0, 1, 2])
    for row, precision, recall, f1, support in zip(found.classes, *expected, strict=True):
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision, recall, f1))
        assert row.support == support
    assert np.array_equal(found.confusion, confusion_matrix(targets, chosen, labels=[0, 1, 2]))
    wrong = [(row, column) for row in range(3) for column in range(3) if row != column]
    counts = {(LABELS[r], LABELS[c]): found.confusion[r][c] for r, c in wrong if found.confusion[r][c]}
    assert {(label, given): count for label, given, count in found.confusions} == counts
    assert [count for *_, count in found.confusions] == sorted(counts.values(), reverse=True)
    assert found.calibration is not None
    assert found.calibration.accuracy == pytest.approx((chosen == targets).mean())


def test_the_hardest_rows_are_those_with_the_largest_loss() -> None:
    logits = np.zeros((30, 2))
    logits[:, 0] = np.arange(30)
    data = TaskData("rows", "classification", ("x", "y"), tuple(Example(f"t{i}", 1) for i in range(30)))
    found = report_labels(_head("classification", ("x", "y")), data, _result(["x"] * 30, logits))
    assert [row.text for row in found.hardest] == [f"t{i}" for i in range(29, 29 - NUM_HARDEST, -1)]
    assert found.hardest[0].loss == pytest.approx(29 + math.log1p(math.exp(-29)))
    assert (found.hardest[0].label, found.hardest[0].prediction, found.hardest[0].is_right) == ("y", "x", False)


def test_several_labels_are_judged_one_by_one() -> None:
    logits = np.array([[3.0, -3.0], [3.0, 3.0], [-3.0, -3.0]])
    data = TaskData("rows", "multilabel", ("x", "y"), (Example("one", (0,)), Example("two", (0,)), Example("none", ())))
    found = report_labels(_head("multilabel", ("x", "y")), data, _result([["x"], ["x", "y"], []], logits))
    assert [(row.label, row.support, row.given, row.precision, row.recall) for row in found.classes] == [
        ("x", 2, 2, 1.0, 1.0),
        ("y", 0, 1, 0.0, 0.0),
    ]
    assert found.confusion == ()
    assert [(row.text, row.prediction, row.is_right) for row in found.hardest][:1] == [("two", "x, y", False)]
    assert {row.prediction for row in found.hardest} == {"x", "x, y", "(none)"}


def test_a_regression_has_points_and_no_classes() -> None:
    data = TaskData("rows", "regression", (), (Example("far", 1.0), Example("near", 2.0)))
    found = report_labels(_head("regression", ()), data, _result([4.0, 2.5], np.array([[4.0], [2.5]])))
    assert found.points == ((1.0, 4.0), (2.0, 2.5))
    assert [(row.text, row.loss, row.is_right) for row in found.hardest] == [("far", 9.0, None), ("near", 0.25, None)]
    assert (found.classes, found.calibration) == ((), None)


def test_of_many_labels_the_frequent_ones_are_shown_and_the_rest_counted() -> None:
    labels = tuple(f"label {i}" for i in range(MAX_CLASSES + 5))
    data = TaskData("rows", "classification", labels, tuple(Example(f"t{i}", i) for i in range(len(labels))))
    found = report_labels(_head("classification", labels), data, _result(list(labels), np.eye(len(labels))))
    assert (len(found.classes), found.num_classes, found.confusion) == (MAX_CLASSES, MAX_CLASSES + 5, ())
