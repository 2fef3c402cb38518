"""The report of a comparison: tables for people, as text and as Markdown, and the document of everything.

What was not measured is shown as missing. A mean over tasks takes only lines that every measured method of the table
has: no cell is filled in, and no method gains by the tasks it lacks.
"""

import statistics as plain
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from adamix_bench.quality.statistics import FEW_SHOT_ROWS, Record, RunKey, claim, paired, run_order, values
from adamix_bench.quality.trainings import METHODS

FORMAT = "adamix-bench-quality/1"
MISSING = "-"
_NAMES = {
    "merged": "AdaMix",
    "m2": "M = 2",
    "m8": "M = 8",
    "single-compute": "single, equal compute",
    "shortest": "AdaMix, shortest training",
}
_MAIN = ("head", "single", "single-compute", "lora", "merged", "shortest")
# Tables 7 to 9 of the paper, and what else may make the difference.
_ABLATIONS = (
    ("Inference: the merged adapter and the routes it replaces", ("merged", "random", "fixed", "ensemble")),
    (
        "Training: consistency (AdaMix has 1), sharing, start",
        ("merged", "no-consistency", "consistency-5", "no-sharing", "same-start"),
    ),
    ("Number of experts (AdaMix has 4)", ("m2", "merged", "m8")),
    ("Rank (AdaMix has 16)", ("rank-4", "single-rank-4", "merged", "single-compute", "rank-64", "single-rank-64")),
)


