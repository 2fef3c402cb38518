"""The outcome of a run: one JSON document that is saved after every part, a table for people, one picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from adamix_bench import reports
from adamix_bench.measure import Goal, Spread

FORMAT = "adamix-bench-faces/1"
# Numbers that are cut off say nothing.
_WIDTH = 132


@dataclass
class Report:
    """Everything known so far.

    Attributes:
        cpu_ms: milliseconds of processor time by way: what each kind of process spent on a call.
        rates: inputs a second by way.
        facts: what else a reader of the numbers needs.
        failures: parts that could not be measured, with the reason.
    """

    out: Path
    settings: dict[str, Any]
    machine: dict[str, Any]
    command: Sequence[str]
    goals: list[Goal] = field(default_factory=list)
    cpu_ms: dict[str, dict[str, Spread]] = field(default_factory=dict)
    rates: dict[str, Spread] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def add(
        self,
        name: str,
        what: str,
        measured: Spread | None,
        target: float | None = None,
        *,
        at_least: bool = False,
        note: str = "",
    ) -> None:
        """One number, and what it is to be at most."""
        self.goals.append(Goal(name, what, measured, target, at_least, note))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "complete": self.complete,
            "command": ["adamix", *self.command],
            "settings": self.settings,
            "machine": {**self.machine, "load_average_at_the_end": os.getloadavg()[0]},
            "goals": [goal.to_json() for goal in self.goals],
            "inputs_per_s": {way: spread.to_json() for way, spread in self.rates.items()},
            "cpu_ms": {way: {what: s.to_json() for what, s in costs.items()} for way, costs in self.cpu_ms.items()},
            "facts": self.facts,
            "failures": self.failures,
        }

    def save(self) -> dict[str, Any]:
        """Write what there is, and return it; a run that is cut short later leaves this behind."""
        document = self.to_json()
        reports.save(document, self.out / "faces.json")
        return document

    def print(self) -> None:
        console = Console()
        console.width = max(console.width, _WIDTH)
        console.print(reports.goals_table(self.goals))


def plot(report: Report) -> Path | None:
    """How much of what it may be each number is: left of the line it holds. None without any."""
    shares: dict[str, Spread] = {}
    for goal in report.goals:
        if goal.measured is not None and goal.target is not None:
            target = Spread((goal.target,) * len(goal.measured.values))
            shares[goal.name] = target.over(goal.measured) if goal.at_least else goal.measured.over(target)
    if not shares:
        return None
    figure, axes = reports.pyplot().subplots(figsize=(7, 1.2 + 0.34 * len(shares)), layout="constrained")
    colours = ["#1f6f8b" if spread.median <= 1 else "#b5483a" for spread in shares.values()]
    axes.bar_label(reports.bars(axes, shares, colours), [f" {s.median:.2f}" for s in shares.values()], fontsize=7)
    axes.axvline(1, color="#55636b", linewidth=0.8)
    axes.margins(x=0.12)
    axes.set(title="Of what each may be (median, lowest, highest; up to 1 holds)")
    return reports.save_figure(figure, report.out / "faces.png")
