"""Few-shot subsets are balanced, seeded and nested."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.data import Example, TaskData, few_shot
from adamix.errors import InvalidConfig


def _classification(counts: list[int]) -> TaskData:
    labels = tuple(f"c{i}" for i in range(len(counts)))
    rows = [Example(f"{label} {i}", label) for label, n in enumerate(counts) for i in range(n)]
    return TaskData("d", "classification", labels, tuple(rows))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.data())
@settings(deadline=None)
def test_classes_differ_by_one_row_unless_one_has_run_out(counts: list[int], draw: st.DataObject) -> None:
    data = _classification(counts)
    if sum(counts) < len(counts):
        return
    k = draw.draw(st.integers(len(counts), sum(counts)))
    chosen = few_shot(data, k, seed=3)
    assert len(chosen.examples) == k == len(set(chosen.examples))
    assert set(chosen.examples) <= set(data.examples)
    assert chosen.labels == data.labels
    found = Counter(e.label for e in chosen.examples)
    most = max(found.values())
    assert all(found[label] >= min(most - 1, n) for label, n in enumerate(counts))


def test_seed_decides_and_smaller_subsets_are_beginnings() -> None:
    data = _classification([50, 80, 30])
    assert few_shot(data, 30, seed=1) == few_shot(data, 30, seed=1)
    assert few_shot(data, 30, seed=1) != few_shot(data, 30, seed=2)
    assert few_shot(data, 60, seed=1).examples[:30] == few_shot(data, 30, seed=1).examples


def test_the_extra_rows_go_to_seeded_classes_not_always_the_first() -> None:
    data = _classification([50, 50, 50])
    extra = {Counter(e.label for e in few_shot(data, 4, seed).examples).most_common(1)[0][0] for seed in range(30)}
    assert extra == {0, 1, 2}


def test_regression_takes_the_same_number_from_every_tenth_of_the_targets() -> None:
    rows = tuple(Example(f"t{i}", (i * 37 % 1000) ** 2 / 1e3) for i in range(1000))
    chosen = few_shot(TaskData("d", "regression", (), rows), 50, seed=0)
    tenths = Counter(int((float(e.label) * 1e3) ** 0.5 + 1e-6) // 100 for e in chosen.examples if e.label is not None)
    assert tenths == dict.fromkeys(range(10), 5)


def test_regression_below_ten_rows() -> None:
    rows = tuple(Example(f"t{i}", float(i)) for i in range(100))
    chosen = few_shot(TaskData("d", "regression", (), rows), 2, seed=0)
    assert sorted(float(e.label) >= 50 for e in chosen.examples if isinstance(e.label, float)) == [False, True]


def test_multilabel_brings_every_label_and_rows_without_one() -> None:
    rows = [Example(f"t{i}", (0,)) for i in range(90)]
    rows += [Example(f"u{i}", (0, 1)) for i in range(9)] + [Example("v", ())]
    chosen = few_shot(TaskData("d", "multilabel", ("a", "b"), tuple(rows)), 9, seed=0)
    found = Counter(e.label for e in chosen.examples)
    assert len(set(chosen.examples)) == 9
    assert found[()] == 1
    assert found[0, 1] >= 4


@pytest.mark.parametrize(
    ("k", "message"), [(2, "below the 3 of d"), (0, "below the 3"), (-5, "below the 3"), (7, "has 6")]
)
def test_impossible_sizes_are_refused(k: int, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        few_shot(_classification([2, 2, 2]), k, seed=0)