@dataclass(frozen=True)
class Grid:
    """A table of text: `lines` have a cell for each of `columns`, `footer` stands below them."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    footer: tuple[tuple[str, ...], ...] = ()

    def rich(self) -> Table:
        table = Table(*self.columns, title=self.title, title_justify="left")
        for line in self.lines:
            table.add_row(*line)
        if self.footer:
            table.add_section()
        for line in self.footer:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        rows = [self.columns, ("---",) * len(self.columns), *self.lines, *self.footer]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def tables(records: Sequence[Record]) -> list[Grid]:
    """The main table, and of each ablation that was measured one with the tasks and sizes it was measured on.

    Raises:
        InvalidData: see `statistics.values`.
    """
    found = [main_table(records)]
    for title, methods in _ABLATIONS:
        measured = {method for method in methods if values(records, method)}
        lines = {key[:2] for method in measured.difference(_MAIN) for key in values(records, method)}
        if len(measured) > 1 and lines:
            its_own = [record for record in records if (record["task"], record["rows"]) in lines]
            found.append(comparison(its_own, methods, title, against="merged"))
    return found


def main_table(records: Sequence[Record]) -> Grid:
    """AdaMix and what else may be trained, on every task and size: mean and deviation over seeds."""
    measured = [method for method in _MAIN if values(records, method)]
    against = "single-compute" if "single-compute" in measured else None
    title = "One module or AdaMix: mean ± deviation over seeds, in percent (seeds)"
    return comparison(records, measured, title, against)


def comparison(records: Sequence[Record], methods: Sequence[str], title: str, against: str | None = None) -> Grid:
    """A line for each task and size, a column for each method.

    Args:
        against: below the lines, each method minus this one on the runs that both have, with its confidence interval.
    """
    by_method = {method: values(records, method) for method in methods}
    measured = [place for place, method in enumerate(methods) if by_method[method]]
    lines: list[tuple[str, ...]] = []
    means: list[list[float | None]] = []
    for task, rows in _cells(by_method.values()):
        found = [_of_cell(by_method[method], task, rows) for method in methods]
        lines.append((task, str(rows), *(_mean_text(seeds) for seeds in found)))
        if all(found[place] for place in measured):
            means.append([plain.fmean(seeds) if seeds else None for seeds in found])
    footer = [_mean_line(means, len(methods))]
    if against is not None:
        footer.append(("minus " + _name(against), "", *(_against(records, method, against) for method in methods)))
    columns = ("task", "rows", *(_name(method) for method in methods))
    return Grid(title, columns, tuple(lines), tuple(footer))


def claim_lines(found: Mapping[str, Any]) -> list[str]:
    """The claim in sentences, whether or not it holds."""
    if found["pairs"] == 0:
        return ["No run has both AdaMix and the single adapter of equal compute: there is nothing to claim."]
    count = f"{found['pairs']} few-shot pairs: {found['wins']} won, {found['ties']} tied, {found['losses']} lost"
    lines = [f"AdaMix merged minus single adapter of equal compute, {_points(found['mean_difference'])} over {count}."]
    if found["ci"] is not None:
        low, high = found["ci"]
        lines.append(
            f"95 % interval {_points(low)} to {_points(high)}; p = {found['p_value']:.3g} (paired t), "
            f"{found['permutation_p_value']:.3g} (sign flips)."
        )
    tasks = found["over_tasks"]
    if tasks["ci"] is not None:
        lines.append(
            f"With each of {tasks['count']} tasks as one observation {_points(tasks['mean_difference'])}, "
            f"{_points(tasks['ci'][0])} to {_points(tasks['ci'][1])}; p = {tasks['p_value']:.3g} (t), "
            f"{tasks['permutation_p_value']:.3g} (sign flips)."
        )
    routes = found["merged_over_random_route"]
    if routes["runs"]:
        lines.append(
            f"Merged is at least as good as the mean random route in {routes['at_least_as_good']:.0%} of "
            f"{routes['runs']} runs, better in {routes['better']:.0%}."
        )
    return lines


def document(
    records: Sequence[Record],
    *,
    command: Sequence[str],
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    tuning: Any,
    rows: Collection[int | str] = FEW_SHOT_ROWS,
) -> dict[str, Any]:
    """What `quality.json` holds. `claim` and `comparisons` follow from `runs` alone.

    Args:
        command: the words after `adamix`.
        tuning: how learning rates and steps were chosen; anything JSON can hold.
        rows: sizes that the claim is about.

    Raises:
        InvalidData: see `statistics.values`.
    """
    measured = [method for method in METHODS if values(records, method)]
    ordered = sorted(records, key=lambda r: (*run_order((r["task"], r["rows"], r["seed"])), r["method"]))
    return {
        "format": FORMAT,
        "command": ["adamix", *command],
        "machine": dict(machine),
        "settings": dict(settings),
        "tuning": tuning,
        "claim": claim(records, rows),
        "comparisons": [
            paired(records, "merged", method).to_json()
            for method in measured
            if method != "merged" and "merged" in measured
        ],
        "runs": [{name: value for name, value in record.items() if name != "kind"} for record in ordered],
    }


def _cells(of_methods: Collection[Mapping[RunKey, float]]) -> list[tuple[str, int | str]]:
    """Tasks and sizes that any method has."""
    keys = sorted({key for found in of_methods for key in found}, key=run_order)
    return list(dict.fromkeys((task, rows) for task, rows, _ in keys))


def _of_cell(found: Mapping[RunKey, float], task: str, rows: int | str) -> list[float]:
    """The values of a cell, seed by seed."""
    return [value for key, value in found.items() if key[:2] == (task, rows)]


def _mean_line(means: Sequence[Sequence[float | None]], width: int) -> tuple[str, ...]:
    """The mean of each column over complete lines; a method without any run has none."""
    cells = []
    for place in range(width):
        column = [value for line in means if (value := line[place]) is not None]
        cells.append(f"{100 * plain.fmean(column):.1f}" if column else MISSING)
    return (f"mean of {len(means)} complete line{'' if len(means) == 1 else 's'}", "", *cells)


def _mean_text(seeds: Sequence[float]) -> str:
    if not seeds:
        return MISSING
    spread = f" ± {100 * plain.stdev(seeds):.1f}" if len(seeds) > 1 else ""
    return f"{100 * plain.fmean(seeds):.1f}{spread} ({len(seeds)})"


def _against(records: Sequence[Record], method: str, other: str) -> str:
    if method == other:
        return ""
    found = paired(records, method, other)
    if found.mean_difference is None:
        return MISSING
    interval = "" if found.ci is None else f" [{100 * found.ci[0]:+.1f}, {100 * found.ci[1]:+.1f}]"
    return f"{100 * found.mean_difference:+.1f}{interval} ({found.pairs})"


def _points(difference: float) -> str:
    """A difference of two shares, in points of a hundred."""
    return f"{100 * difference:+.2f} points"


def _name(method: str) -> str:
    return _NAMES.get(method, method)
