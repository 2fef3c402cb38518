"""The tuner finds what a clock says is fastest, and writes tables as they are written."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from adamix.errors import FailedPrecondition
from adamix_bench.kernels.settings import Settings
from adamix_bench.kernels.tuner import OP, represented, table_text, tune
from adamix_bench.kernels.tuning import run_tuning
from adamix_kernels.plans import ARCHITECTURES, RANK_CLASSES, Facts, Plan, parse, pick, table


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_table_that_is_written_again_does_not_change(architecture: str) -> None:
    committed = (files("adamix_kernels") / "plans" / f"{architecture}.json").read_text("utf-8")
    assert table_text(table(architecture)) == committed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_launches_stand_for_their_rule_and_for_each_of_its_ranks(architecture: str) -> None:
    rules = table(architecture)[OP]
    ranks = set()
    for rule in rules:
        launches = represented(rules, rule, ("bf16", "fp32"))
        assert launches, rule.name
        for facts in launches:
            assert pick(OP, architecture, facts) is rule.plan
            ranks.add((facts.dtype, facts.rank))
    assert ranks == {(dtype, rank) for dtype in ("bf16", "fp32") for rank in RANK_CLASSES}


def far_from(best: Plan):
    """A clock by which a plan takes longer the more numbers of it differ from `best`."""

    def time_plan(plan: Plan, facts: Facts) -> float:
        same = ("block_m", "block_h", "num_warps", "num_stages")
        return 10.0 + sum(getattr(plan, name) != getattr(best, name) for name in same) + facts.rows / 1e5

    return time_plan


def test_each_number_of_a_plan_is_tried_and_the_best_is_kept() -> None:
    best = Plan("fused", block_m=32, block_h=32, num_warps=2, num_stages=1)
    rules = table("sm90")[OP]
    tuned, changes = tune(rules, "sm90", far_from(best), dtypes=("bf16",))
    assert [rule.name for rule in tuned] == [rule.name for rule in rules]
    for before, after in zip(rules, tuned, strict=True):
        assert (after.dtypes, after.limits, after.plan.kernel) == (before.dtypes, before.limits, before.plan.kernel)
        if before.plan.kernel == "fused" and "bf16" in before.dtypes:
            assert after.plan == best
        if "bf16" not in before.dtypes:
            assert after == before
    assert len(changes) == sum("bf16" in rule.dtypes for rule in rules)


def test_a_plan_that_will_not_do_for_one_launch_is_not_taken() -> None:
    best = Plan("fused", block_m=128, block_h=32, num_warps=2, num_stages=1)
    quick = far_from(best)

    def time_plan(plan: Plan, facts: Facts) -> float | None:
        return None if plan.block_m == 128 and facts.rank == 64 else quick(plan, facts)

    tuned, _ = tune(table("sm90")[OP], "sm90", time_plan, dtypes=("bf16",))
    by_name = {rule.name: rule.plan for rule in tuned}
    assert by_name["long half"].block_m != 128
    assert by_name["long half"].block_h == 32


def test_a_gain_within_the_noise_changes_nothing() -> None:
    rules = table("sm90")[OP]
    tuned, changes = tune(rules, "sm90", lambda plan, _: 100.0 - plan.num_stages / 2)
    assert tuned == list(rules)
    assert all(change.after == change.before for change in changes)


def test_pdl_is_tried_only_where_there_is_such_a_thing() -> None:
    tried = {"sm80": set(), "sm90": set()}
    for architecture, seen in tried.items():

        def time_plan(plan: Plan, _: Facts, seen: set = seen) -> float:
            seen.add((plan.kernel, plan.pdl))
            return 1.0

        tune(table(architecture)[OP], architecture, time_plan)
    assert tried == {
        "sm80": {("split", False), ("fused", False)},
        "sm90": {("split", False), ("split", True), ("fused", False)},
    }


def test_a_tuned_table_is_written_whole_and_can_be_read(tmp_path: Path) -> None:
    best = Plan("fused", block_m=32, block_h=32, num_warps=2, num_stages=1)
    document = run_tuning(
        Settings(dtypes=("fp32",)),
        tmp_path / "out",
        architecture="sm80",
        time_plan=far_from(best),
        tables=tmp_path / "plans",
        quiet=True,
    )
    text = (tmp_path / "plans" / "sm80.json").read_text("utf-8")
    assert text == (tmp_path / "out" / "sm80.json").read_text("utf-8")
    rules = parse(json.loads(text), "sm80")
    before = table("sm80")
    assert {rule.plan for rule in rules[OP] if rule.name.startswith("single")} == {best}
    assert {op: of_op for op, of_op in rules.items() if op != OP} == {o: r for o, r in before.items() if o != OP}
    assert {change["rule"] for change in document["changes"]} == {r.name for r in before[OP] if "fp32" in r.dtypes}


def test_out_of_time_the_rest_stays_as_it_is() -> None:
    rules, asked = table("sm80")[OP], []

    def is_over() -> bool:
        asked.append(True)
        return len(asked) > 1

    tuned, changes = tune(rules, "sm80", lambda plan, _: float(plan.block_m), is_over=is_over)
    assert len(changes) == 1
    assert tuned[1:] == list(rules[1:])


def test_tuning_needs_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(FailedPrecondition, match="CUDA"):
        run_tuning(Settings(), tmp_path)
