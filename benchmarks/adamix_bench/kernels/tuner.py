"""Finds faster plans for one architecture: rule by rule, one number of a plan at a time.

A rule of the tables (`adamix_kernels.plans`) keeps its name, its limits and its kernel; its plan is what is tried. Of
each rule a few launches represent all: for every rank class it is picked for, the usual sizes before others. A plan is
as good as the geometric mean of their times, and is out of the question if it cannot be launched, or computes
something else, in one of them. Starting from the plan there is, each number in turn takes the value that is best,
until none changes: a few dozen plans of the hundreds there are. A new plan has to win by 3 %, or it is noise. How a
launch is timed is the caller's: this module knows no torch.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from adamix_bench.kernels.cells import USUAL_FEATURES, USUAL_RANK
from adamix_kernels.plans import RANK_CLASSES, Facts, Plan, Rule, document

# Microseconds of a launch; None where the plan will not do.
TimePlan = Callable[[Plan, Facts], float | None]

OP = "low_rank"
_VALUES: dict[str, tuple[int | bool, ...]] = {
    "block_m": (16, 32, 64, 128),
    "block_h": (16, 32, 64, 128, 256),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4),
    "block_n": (32, 64, 128, 256),
    "splits": (2, 4, 8, 16),
    "pdl": (False, True),
}
_SPLIT_ONLY = ("block_n", "splits", "pdl")
_WITH_PDL = ("sm90", "sm100")
_FEATURES, _ROWS, _SEGMENTS = (768, 1024, 4096), (2048, 4096, 8192, 512, 128, 32, 8), (16, 64, 1)
_MOST_LAUNCHES = 4
_HAS_TO_WIN = 0.97


@dataclass(frozen=True)
class Change:
    """What became of a rule's plan: microseconds are geometric means over its launches."""

    rule: str
    before: Plan
    after: Plan
    before_us: float
    after_us: float
    tried: int


def tune(
    rules: Sequence[Rule],
    architecture: str,
    time_plan: TimePlan,
    *,
    dtypes: Sequence[str] = ("bf16", "fp32"),
    is_over: Callable[[], bool] = lambda: False,
    on_rule: Callable[[str], None] = lambda _: None,
) -> tuple[list[Rule], list[Change]]:
    """The rules of `OP` with better plans, and what was found for each that was tried.

    Args:
        dtypes: whose rules are tried: a rule for bf16 and fp16 is tried with bf16.
        is_over: asked before each rule; from then on plans stay as they are.
        on_rule: told the name of each rule that is tried.
    """
    tuned, changes = [], []
    for rule in rules:
        launches = represented(rules, rule, dtypes)
        if launches and not is_over():
            on_rule(rule.name)
            change = _descend(rule, architecture, launches, time_plan)
            if change is not None:
                changes.append(change)
                tuned.append(replace(rule, plan=change.after))
                continue
        tuned.append(rule)
    return tuned, changes


def represented(rules: Sequence[Rule], rule: Rule, dtypes: Sequence[str]) -> list[Facts]:
    """The launches that stand for a rule: those that lead to it, each rank class once before any twice."""
    ranks = sorted(RANK_CLASSES, key=lambda rank: (rank != USUAL_RANK, -rank))
    features = sorted(_FEATURES, key=lambda size: (size != USUAL_FEATURES, -size))
    by_rank: dict[int, list[Facts]] = {}
    for rank, dtype, h, rows, segments in product(ranks, dtypes, features, _ROWS, _SEGMENTS):
        facts = Facts(dtype, rank, h, rows, segments)
        if segments <= rows and next(each for each in rules if each.holds(facts)) is rule:
            by_rank.setdefault(rank, []).append(facts)
    # The largest ranks ask for most memory: a plan has to do for them too.
    turns = (found[turn] for turn in range(_MOST_LAUNCHES) for found in by_rank.values() if turn < len(found))
    return [facts for facts, _ in zip(turns, range(max(_MOST_LAUNCHES, len(by_rank))), strict=False)]


def table_text(rules: Mapping[str, Sequence[Rule]]) -> str:
    """A table as its file has it: one rule a line."""
    ops = []
    for op, entries in document(dict(rules)).items():
        lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
        ops.append(f"  {json.dumps(op)}: [\n{lines}\n  ]")
    return "{\n" + ",\n".join(ops) + "\n}\n"


def write_table(path: Path, rules: Mapping[str, Sequence[Rule]]) -> None:
    """Replace a table's file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(table_text(rules), encoding="utf-8")
    temporary.replace(path)


def _descend(rule: Rule, architecture: str, launches: Sequence[Facts], time_plan: TimePlan) -> Change | None:
    """None if the rule's own plan cannot be timed."""
    scores: dict[Plan, float | None] = {}

    def score(plan: Plan) -> float:
        if plan not in scores:
            scores[plan] = _mean_us(plan, launches, time_plan)
        found = scores[plan]
        return float("inf") if found is None else found

    best = rule.plan
    if score(best) == float("inf"):
        return None
    is_better = True
    while is_better:
        is_better = False
        for name in _VALUES:
            quickest = min(_with_other(best, name, architecture), key=score, default=best)
            if score(quickest) < score(best):
                best, is_better = quickest, True
    if score(best) > _HAS_TO_WIN * score(rule.plan):
        best = rule.plan
    return Change(rule.name, rule.plan, best, score(rule.plan), score(best), len(scores))


def _mean_us(plan: Plan, launches: Sequence[Facts], time_plan: TimePlan) -> float | None:
    found = []
    for facts in launches:
        us = time_plan(plan, facts)
        if us is None:
            return None
        found.append(us)
    return statistics.geometric_mean(found)


def _with_other(plan: Plan, name: str, architecture: str) -> Iterator[Plan]:
    """The plan with every other value of one number."""
    if plan.kernel != "split" and name in _SPLIT_ONLY:
        return
    if name == "pdl" and architecture not in _WITH_PDL:
        return
    for value in _VALUES[name]:
        if value != getattr(plan, name):
            yield replace(plan, **{name: value})  # type: ignore[arg-type]  # of the type of this number
