"""The outcome of a run: one JSON document, tables for people, and a roofline plot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from adamix_bench import reports
from adamix_bench.kernels.cells import Cell
from adamix_bench.kernels.verdicts import Measured, decode_goals, floor_goals, judge_rule
from adamix_bench.measure import Goal

FORMAT = "adamix-bench-kernels/1"


@dataclass
class Report:
    """Everything known so far.

    Attributes:
        facts: `copy_gb_per_s`, and on CUDA `empty_kernel_us`.
        encoder: what `whole_encoder` found; its goals.
        failures: parts that could not be measured, with the reason.
        status: `complete`, or why not.
    """

    directory: Path
    device: str
    device_type: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    command: Sequence[str]
    facts: dict[str, Any] = field(default_factory=dict)
    cells: dict[tuple[Cell, str], Measured] = field(default_factory=dict)
    encoder: list[Goal] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    status: str = "running"

    @property
    def goals(self) -> list[Goal]:
        if "empty_kernel_us" not in self.facts:
            return self.encoder
        cells = self.cells.values()
        floors = floor_goals(cells, self.facts["copy_gb_per_s"])
        return [*floors, *decode_goals(cells, self.facts["empty_kernel_us"]), *self.encoder]

    @property
    def rule(self) -> dict[str, dict[str, Any]]:
        """The verdict on the rule that chooses among forms, which there is on a CPU."""
        return judge_rule(self.cells.values()) if self.device_type == "cpu" else {}

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "status": self.status,
            "command": ["adamix", *self.command],
            "settings": self.settings,
            "machine": self.machine,
            "device": {"name": self.device, "type": self.device_type, **self.facts},
            "goals": [goal.to_json() for goal in self.goals],
            "rule": self.rule,
            "failures": self.failures,
            "cells": [measured.to_json() for measured in self.cells.values()],
        }

    def save(self) -> None:
        """Write what there is."""
        reports.save(self.to_json(), self.directory / "kernels.json")

    def tables(self) -> Group:
        parts = [_cells_table(self)]
        if self.goals:
            parts.append(reports.goals_table(self.goals))
        if self.rule:
            parts.append(_rule_table(self.rule))
        return Group(*parts)


def plots(report: Report) -> list[Path]:
    """The roofline, if matplotlib is there and something was measured: what was moved in a nanosecond against what had
    to be moved, under the speed of a copy and, on CUDA, behind the time of an empty launch."""
    known = [(each, each.us) for each in report.cells.values() if each.us is not None]
    if not known or find_spec("matplotlib") is None:
        return []
    figure, axes = reports.pyplot().subplots(figsize=(9, 6), layout="constrained")

    def dots(found: list[tuple[int, float]], label: str, size: float, color: str | None = None) -> None:
        moved = [num_bytes for num_bytes, _ in found]
        axes.scatter(moved, [num_bytes / us / 1e3 for num_bytes, us in found], s=size, color=color, label=label)

    others = [
        (each.bytes_moved, us)
        for each in report.cells.values()
        for form in each.times
        if form != each.chosen["form"] and (us := each.us_of(form))
    ]
    dots(others, "other forms", 7, "#c9ced1")
    for features in sorted({each.cell.features for each, _ in known}):
        chosen = [(each.bytes_moved, us) for each, us in known if each.cell.features == features]
        dots(chosen, f"chosen form, H={features}", 16)
    ends = [min(each.bytes_moved for each, _ in known) / 2, 2 * max(each.bytes_moved for each, _ in known)]
    copy = report.facts["copy_gb_per_s"]
    axes.plot(ends, [copy, copy], color="#55636b", label=f"copy: {copy:,.0f} GB/s")
    if empty := report.facts.get("empty_kernel_us"):
        launched = [min(end / empty / 1e3, copy) for end in ends]
        bend = copy * empty * 1e3
        if ends[0] < bend < ends[1]:
            ends, launched = [ends[0], bend, ends[1]], [launched[0], copy, launched[1]]
        axes.plot(ends, launched, "--", color="#55636b", label=f"empty kernel: {empty:.2f} us")
    axes.set(xscale="log", yscale="log", xlabel="bytes that have to be moved", ylabel="GB/s")
    axes.set_title(f"Bottlenecks of a mixed batch, {report.device}")
    axes.legend(fontsize=7, frameon=False)
    return [reports.save_figure(figure, report.directory / "kernels.png")]


def _cells_table(report: Report) -> Table:
    """The chosen form's bytes and share, and the times of all forms; the quickest stands out."""
    forms = list(dict.fromkeys(form for each in report.cells.values() for form in each.times))
    table = Table("cell", "dtype", "MB", "GB/s", "of a copy", "chosen", *(f"{form}, us" for form in forms))
    for each in report.cells.values():
        rate = None if each.us is None else each.bytes_moved / each.us / 1e3
        row = [str(each.cell), each.dtype, f"{each.bytes_moved / 1e6:.2f}"]
        row += ["-", "-"] if rate is None else [f"{rate:,.0f}", f"{rate / report.facts['copy_gb_per_s']:.0%}"]
        row.append(each.chosen.get("plan", each.chosen["form"]))
        for form in forms:
            us = each.us_of(form)
            text = "-" if us is None else f"{us:,.1f}"
            row.append(f"[bold]{text}[/]" if form == each.best_form else text)
        table.add_row(*row)
    return table


def _rule_table(rule: dict[str, dict[str, Any]]) -> Table:
    table = Table("the rule", "cells", "within 10 % of the best", "mean loss", "worst loss", "where", "chose", "best")
    for dtype, found in rule.items():
        share, mean, worst = (found[name] for name in ("share_within_10_percent", "mean_loss", "worst_loss"))
        where = (found["worst_cell"], found["worst_choice"], found["worst_best"])
        table.add_row(dtype, str(found["cells"]), f"{share:.0%}", f"{mean:.2f}", f"{worst:.2f}", *where)
    return table
