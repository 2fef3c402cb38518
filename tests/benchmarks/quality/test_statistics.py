"""The mathematics of a claim: pairs, intervals and p values, on records whose truth is known."""

import itertools
import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adamix.errors import InvalidData
from adamix_bench.quality.statistics import claim, mean_of, paired, values

TASKS, SIZES = ("trec", "movie", "bbc"), (100, 300, "all")


def record(task: str, rows: int | str, seed: int, method: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "task": task, "rows": rows, "seed": seed, "method": method, "metric": "accuracy", "value": value, "seconds": 1.0
    } | more  # fmt: skip


def compared(differences: list[float], first: str = "merged", second: str = "single-compute") -> list[dict[str, Any]]:
    """Records whose differences are these, on as many runs."""
    keys = itertools.product(range(len(differences)), TASKS, SIZES)
    return [
        found
        for (seed, task, rows), difference in zip(keys, differences, strict=False)
        for found in (record(task, rows, seed, second, 0.5), record(task, rows, seed, first, 0.5 + difference))
    ]


shares = st.integers(0, 400).map(lambda n: n / 400)
runs_of_two = st.dictionaries(
    st.tuples(st.sampled_from(TASKS), st.sampled_from(SIZES), st.integers(0, 2)),
    st.tuples(st.none() | shares, st.none() | shares),
    max_size=18,
).map(
    lambda found: [
        record(*key, method, value)
        for key, both in found.items()
        for method, value in zip(("merged", "single-compute"), both, strict=True)
        if value is not None
    ]
)


@given(runs_of_two, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_to_swap_the_methods_turns_the_sign_and_nothing_else(
    records: list[dict[str, Any]], shuffler: random.Random
) -> None:
    forth = paired(records, "merged", "single-compute")
    shuffled = shuffler.sample(records, len(records))
    assert paired(shuffled, "merged", "single-compute") == forth
    assert claim(shuffled) == claim(records)
    back = paired(shuffled, "single-compute", "merged")
    assert (back.wins, back.ties, back.losses) == (forth.losses, forth.ties, forth.wins)
    assert forth.wins + forth.ties + forth.losses == forth.pairs
    for there, other in ((forth.runs, back.runs), (forth.tasks, back.tasks)):
        assert other.count == there.count
        assert (other.p_value, other.permutation_p_value) == (there.p_value, there.permutation_p_value)
        if there.mean_difference is not None:
            assert other.mean_difference == -there.mean_difference
        if there.ci is not None:
            assert other.ci == pytest.approx((-there.ci[1], -there.ci[0]), abs=1e-15)
            assert there.ci[0] <= there.mean_difference <= there.ci[1]


def test_pairs_are_runs_of_the_same_task_rows_and_seed() -> None:
    records = [
        record("trec", 100, 0, "merged", 0.8),
        record("trec", 100, 0, "single-compute", 0.7),
        record("trec", 300, 0, "merged", 0.9),  # the other one is of another size
        record("trec", 100, 1, "single-compute", 0.1),  # of another seed
        record("movie", "all", 0, "merged", 0.5),
        record("movie", "all", 0, "single-compute", 0.6),
    ]
    found = paired(records, "merged", "single-compute")
    assert (found.pairs, found.wins, found.losses) == (2, 1, 1)
    assert found.mean_difference == pytest.approx(0.0)
    assert paired(records, "merged", "single-compute", rows=(100, 300)).mean_difference == pytest.approx(0.1)


def test_the_p_value_is_that_of_the_paired_t_test() -> None:
    random = np.random.default_rng(1)
    differences = random.normal(0.01, 0.02, 25)
    ours = mean_of(list(differences))
    theirs = stats.ttest_1samp(differences, 0.0)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.ci == pytest.approx(tuple(theirs.confidence_interval(0.95)))


@pytest.mark.parametrize("count", [10, 40], ids=["all flips", "drawn flips"])
def test_flipping_signs_agrees_with_t_on_normal_differences(count: int) -> None:
    random = np.random.default_rng(count)
    for shift in (0.0, 0.3, 0.6):
        found = mean_of(list(random.normal(shift, 1.0, count)))
        # Both estimate one probability; with ten differences a step of the exact one is 1/512.
        assert found.permutation_p_value == pytest.approx(found.p_value, abs=0.03)


def test_flips_are_counted_exactly_where_there_are_few() -> None:
    # Of the eight sign patterns two have a sum as far from 0 as 6: all plus and all minus.
    assert mean_of([1.0, 2.0, 3.0]).permutation_p_value == 2 / 8
    # The sums are 6, 4, 2 and 0, each with both signs: six are as far from 0 as 2.
    assert mean_of([1.0, -2.0, 3.0]).permutation_p_value == 6 / 8


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random, truth, draws = np.random.default_rng(7), 0.012, 1000
    covered = 0
    for _ in range(draws):
        interval = mean_of(list(random.normal(truth, 0.02, 10))).ci
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    # Four standard deviations of a binomial around 95 %.
    assert covered / draws == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / draws))


