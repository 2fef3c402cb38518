"""The split by hash and what `TaskData` accepts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.data import SPLITS, Example, TaskData, split_of
from adamix.errors import InvalidData


def test_split_is_fixed_for_ever() -> None:
    # Scores are comparable over time only while these do not move.
    assert [split_of(text) for text in ("a", "b", "c", "d", "e", "f", "g", "h")] == [
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "validation",
        "train",
    ]
    assert split_of("a", "b") == "train"


def test_split_proportions() -> None:
    found = [split_of(f"text number {i}") for i in range(20_000)]
    shares = [found.count(split) / len(found) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


@given(st.text(st.characters(codec="utf-8")))
@settings(deadline=None)
def test_spacing_case_and_compatibility_forms_do_not_move_a_text(text: str) -> None:
    assert split_of(text) == split_of("  " + text.replace(" ", " \t") + "\n")
    assert split_of("Ｆｕｌｌ ｗｉｄｔｈ " + text) == split_of("full WIDTH " + text)


def _data(task_type: str, labels: tuple[str, ...], label: object) -> TaskData:
    return TaskData("d", task_type, labels, (Example("t", label),))  # type: ignore[arg-type]  # hostile on purpose


@pytest.mark.parametrize(
    ("task_type", "labels", "label"),
    [
        ("classification", ("a", "b"), 2),
        ("classification", ("a", "b"), -1),
        ("classification", ("a", "b"), True),
        ("classification", ("a", "b"), 1.0),
        ("classification", ("a", "b"), (1,)),
        ("multilabel", ("a", "b"), 1),
        ("multilabel", ("a", "b"), (1, 0)),
        ("multilabel", ("a", "b"), (1, 1)),
        ("multilabel", ("a", "b"), (2,)),
        ("regression", (), True),
        ("regression", (), (1,)),
        ("regression", ("a",), 1.0),
        ("classification", (), 0),
        ("ranking", ("a",), 0),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(task_type: str, labels: tuple[str, ...], label: object) -> None:
    with pytest.raises(InvalidData):
        _data(task_type, labels, label)


@pytest.mark.parametrize(
    ("task_type", "labels", "label"),
    [
        ("classification", ("a", "b"), 1),
        ("multilabel", ("a", "b"), ()),
        ("regression", (), 2),
        ("regression", (), -0.5),
    ],
)
def test_labels_that_fit_are_kept(task_type: str, labels: tuple[str, ...], label: object) -> None:
    assert _data(task_type, labels, label).examples[0].label == label
