"""What is said about times: bytes against the speed of a copy, targets, and how well the rule of the CPU chooses."""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from adamix_bench.kernels.cells import DECODE, Cell
from adamix_bench.kernels.clocks import Timing
from adamix_bench.measure import Goal, Spread

FLOOR_TARGET, DECODE_TARGET = 1.35, 2.0
_WITHIN = 1.1
_ITEMSIZES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Measured:
    """One cell in one dtype.

    Attributes:
        chosen: the form that the rules choose, under `form`; `plan` of its kernel, if it is one.
        times: by form, as far as they are known.
    """

    cell: Cell
    dtype: str
    chosen: dict[str, Any]
    times: dict[str, Timing] = field(default_factory=dict)

    @property
    def bytes_moved(self) -> int:
        return self.cell.bytes_moved(_ITEMSIZES[self.dtype])

    @property
    def us(self) -> float | None:
        """Microseconds of the form that is chosen."""
        return self.us_of(self.chosen["form"])

    def us_of(self, form: str) -> float | None:
        return self.times[form].us if form in self.times else None

    @property
    def best_form(self) -> str:
        """The quickest form; the chosen one if none is known."""
        known = {form: timing.us for form, timing in self.times.items() if timing.us is not None}
        return min(known, key=lambda form: known[form], default=str(self.chosen["form"]))

    @property
    def loss(self) -> float:
        """Time of the chosen form over that of the quickest; 1 where it is the quickest."""
        us, best = self.us, self.us_of(self.best_form)
        return 1.0 if us is None or best is None else us / best

    def over_floor(self, copy_gb_per_s: float) -> float | None:
        """Time over what moving the bytes takes at the speed of a copy."""
        return None if self.us is None else self.us * 1e3 * copy_gb_per_s / self.bytes_moved

    def to_json(self) -> dict[str, Any]:
        sizes = {"dtype": self.dtype, **asdict(self.cell), "bytes": self.bytes_moved, "flops": self.cell.flops}
        times = {form: {k: v for k, v in asdict(t).items() if v not in (None, "")} for form, t in self.times.items()}
        return {**sizes, "chosen": self.chosen, "times": times}


def floor_goals(cells: Collection[Measured], copy_gb_per_s: float) -> list[Goal]:
    """Of long batches, by features: the worst ratio of a cell to its floor."""
    goals = []
    for features in sorted({each.cell.features for each in cells}):
        ratios = {
            str(each.cell): ratio
            for each in cells
            if each.cell.is_long and each.cell.features == features and (ratio := each.over_floor(copy_gb_per_s))
        }
        what = f"T >= 2048, H={features}: time over that of a copy of the bytes, worst cell"
        goals.append(_worst(f"floor.{features}", what, ratios, FLOOR_TARGET))
    return [goal for goal in goals if goal.measured is not None]


def decode_goals(cells: Collection[Measured], empty_kernel_us: float) -> list[Goal]:
    """Of one row for each adapter: time over that of a kernel that does nothing. A target for the usual sizes only."""
    goals = []
    for rows in DECODE:
        of_rows = [each for each in cells if each.cell.is_decode and each.cell.rows == rows]
        for usual in (True, False):
            ratios = {
                str(each.cell): each.us / empty_kernel_us
                for each in of_rows
                if each.us is not None and each.cell.is_usual == usual
            }
            what = f"T = A = {rows}, {'H=768, r=64' if usual else 'other sizes'}: time over that of an empty kernel"
            name = f"decode.{rows}" + ("" if usual else ".others")
            goals.append(_worst(name, what, ratios, DECODE_TARGET if usual else None))
    return [goal for goal in goals if goal.measured is not None]


def _worst(name: str, what: str, ratios: dict[str, float], target: float | None) -> Goal:
    """A goal that holds if it holds in every cell."""
    if not ratios:
        return Goal(name, what, None, target, at_least=False)
    worst = max(ratios, key=lambda cell: ratios[cell])
    note = f"{worst}; median of {len(ratios)} cells {statistics.median(ratios.values()):.2f}"
    return Goal(name, what, Spread((ratios[worst],)), target, at_least=False, note=note)


def judge_rule(cells: Collection[Measured]) -> dict[str, dict[str, Any]]:
    """How well the rule chooses, by dtype: the share of cells where its form is within 10 % of the quickest, the mean
    (geometric) and the worst loss of time, and where that was."""
    return {dtype: _judged([c for c in cells if c.dtype == dtype]) for dtype in dict.fromkeys(c.dtype for c in cells)}


def _judged(cells: Sequence[Measured]) -> dict[str, Any]:
    worst = max(cells, key=lambda each: each.loss)
    return {
        "cells": len(cells),
        "share_within_10_percent": sum(each.loss <= _WITHIN for each in cells) / len(cells),
        "mean_loss": statistics.geometric_mean(each.loss for each in cells),
        "worst_loss": worst.loss,
        "worst_cell": str(worst.cell),
        "worst_choice": worst.chosen["form"],
        "worst_best": worst.best_form,
    }