def test_no_effect_is_rarely_called_one() -> None:
    random, draws = np.random.default_rng(3), 400
    p_values = np.array(
        [
            (found.p_value, found.permutation_p_value)
            for found in (mean_of(list(random.normal(0, 1, 8))) for _ in range(draws))
        ]
    )
    assert (p_values < 0.05).mean(0) == pytest.approx([0.05, 0.05], abs=4 * math.sqrt(0.05 * 0.95 / draws))


def test_tasks_count_once_however_many_seeds_they_have() -> None:
    records = []
    for task, difference, seeds in (("trec", 0.10, 20), ("movie", -0.02, 2), ("bbc", 0.01, 2)):
        for seed in range(seeds):
            records.append(record(task, 100, seed, "single-compute", 0.5))
            records.append(record(task, 100, seed, "merged", 0.5 + difference))
    found = paired(records, "merged", "single-compute")
    assert found.tasks.count == 3
    assert found.tasks.mean_difference == pytest.approx((0.10 - 0.02 + 0.01) / 3)
    assert found.mean_difference == pytest.approx((20 * 0.10 - 2 * 0.02 + 2 * 0.01) / 24)
    # Many seeds of one task make runs look certain; tasks do not.
    assert found.p_value is not None
    assert found.tasks.p_value is not None
    assert found.p_value < 1e-6 < 0.2 < found.tasks.p_value


@pytest.mark.parametrize(
    ("differences", "p_value", "ci"),
    [([], None, None), ([0.1], None, None), ([0.0, 0.0, 0.0], 1.0, (0.0, 0.0)), ([0.1, 0.1, 0.1], 0.0, (0.1, 0.1))],
    ids=["none", "one", "all equal", "all alike"],
)
def test_too_few_or_equal_differences(
    differences: list[float], p_value: float | None, ci: tuple[float, float] | None
) -> None:
    found = mean_of(differences)
    assert found.p_value == p_value
    assert found.ci == (None if ci is None else pytest.approx(ci))


def test_the_claim_is_about_few_shot_runs_and_all_random_routes() -> None:
    records = []
    for seed, (rows, merged, single, route) in enumerate(
        [(100, 0.8, 0.7, 0.75), (300, 0.9, 0.8, 0.9), ("all", 0.6, 0.9, 0.7), (1000, 0.7, 0.6, 0.6)]
    ):
        records += [
            record("trec", rows, seed, method, value)
            for method, value in (("merged", merged), ("single-compute", single), ("random", route))
        ]
    found = claim(records)
    assert found["pairs"] == 3
    assert found["mean_difference"] == pytest.approx(0.1)
    assert found["merged_over_random_route"] == {
        "runs": 4,
        "at_least_as_good": 0.75,
        "better": 0.5,
        "mean_difference": pytest.approx((0.05 + 0.0 - 0.1 + 0.1) / 4),
    }
    assert claim(records, rows=(100, "all"))["pairs"] == 2
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_claim_without_runs_claims_nothing() -> None:
    found = claim([])
    assert (found["pairs"], found["mean_difference"], found["p_value"]) == (0, None, None)
    assert found["merged_over_random_route"]["at_least_as_good"] is None


def test_a_run_that_is_there_twice_is_refused() -> None:
    records = compared([0.1, 0.2])
    with pytest.raises(InvalidData, match="merged on trec, 100 rows, seed 0 is there twice"):
        paired([*records, records[1]], "merged", "single-compute")


@pytest.mark.parametrize(
    "change",
    [{"value": math.nan}, {"value": "0.5"}, {"value": True}, {"value": None}, {"draws": [0.5, math.inf]}],
    ids=str,
)
def test_a_value_that_is_no_number_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidData, match="has the value"):
        values([record("trec", 100, 0, "merged", 0.5) | change], "merged")


@pytest.mark.parametrize("rows", [None, "100", 1.5, True], ids=repr)
def test_rows_are_a_number_or_all(rows: Any) -> None:
    with pytest.raises(InvalidData, match="a number or `all` is wanted"):
        values([record("trec", rows, 0, "merged", 0.5)], "merged")


def test_a_record_that_lacks_a_field_is_refused() -> None:
    broken = record("trec", 100, 0, "merged", 0.5)
    del broken["seed"]
    with pytest.raises(InvalidData, match="no 'seed'"):
        claim([broken])


def test_methods_with_different_metrics_are_not_compared() -> None:
    records = compared([0.1])
    records[0]["metric"] = "pearson"
    with pytest.raises(InvalidData, match="different metrics on trec"):
        paired(records, "merged", "single-compute")
