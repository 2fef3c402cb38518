"""What `adamix evaluate --routing …` measures and shows beyond a merged adapter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.cli.terminal import format_metrics, print_json
from adamix.errors import InvalidConfig
from adamix.routing.seeds import DEFAULT_SEEDS, num_routes

__all__ = ["DEFAULT_SEEDS", "check_flags", "draw", "show", "size"]

if TYPE_CHECKING:
    from adamix.routing.choice import Routing
    from adamix.routing.report import DrawsReport, EnsembleReport, Measured


def check_flags(routing: "Routing", seeds: int | None, plot: Path | None) -> int:
    """The number of random routes. Raises InvalidConfig where a flag has no meaning for the routing."""
    chosen = num_routes(routing, seeds)
    if plot is not None:
        if routing.mode not in ("random", "ensemble"):
            raise InvalidConfig(f"--plot draws random routing or an ensemble; {routing} is one number", field="plot")
        from adamix.routing.plots import check_format

        check_format(plot.name)
        if not plot.parent.is_dir():
            raise InvalidConfig(f"--plot: there is no directory {plot.parent}", field="plot")
    return chosen


def draw(report: "DrawsReport[Any] | EnsembleReport[Any]", title: str, path: Path) -> bytes:
    """The image for `--plot`."""
    from adamix.routing.plots import check_format, draws_plot, reliability_plot
    from adamix.routing.report import DrawsReport

    image_format = check_format(path.name)
    if isinstance(report, DrawsReport):
        return draws_plot(report, title, image_format)
    return reliability_plot(report.calibration, title, image_format)


def show(
    report: "DrawsReport[Any] | EnsembleReport[Any]",
    *,
    json_: bool,
    unit: str = "rows",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Print a report as one JSON document, to which `details` are added, or as tables, in which rows are `unit`."""
    from adamix.routing.report import DrawsReport

    if json_:
        print_json(report.document() | dict(details or {}))
    elif isinstance(report, DrawsReport):
        _show_draws(report, unit)
    else:
        _show_ensemble(report, unit)


def size(result: "Measured", unit: str) -> str:
    """How much was measured, in words."""
    return f"{result.rows} {unit}, {result.truncated} truncated"


def _show_draws(report: "DrawsReport[Any]", unit: str) -> None:
    rows = [
        (name, *(_number(value) for value in (s.mean, s.std, s.minimum, s.maximum, report.merged.metrics[name])))
        for name, s in report.summary().items()
    ]
    _print_table(("metric", "mean", "std", "min", "max", "merged"), rows)
    print(f"\n{report.routing}, {size(report.merged, unit)}\n")
    names = tuple(report.merged.metrics)
    _print_table(
        ("seed", *names),
        [(str(seed), *(_number(draw[name]) for name in names)) for seed, draw in enumerate(report.draws)],
    )


def _show_ensemble(report: "EnsembleReport[Any]", unit: str) -> None:
    print(f"{report.routing}: {format_metrics(report.ensemble.metrics)}  ({size(report.ensemble, unit)})")
    print(f"merged: {format_metrics(report.merged.metrics)}")
    if report.monte_carlo:
        print(f"monte-carlo: {format_metrics(report.monte_carlo)}")
    print(f"\nover {report.num_routes} random routes: {format_metrics(report.uncertainty())}")
    if report.calibration:
        print()
        columns = ("accuracy", "ece", "nll", "brier")
        rows = [
            (name, *(_number(found.numbers()[column]) for column in columns))
            for name, found in report.calibration.items()
        ]
        _print_table(("probabilities", *columns), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell: the first to the left, numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))
