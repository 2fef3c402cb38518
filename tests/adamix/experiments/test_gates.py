"""Gates: what is read from text, what the best constant answer scores, and who passes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.data import Example, GenerationData, TaskData
from adamix.errors import InvalidConfig
from adamix.experiments.gates import LOWER_IS_BETTER, Gate, baseline, check_metric_names, judge, parse_gate
from adamix.experiments.plan import Plan
from adamix.experiments.release import Release
from adamix.experiments.run import Prepared

NUMBERS = st.floats(-1e6, 1e6)
METRICS = st.sampled_from(["accuracy", "macro_f1", "mse"])


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("baseline", Gate("baseline", "baseline")),
        ("accuracy>=0.8", Gate("accuracy>=0.8", "bound", "accuracy", True, 0.8)),
        (" mse <= 2e1 ", Gate("mse <= 2e1", "bound", "mse", False, 20.0)),
        ("no-worse:accuracy", Gate("no-worse:accuracy", "no-worse", "accuracy", True)),
        ("no-worse:mse", Gate("no-worse:mse", "no-worse", "mse", False)),
    ],
)
def test_a_gate_is_read(text: str, gate: Gate) -> None:
    assert parse_gate(text) == gate


@pytest.mark.parametrize(
    "text",
    [
        *("", "accuracy", "accuracy>0.8", "accuracy=0.8", "accuracy>=nan", "accuracy>=inf", "accuracy>=x", ">=1"),
        *("no-worse:", "no-worse", "no-worse:a b", "Baseline", "accuracy>=0.8>=0.9", "a" * 65 + ">=1"),
    ],
)
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="a gate is `baseline`, METRIC>=NUMBER"):
        parse_gate(text)


def test_a_gate_on_a_metric_nobody_measures_is_refused() -> None:
    check_metric_names([parse_gate("baseline"), parse_gate("mse<=1")], ("mse",))
    with pytest.raises(InvalidConfig, match="it has pearson, mse"):
        check_metric_names([parse_gate("no-worse:accuracy")], ("pearson", "mse"))


def _data(task_type: str, labels: list[object], names: int) -> TaskData:
    examples = tuple(Example("x", label) for label in labels)  # type: ignore[arg-type]
    return TaskData("t", task_type, tuple(map(str, range(names))), examples)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_the_best_constant_class_is_found(labels: list[int]) -> None:
    best = max(np.mean(np.array(labels) == constant) for constant in range(4))
    assert baseline(_data("classification", [*labels], 4)) == ("accuracy", pytest.approx(best))


@given(st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=8))
def test_the_best_constant_set_of_labels_is_found(chosen: list[set[int]]) -> None:
    def micro_f1(answer: tuple[int, ...]) -> float:
        """2 TP / (2 TP + FP + FN), and 0 where there is nothing to find."""
        hits = sum(len(row & set(answer)) for row in chosen)
        wrong = sum(len(row ^ set(answer)) for row in chosen)
        return 2 * hits / (2 * hits + wrong) if hits else 0.0

    best = max(micro_f1(answer) for size in range(4) for answer in itertools.combinations(range(3), size))
    data = _data("multilabel", [tuple(sorted(row)) for row in chosen], 3)
    assert baseline(data) == ("micro_f1", pytest.approx(best))


@given(st.lists(NUMBERS, min_size=1, max_size=8), NUMBERS)
def test_no_constant_number_is_better_than_the_mean(values: list[float], constant: float) -> None:
    _, best = baseline(_data("regression", [*values], 0))
    assert best <= float(np.mean((np.array(values) - constant) ** 2)) * (1 + 1e-9) + 1e-6


@given(st.sampled_from(["baseline", "{}>=0", "{}<=0", "no-worse:{}"]), METRICS, NUMBERS, NUMBERS, NUMBERS)
def test_a_better_adapter_never_fails_where_a_worse_one_passes(
    form: str, metric: str, first: float, second: float, other: float
) -> None:
    gate = parse_gate(form.format(metric))
    lower = "<=" in form or (metric in LOWER_IS_BETTER and ">=" not in form)
    worse, better = sorted((first, second), reverse=lower)
    verdicts = [judge([gate], {metric: value}, (metric, other), [{metric: other}])[0] for value in (worse, better)]
    assert verdicts[1].holds or not verdicts[0].holds
    for verdict, value in zip(verdicts, (worse, better), strict=True):
        assert (verdict.value, bool(verdict.reason)) == (value, not verdict.holds)


def test_equal_is_no_worse_and_no_better() -> None:
    baseline_gate, no_worse = parse_gate("baseline"), parse_gate("no-worse:accuracy")
    metrics, live = {"accuracy": 0.5}, [{"accuracy": 0.4}, {"accuracy": 0.5}]
    first, second = judge([baseline_gate, no_worse], metrics, ("accuracy", 0.5), live)
    assert (first.holds, second.holds) == (False, True)
    assert first.reason == "accuracy 0.5000 is no better than 0.5000, that of the best constant answer"
    (against_the_best,) = judge([no_worse], {"accuracy": 0.45}, None, live)
    assert against_the_best.reason == "accuracy 0.4500 is worse than 0.5000, that of the live version"


def test_without_a_live_version_nothing_is_worse_but_a_silent_one_cannot_be_compared_with() -> None:
    gate = parse_gate("no-worse:accuracy")
    assert judge([gate], {"accuracy": 0.1}, None)[0].holds
    assert not judge([gate], {"accuracy": 0.9}, None, [{"accuracy": 0.5}, {}])[0].holds


@pytest.mark.parametrize("gate", ["baseline", "accuracy>=0", "no-worse:accuracy"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_passes_with_a_metric_that_is_no_number(gate: str, value: float) -> None:
    (verdict,) = judge([parse_gate(gate)], {"accuracy": 0.9, "mse": value}, ("accuracy", 0.5))
    assert (verdict.holds, verdict.value, verdict.reason) == (False, None, "mse is not a finite number")


def test_what_was_not_measured_does_not_pass() -> None:
    assert not judge([parse_gate("accuracy>=0")], {}, None)[0].holds
    for text in ("baseline", "no-worse:loss"):
        (verdict,) = judge([parse_gate(text)], {}, None)
        assert verdict.reason == "nothing was measured"
    assert judge([parse_gate("baseline")], {"loss": 1.0}, None)[0].holds


def test_a_gate_on_a_label_metric_is_refused_before_texts_are_learned() -> None:
    release = Release("t", [parse_gate("accuracy>=0.5")], "validation", None)
    plan, rows = Plan(backbone="x", data="texts"), GenerationData("texts", ())
    texts = Prepared(plan, rows, None, None, backbone=None, tokenizer=None)  # type: ignore[arg-type]  # not looked at
    with pytest.raises(InvalidConfig, match="it has loss, perplexity, token_accuracy"):
        release.prepare(texts)
