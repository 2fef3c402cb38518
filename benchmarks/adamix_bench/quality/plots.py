"""Pictures of a comparison: how the merged adapter lies among the routes it replaces, and who wins by how much.

Colours are those of Okabe and Ito, which people who confuse red and green can tell apart; every marker has a shape of
its own besides.
"""

import statistics as plain
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adamix_bench import reports
from adamix_bench.quality.statistics import Record, RunKey, differences, mean_of, runs, values
from adamix_bench.quality.trainings import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _GREY, _INK = "#0072b2", "#d55e00", "#009e73", "#b8c4ca", "#2b3338"
# Fewer values than this are drawn as points: a density of them would be invented.
_LEAST_FOR_A_VIOLIN = 4
_MOST_IN_A_LINE = 4


def violins(records: Sequence[Record], path: Path) -> Path | None:
    """Like Figure 5 of the paper: for each task and size the random routes, and the merged adapter among them.

    Runs differ in level, by their rows and seeds. So each run's values are moved by what its merged value lies above or
    below the mean of all merged values of the task and size: what is left is what routing changes within a run.

    Returns:
        `path`; None where no run has both a merged value and draws of random routes.
    """
    merged = values(records, "merged")
    draws = {k: r["draws"] for k, r in runs(records, "random").items() if r.get("draws") and k in merged}
    if not draws:
        return None
    plt = reports.pyplot()
    tasks = list(dict.fromkeys(task for task, _, _ in draws))
    columns = len(tasks) if len(tasks) <= _MOST_IN_A_LINE else -(-len(tasks) // 2)
    lines = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(1.2 + 2.7 * columns, 0.9 + 2.9 * lines), layout="constrained", squeeze=False
    )
    others = {
        "fixed": {k: r.get("draws") or [r["value"]] for k, r in runs(records, "fixed").items()},
        "ensemble": {k: [value] for k, value in values(records, "ensemble").items()},
    }
    for axes, task in zip(grid.flat, tasks, strict=False):
        _violins_of_task(axes, task, merged, draws, others)
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("percent")
    # A task may lack what another one has.
    shown = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle("Merged adapter and random routes (runs moved to the mean of their merged values)", fontsize=10)
    return reports.save_figure(figure, path)


def paired_differences(
    records: Sequence[Record], path: Path, first: str = "merged", second: str = "single-compute"
) -> Path | None:
    """First minus second: each run a dot, each task and size a mean with its 95 % interval, all of them last.

    Returns:
        `path`; None where no run has both.
    """
    found = differences(records, first, second)
    if not found:
        return None
    groups: dict[str, list[float]] = {}
    for (task, rows, _), difference in found.items():
        groups.setdefault(f"{task}, {rows}", []).append(100 * difference)
    groups["all runs"] = [100 * difference for difference in found.values()]
    plt = reports.pyplot()
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.36 * len(groups)), layout="constrained")
    for line, (name, points) in enumerate(groups.items()):
        colour = _ORANGE if name == "all runs" else _BLUE
        if name != "all runs":
            axes.plot(points, [line] * len(points), "o", color=_GREY, markersize=4, zorder=1)
        mean = mean_of(points)
        if mean.mean_difference is None:
            continue
        half = 0.0 if mean.ci is None else mean.ci[1] - mean.mean_difference
        axes.errorbar(mean.mean_difference, line, xerr=half, fmt="D", color=colour, markersize=5, capsize=3, zorder=2)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.axhline(len(groups) - 1.5, color=_GREY, linewidth=0.8)
    axes.set_yticks(range(len(groups)), [f"{name} ({len(points)})" for name, points in groups.items()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{first} minus {second}, points; mean and 95 % interval, dots are runs", fontsize=9)
    return reports.save_figure(figure, path)


def ablations(records: Sequence[Record], path: Path, against: str = "merged") -> Path | None:
    """Every method minus one: the mean over the runs that both have, with its 95 % interval.

    Returns:
        `path`; None where no method has a run in common with `against`.
    """
    compared = {method: mean_of(list(differences(records, method, against).values())) for method in METHODS}
    found = {method: mean for method, mean in compared.items() if method != against and mean.count}
    if not found:
        return None
    plt = reports.pyplot()
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(found)), layout="constrained")
    for line, mean in enumerate(found.values()):
        middle = 100 * (mean.mean_difference or 0.0)
        half = 0.0 if mean.ci is None else 100 * mean.ci[1] - middle
        axes.errorbar(middle, line, xerr=half, fmt="D", color=_BLUE, markersize=5, capsize=3)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(found)), [f"{method} ({mean.count})" for method, mean in found.items()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"minus {against}, points; mean and 95 % interval over (runs that both have)", fontsize=9)
    return reports.save_figure(figure, path)


def _violins_of_task(
    axes: "Axes",
    task: str,
    merged: Mapping[RunKey, float],
    draws: Mapping[RunKey, Sequence[float]],
    others: Mapping[str, Mapping[RunKey, Sequence[float]]],
) -> None:
    sizes = list(dict.fromkeys(key[1] for key in draws if key[0] == task))
    for place, size in enumerate(sizes):
        keys = [key for key in draws if key[:2] == (task, size)]
        level = plain.fmean(merged[key] for key in keys)

        def moved(
            of_runs: Mapping[RunKey, Sequence[float]], keys: Sequence[RunKey] = keys, level: float = level
        ) -> list[float]:
            return [100 * (value - merged[key] + level) for key in keys for value in of_runs.get(key, ())]

        _violin(axes, place, moved(draws))
        # A label that begins with `_` has no place in the legend.
        prefix = "" if place == 0 else "_"
        axes.hlines(100 * level, place - 0.4, place + 0.4, color=_ORANGE, linewidth=2, label=prefix + "merged")
        for (name, of_runs), (colour, marker, shift) in zip(
            others.items(), ((_GREEN, "s", -0.14), (_INK, "^", 0.14)), strict=True
        ):
            if found := moved(of_runs):
                axes.plot(
                    place + shift, plain.fmean(found), marker, color=colour, markersize=6, linestyle="none",
                    label=f"{prefix}{name} (mean)",
                )  # fmt: skip
    axes.set_title(task, fontsize=9)
    axes.set_xticks(range(len(sizes)), [f"{size} rows" for size in sizes], fontsize=8)
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.tick_params(axis="y", labelsize=8)


def _violin(axes: "Axes", place: int, found: Sequence[float]) -> None:
    label = "random routes" if place == 0 else None
    if len(found) < _LEAST_FOR_A_VIOLIN or max(found) - min(found) < 1e-9:
        axes.plot([place] * len(found), found, "o", color=_BLUE, alpha=0.5, label=label)
        return
    for body in axes.violinplot([found], [place], widths=0.7, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
        body.set(facecolor=_BLUE, alpha=0.35, edgecolor=_BLUE, label=label)
    axes.plot([place] * len(found), found, ".", color=_BLUE, markersize=2.5, alpha=0.6)
