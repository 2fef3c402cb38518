"""The outcome of a run: one JSON document that is saved after every part, the table of the proof, one picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from adamix_bench import reports
from adamix_bench.measure import Goal, Spread
from adamix_bench.tenants.trace import Trace

FORMAT = "adamix-bench-tenants/1"
_COLUMNS = 4
_MOST_LINES = 10
_PROFILE = (
    "scenario",
    "tokens of a batch",
    "ms of a batch",
    "cores: engine",
    "front ends",
    "generator",
    "tokens per engine's CPU second",
)
# Numbers that are cut off say nothing.
_WIDTH = 132


@dataclass
class Report:
    """Everything known so far.

    Attributes:
        stem: of the names of its files.
        parts: what was measured, by the names of the document.
        traces: for the picture, by their titles.
        costs: by scenario, where its time went, as `ServerStage.costs`.
        facts: what else a reader of the numbers needs.
        failures: parts that could not be measured, with the reason.
    """

    out: Path
    stem: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    command: Sequence[str]
    goals: list[Goal] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def add(
        self,
        name: str,
        what: str,
        measured: float | Spread | None,
        target: float | None = None,
        *,
        at_least: bool = True,
        note: str = "",
    ) -> None:
        """One row of the proof."""
        spread = Spread((float(measured),)) if isinstance(measured, int | float) else measured
        self.goals.append(Goal(name, what, spread, target, at_least, note))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "complete": self.complete,
            "command": ["adamix", *self.command],
            "settings": self.settings,
            "machine": {**self.machine, "load_average_at_the_end": os.getloadavg()[0]},
            **self.facts,
            **({"costs_of_scenarios": self.costs} if self.costs else {}),
            **self.parts,
            "goals": [goal.to_json() for goal in self.goals],
            "failures": self.failures,
        }

    def save(self) -> dict[str, Any]:
        """Write what there is, and return it; a run that is cut short later leaves this behind."""
        document = self.to_json()
        reports.save(document, self.path(".json"))
        return document

    def path(self, suffix: str) -> Path:
        return self.out / f"{self.stem}{suffix}"

    def tables(self) -> Group:
        return Group(self._table(), self._profile()) if self.costs else Group(self._table())

    def save_text(self) -> Path:
        """Write the table as a page."""
        path = self.path(".md")
        lines = ["| | what | target | value | met? |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_cells(goal))} |" for goal in self.goals]
        if self.costs:
            lines += ["", "Where the time of each scenario went:", ""]
            lines += [f"| {' | '.join(_PROFILE)} |", "|---" * len(_PROFILE) + "|"]
            lines += [f"| {' | '.join(_spent(name, costs))} |" for name, costs in self.costs.items()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def print(self) -> None:
        console = Console()
        console.width = max(console.width, _WIDTH)
        console.print(self.tables())

    def _table(self) -> Table:
        table = Table("", "what", "target", "value", "met?")
        for goal in self.goals:
            name, what, target, value, verdict = _cells(goal)
            colour = {True: "[green]yes[/]", False: "[red]no[/]"}.get(goal.holds, verdict)  # type: ignore[arg-type]
            table.add_row(name, what, target, value, colour)
        return table

    def _profile(self) -> Table:
        table = Table(*_PROFILE, title="where the time of each scenario went", title_justify="left")
        for name, costs in self.costs.items():
            table.add_row(*_spent(name, costs))
        return table


def plot(report: Report) -> Path | None:
    """Tokens a second of each tenant over time, a panel a scenario; None without any."""
    if not report.traces:
        return None
    rows = -(-len(report.traces) // _COLUMNS)
    figure, panels = reports.pyplot().subplots(
        rows, _COLUMNS, figsize=(4 * _COLUMNS, 2.6 * rows), layout="constrained", squeeze=False
    )
    for axes in panels.flat[len(report.traces) :]:
        axes.set_axis_off()
    for axes, (title, trace) in zip(panels.flat, report.traces.items(), strict=False):
        times, rates = trace.over_time()
        for tenant, values in list(rates.items())[:_MOST_LINES]:
            axes.plot(times, values, label=tenant, linewidth=1.1)
        axes.set_title(title, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=6)
        if rates:
            axes.legend(fontsize=5, frameon=False, ncols=2)
    figure.supxlabel("seconds", fontsize=8)
    figure.supylabel("tokens a second", fontsize=8)
    return reports.save_figure(figure, report.path(".png"))


def _spent(name: str, costs: Mapping[str, float]) -> list[str]:
    """One row of the profile."""
    elapsed_s = costs["elapsed_s"]
    cores = [costs[f"{who}_cpu_s"] / elapsed_s for who in ("engine", "front_ends", "generator")]
    per_cpu_s = costs["answered_tokens"] / costs["engine_cpu_s"]
    return [
        name,
        f"{costs['batch_tokens']:.0f}",
        f"{1e3 * costs['batch_s']:.1f}",
        *(f"{each:.2f}" for each in cores),
        f"{per_cpu_s:,.0f}",
    ]


def _cells(goal: Goal) -> tuple[str, str, str, str, str]:
    bound = "" if goal.target is None else f"{'>=' if goal.at_least else '<='} {goal.target:g}"
    value = "-" if goal.measured is None else f"{goal.measured.median:.4g}"
    verdict = {True: "yes", False: "no", None: ""}[goal.holds]
    if goal.target is not None and goal.measured is None:
        verdict = "not measured"
    return goal.name, goal.what + (f" ({goal.note})" if goal.note else ""), bound, value, verdict
