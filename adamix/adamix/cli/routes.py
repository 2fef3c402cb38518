"""What `adamix evaluate --routing …` measures and shows beyond a merged adapter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.cli.terminal import format_metrics, print_json
from adamix.errors import InvalidAdapter, InvalidConfig

if TYPE_CHECKING:
    from adamix.evaluation.labelled import Evaluation
    from adamix.files.adapter_file import AdapterFile
    from adamix.files.mixture_file import MixtureFile
    from adamix.routing.choice import Routing
    from adamix.routing.probe import MixtureProbe
    from adamix.routing.report import DrawsReport, EnsembleReport, Measured

DEFAULT_SEEDS = 10


def read_source(source: Path, routing: "Routing") -> "tuple[AdapterFile, MixtureFile | None]":
    """The merged adapter of a file or a training directory, and the mixture if the routing needs it.

    Raises:
        InvalidConfig: the routing needs several experts, and the file is merged; or an expert that is not there.
    """
    from adamix.files import adapter_file
    from adamix.merging.merge import merge, read_mixture

    if not source.is_dir():
        try:
            adapter = adapter_file.read(source)
        except InvalidAdapter as error:
            if error.reason != "UNMERGED_MIXTURE":
                raise
        else:
            if routing.mode != "merged":
                raise InvalidConfig(
                    f"--routing {routing.mode} needs all experts, and {source.name} is merged into one: give the "
                    "directory that `adamix train` wrote, which keeps the mixture",
                    field="routing",
                )
            return adapter, None
    mixture = read_mixture(source)
    routing.check(mixture.manifest.num_experts)
    return adapter_file.decode(merge(mixture)), None if routing.mode == "merged" else mixture


def check_flags(routing: "Routing", seeds: int | None, plot: Path | None) -> int:
    """The number of random routes. Raises InvalidConfig where a flag has no meaning for the routing."""
    is_random = routing.mode in ("random", "ensemble")
    if seeds is not None and not is_random:
        raise InvalidConfig(
            f"--seeds is for random routing (and the ensemble's comparison with it); {routing} has no draws",
            field="seeds",
        )
    if routing.mode == "ensemble" and seeds == 1:
        raise InvalidConfig(
            "--seeds: routes are compared with one another, so there must be two or more", field="seeds"
        )
    if plot is not None:
        if not is_random:
            raise InvalidConfig(f"--plot draws random routing or an ensemble; {routing} is one number", field="plot")
        from adamix.routing.plots import check_format

        check_format(plot.name)
        if not plot.parent.is_dir():
            raise InvalidConfig(f"--plot: there is no directory {plot.parent}", field="plot")
    return DEFAULT_SEEDS if seeds is None else seeds


def measure(
    probe: "MixtureProbe", routing: "Routing", seeds: int
) -> "tuple[Evaluation, DrawsReport[Evaluation] | EnsembleReport[Evaluation] | None]":
    """The rows' predictions (of several draws, the first one's), and what there is to report beside them."""
    from adamix.routing.report import report_draws, report_ensemble

    if routing.mode == "random":
        draws = report_draws(probe, routing, seeds)
        return draws.first, draws
    if routing.mode == "ensemble":
        ensemble = report_ensemble(probe, routing, seeds)
        return ensemble.ensemble, ensemble
    return probe.evaluate(routing), None


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
