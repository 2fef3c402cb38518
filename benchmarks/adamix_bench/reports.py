"""What the reports of all benchmarks have in common: a document on disk, a table of goals, bars, a picture in a file.

Knows no benchmark, and needs rich alone: matplotlib is imported when something is drawn.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from adamix_bench.measure import Goal, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

_DPI = 130


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write a document as JSON, replacing what was there whole: a run that is cut short leaves its last save behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def goals_table(goals: Sequence[Goal]) -> Table:
    """Every goal with its target, what was measured, and whether that holds."""
    table = Table("", "what", "target", "median", "min", "max", "holds?")
    for goal in goals:
        bound = "" if goal.target is None else f"{'>=' if goal.at_least else '<='} {goal.target:g}"
        found = ("-", "-", "-")
        if goal.measured is not None:
            values = (goal.measured.median, goal.measured.lowest, goal.measured.highest)
            found = (f"{values[0]:.3g}", f"{values[1]:.3g}", f"{values[2]:.3g}")
        verdict = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[goal.holds]
        if goal.target is not None and goal.measured is None:
            verdict = "not measured"
        table.add_row(goal.name, goal.what + (f" ({goal.note})" if goal.note else ""), bound, *found, verdict)
    return table


def pyplot() -> Any:
    """matplotlib.pyplot, for files alone."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def bars(axes: "Axes", spreads: Mapping[str, Spread], colours: str | Sequence[str] = "#1f6f8b") -> "BarContainer":
    """One horizontal bar a name, the first on top: its median, and a line from the lowest value to the highest."""
    medians = [spread.median for spread in spreads.values()]
    lows = [spread.median - spread.lowest for spread in spreads.values()]
    highs = [spread.highest - spread.median for spread in spreads.values()]
    drawn = axes.barh(range(len(spreads)), medians, xerr=[lows, highs], color=colours, ecolor="#55636b")
    axes.set_yticks(range(len(spreads)), list(spreads), fontsize=7)
    axes.invert_yaxis()
    return drawn


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a picture, without the frames' upper and right lines, and close it. Returns `path`."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    pyplot().close(figure)
    return path
