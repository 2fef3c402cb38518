"""Pictures of a mixture's routes: draws against the merged adapter, and reliability diagrams.

Each function returns the bytes of an image; knows no files. Colours are those of Okabe and Ito, which people who
confuse red and green can tell apart, and every series has a marker of its own.
"""

import io
from typing import TYPE_CHECKING, Any, cast

from adamix.errors import InvalidConfig
from adamix.routing.calibration import Calibration
from adamix.routing.report import DrawsReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

_BLUE, _ORANGE, _GREEN, _PINK, _GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8c4ca"
_DPI = 130
# Fewer values than this are drawn as points alone: a density of them would be invented.
_LEAST_FOR_A_VIOLIN = 4


def check_format(name: str) -> str:
    """The image format of a file name. Raises InvalidConfig."""
    suffix = name.rpartition(".")[2].lower()
    if suffix not in FORMATS:
        raise InvalidConfig(f"--plot writes {', '.join(FORMATS)}; name the file so, not {name[:40]!r}", field="plot")
    return suffix


def draws_plot(report: DrawsReport[Any], title: str, image_format: str) -> bytes:
    """For each metric the draws as a violin and points, and the merged adapter's value, like the paper's Figure 5."""
    names = list(report.merged.metrics)
    figure, axes = _figure(len(names))
    for name, ax in zip(names, axes, strict=True):
        values = [draw[name] for draw in report.draws]
        if len(values) >= _LEAST_FOR_A_VIOLIN and max(values) > min(values):
            parts = ax.violinplot([values], positions=[0], widths=0.8, showextrema=False)
            for body in cast("list[PolyCollection]", parts["bodies"]):
                body.set(facecolor=_GREY, edgecolor=_GREY, alpha=0.7)
        # Points beside one another, that equal values can be counted; the same places in every run.
        shifts = [0.16 * ((number % 5) - 2) / 2 for number in range(len(values))]
        ax.scatter(shifts, values, s=14, color=_BLUE, label=f"{report.routing}, {len(values)} draws")
        ax.scatter([0], [report.merged.metrics[name]], s=130, marker="*", color=_ORANGE, label="merged", zorder=3)
        ax.set(title=name, xticks=[], xlim=(-0.7, 0.7))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return _bytes(figure, image_format)


def reliability_plot(calibrations: dict[str, Calibration], title: str, image_format: str) -> bytes:
    """Frequency against confidence for each way to average; below the diagonal is overconfident.

    The area of a marker grows with the events of its bin. Of ways with equal bins, as an ensemble over pairs has where
    a projection is shared, the first is drawn.
    """
    figure, (ax,) = _figure(1, size=4.8)
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    styles = zip((_ORANGE, _BLUE, _GREEN, _PINK), ("*", "o", "s", "^"), strict=True)
    drawn: list[Calibration] = []
    for (name, found), (colour, marker) in zip(calibrations.items(), styles, strict=False):
        if found in drawn:
            continue
        drawn.append(found)
        events = sum(b.count for b in found.bins)
        where = [b.confidence for b in found.bins], [b.frequency for b in found.bins]
        ax.plot(*where, color=colour, linewidth=1, alpha=0.6)
        sizes = [10 + 200 * b.count / events for b in found.bins]
        ax.scatter(*where, s=sizes, color=colour, marker=marker, label=f"{name}, ECE {found.ece:.3f}")
    ax.set(xlabel="confidence", ylabel="frequency", xlim=(0, 1), ylim=(-0.03, 1.03), aspect="equal")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return _bytes(figure, image_format)


def _figure(columns: int, size: float = 3.0) -> tuple["Figure", list["Axes"]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * columns + 0.4, max(size, 3.6)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _bytes(figure: "Figure", image_format: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=image_format, dpi=_DPI)
    return buffer.getvalue()
