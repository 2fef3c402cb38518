"""What the runs of a comparison say, and how sure one can be: pure functions over records.

A record is a dictionary with `task`, `rows` (a number or "all"), `seed`, `method`, `metric`, `value` (higher is better)
and possibly `draws`. Two methods are compared on the runs that both have: the same task, the same rows, the same seed.
Values of different metrics (accuracy, a correlation) are averaged as they are, all between 0 and 1. Nothing here knows
how anything was trained.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adamix.errors import InvalidData

Record = Mapping[str, Any]
RunKey = tuple[str, int | str, int]
"""Task, rows, seed."""

FEW_SHOT_ROWS = (100, 300, 1000)
CONFIDENCE = 0.95
_FIELDS = ("task", "rows", "seed", "method", "metric", "value")
# Up to so many pairs all sign flips are tried, 2 ** 16 of them; beyond, so many are drawn.
_EXACT_PAIRS, _DRAWN_FLIPS = 16, 100_000
# Sums that are equal but for rounding count as equal: a p value must not depend on the order of a sum.
_ROUNDING, _TIE = 1e-9, 1e-12


@dataclass(frozen=True)
class Mean:
    """A mean difference and how far it may be chance. None where the runs are too few to say (none, or one).

    Attributes:
        count: differences it is the mean of.
        ci: confidence interval of 95 %, Student's t.
        p_value: two-sided t test of the differences against 0.
        permutation_p_value: two-sided test by flipping the signs of the differences, all of them or 100,000 drawn with
            a fixed seed; asks for no normal distribution.
    """

    count: int
    mean_difference: float | None
    ci: tuple[float, float] | None
    p_value: float | None
    permutation_p_value: float | None


@dataclass(frozen=True)
class Paired:
    """The first method minus the second on the runs that both have.

    The p value *of the claim* is `runs.p_value`: the paired t test over (task, rows, seed). It takes every run for an
    independent one, which seeds of one task, and sizes of one task and seed, are not: they say more about the same
    task. Beside it stand a test without the normal distribution, and `tasks`, the strict view in which each task is one
    observation, the mean of its runs: it says whether another task would show the difference too, and needs many tasks
    to say anything (with five tasks no sign-flip test can come below 0.06).

    Attributes:
        wins, ties, losses: of the first method.
    """

    first: str
    second: str
    runs: Mean
    tasks: Mean
    wins: int
    ties: int
    losses: int

    @property
    def pairs(self) -> int:
        return self.runs.count

    @property
    def mean_difference(self) -> float | None:
        return self.runs.mean_difference

    @property
    def ci(self) -> tuple[float, float] | None:
        return self.runs.ci

    @property
    def p_value(self) -> float | None:
        return self.runs.p_value

    def to_json(self) -> dict[str, Any]:
        runs = asdict(self.runs)
        return {
            "first": self.first,
            "second": self.second,
            "pairs": runs.pop("count"),
            **_listed(runs),
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "over_tasks": _listed(asdict(self.tasks)),
        }


def values(records: Sequence[Record], method: str, rows: Collection[int | str] | None = None) -> dict[RunKey, float]:
    """The value of every run of a method, in order of task, rows and seed.

    Args:
        rows: sizes that count; None for all.

    Raises:
        InvalidData: a record lacks a field or its value is no finite number; a run is there twice.
    """
    return {key: float(record["value"]) for key, record in runs(records, method, rows).items()}


def runs(records: Sequence[Record], method: str, rows: Collection[int | str] | None = None) -> dict[RunKey, Record]:
    """The record of every run of a method, as `values`."""
    found: dict[RunKey, Record] = {}
    for record in records:
        _check(record)
        if record["method"] != method or (rows is not None and record["rows"] not in rows):
            continue
        key = (record["task"], record["rows"], record["seed"])
        if key in found:
            raise InvalidData(f"{method} on {key[0]}, {key[1]} rows, seed {key[2]} is there twice: remove one record")
        found[key] = record
    return dict(sorted(found.items(), key=lambda item: run_order(item[0])))


def run_order(key: RunKey) -> tuple[str, float, int]:
    """Sorts runs by task, then size, `all` last, then seed."""
    task, rows, seed = key
    return task, math.inf if isinstance(rows, str) else rows, seed


def differences(
    records: Sequence[Record], first: str, second: str, rows: Collection[int | str] | None = None
) -> dict[RunKey, float]:
    """First minus second on each run that both have, in order of task, rows and seed.

    Raises:
        InvalidData: as `values`; or the two were measured by different metrics.
    """
    ours, theirs = runs(records, first, rows), runs(records, second, rows)
    for key in ours.keys() & theirs.keys():
        if ours[key]["metric"] != theirs[key]["metric"]:
            raise InvalidData(f"{first} and {second} have different metrics on {key[0]}: they cannot be compared")
    return {key: float(record["value"]) - float(theirs[key]["value"]) for key, record in ours.items() if key in theirs}


def paired(records: Sequence[Record], first: str, second: str, rows: Collection[int | str] | None = None) -> Paired:
    """Compare two methods on the runs that both have.

    Args:
        rows: sizes that count; None for all.

    Raises:
        InvalidData: as `differences`.
    """
    found = differences(records, first, second, rows)
    by_task = {task: [d for key, d in found.items() if key[0] == task] for task in dict.fromkeys(k[0] for k in found)}
    return Paired(
        first=first,
        second=second,
        runs=mean_of(list(found.values())),
        tasks=mean_of([math.fsum(ds) / len(ds) for ds in by_task.values()]),
        wins=sum(d > _TIE for d in found.values()),
        ties=sum(abs(d) <= _TIE for d in found.values()),
        losses=sum(d < -_TIE for d in found.values()),
    )


def claim(records: Sequence[Record], rows: Collection[int | str] = FEW_SHOT_ROWS) -> dict[str, Any]:
    """The claim of the paper, as these runs have it: JSON values alone, the same for any order of the records.

    `merged` against `single-compute`, which has the same compute, over the few-shot runs; see `Paired` for what the p
    values mean. Beside it, the share of *all* runs in which the merged adapter is no worse, and in which it is better,
    than the mean random route of the same mixture.

    Raises:
        InvalidData: as `differences`.
    """
    compared = paired(records, "merged", "single-compute", rows)
    routes = paired(records, "merged", "random")
    return {
        "rows": sorted(rows, key=lambda size: run_order(("", size, 0))),
        **compared.to_json(),
        "merged_over_random_route": {
            "runs": routes.pairs,
            "at_least_as_good": (routes.wins + routes.ties) / routes.pairs if routes.pairs else None,
            "better": routes.wins / routes.pairs if routes.pairs else None,
            "mean_difference": routes.mean_difference,
        },
    }


def mean_of(found: Sequence[float]) -> Mean:
    """The mean of differences, with its interval and both tests."""
    count = len(found)
    mean = math.fsum(found) / count if count else None
    if mean is None or count < 2:
        return Mean(count, mean, None, None, None)
    array = np.asarray(found, np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(count)
    if error <= _ROUNDING * abs(mean) or error == 0:
        # All alike: Student's t divides by 0.
        p_value, half = (1.0 if mean == 0 else 0.0), 0.0
    else:
        p_value = float(2 * stats.t.sf(abs(mean / error), count - 1))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Mean(count, mean, (mean - half, mean + half), p_value, _sign_flip_p(array))


def _sign_flip_p(found: NDArray[np.float64]) -> float:
    """How often the mean is as far from 0 as it is, were every sign a coin's."""
    observed = abs(found.sum())
    limit = observed - _ROUNDING * float(np.abs(found).sum())
    if len(found) <= _EXACT_PAIRS:
        sums = np.zeros(1)
        for difference in found:
            sums = np.concatenate([sums + difference, sums - difference])
        return float((np.abs(sums) >= limit).mean())
    random, hits, left = np.random.default_rng(0), 0, _DRAWN_FLIPS
    while left:
        size = min(left, 10_000)  # at once: all of them would take memory by the number of pairs
        signs = random.integers(0, 2, (size, len(found))) * 2.0 - 1.0
        hits += int((np.abs(signs @ found) >= limit).sum())
        left -= size
    # What was observed is one of the flips.
    return (hits + 1) / (_DRAWN_FLIPS + 1)


def _check(record: Record) -> None:
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        raise InvalidData(f"a record has no {missing[0]!r}: {dict(record)}")
    if record["rows"] != "all" and (isinstance(record["rows"], bool) or not isinstance(record["rows"], int)):
        raise InvalidData(f"a record of {record['method']} has {record['rows']!r} rows: a number or `all` is wanted")
    for number in (record["value"], *record.get("draws", ())):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InvalidData(f"a record of {record['method']} on {record['task']} has the value {number!r}")


def _listed(fields: dict[str, Any]) -> dict[str, Any]:
    """Tuples as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
