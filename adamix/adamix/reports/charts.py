"""Pictures for a page: SVG to stand in HTML, without a background, in the colour of the text around.

Only numbers and words of this project are drawn, never a label or a text of somebody else's. Knows no page.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from adamix.reports.subject import Reading
from adamix.routing.calibration import Calibration
from adamix.routing.plots import draws_plot, reliability_plot
from adamix.routing.report import DrawsReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE = "#0072b2", "#d55e00"
_SIZE = (6.4, 2.9)
_WHITE = re.compile(r"fill: #ffffff")
_BLACK = re.compile(r"(stroke|fill): #000000")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_NAME = re.compile(r'(\bid="|href="#|url\(#)')


def curves(readings: Sequence[Reading]) -> Markup:
    """The loss by steps, and the learning rate in a smaller picture under it."""
    with _style("curves"):
        figure = _figure((_SIZE[0], 4.0))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for axis, name, colour in ((upper, "loss", _BLUE), (lower, "learning_rate", _ORANGE)):
            points = [(r.step, getattr(r, name)) for r in readings if getattr(r, name) is not None]
            axis.plot([step for step, _ in points], [value for _, value in points], color=colour, linewidth=1.6)
            axis.set_ylabel(name.replace("_", " "))
            axis.grid(alpha=0.25)
        lower.set_xlabel("optimiser steps")
        return _svg(figure, "curves", "The training loss and the learning rate by optimiser steps")


def reliability(calibration: Calibration) -> Markup:
    """How often what was predicted with some confidence came true."""
    with _style("reliability"):
        raw = reliability_plot({"adapter": calibration}, "", "svg")
    return _inline(
        raw.decode(), "reliability", "Reliability: frequency against confidence; below the diagonal is overconfident"
    )


def draws(report: DrawsReport[Any]) -> Markup:
    """Random routes against the merged adapter, metric by metric."""
    with _style("draws"):
        raw = draws_plot(report, "", "svg")
    return _inline(raw.decode(), "draws", "Metrics of random routes, and of the merged adapter")


def points(pairs: Sequence[tuple[float, float]]) -> Markup:
    """Predictions of a regression against their targets."""
    with _style("points"):
        figure = _figure((4.6, 4.2))
        (axis,) = figure.subplots(1, 1, squeeze=False)[0]
        low, high = min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)
        axis.plot([low, high], [low, high], color=_ORANGE, linewidth=1)
        axis.scatter([t for t, _ in pairs], [p for _, p in pairs], s=12, alpha=0.5, color=_BLUE)
        axis.set(xlabel="target", ylabel="prediction")
        axis.grid(alpha=0.25)
        return _svg(figure, "points", "Predictions against targets; on the line both are equal")


def _style(name: str) -> Any:
    """Texts as texts, and names of parts that are the same with each run and of no other picture on the page."""
    import matplotlib as mpl

    return mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"})


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _svg(figure: "Figure", name: str, title: str) -> Markup:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue().decode(), name, title)


def _inline(text: str, name: str, title: str) -> Markup:
    """The `<svg>` element of a document, as wide as there is room, in the colours of the page.

    `name` goes before the names of its parts, which several pictures of one page have alike.
    """
    body = _METADATA.sub("", _COMMENT.sub("", text[text.index("<svg") :]))
    body = _BLACK.sub(r"\1: currentColor", _WHITE.sub("fill: none", body))
    body = _NAME.sub(rf"\g<1>{name}-", body)
    # Without a fill texts are black; and the style sheets in it would be those of the whole page.
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    size = re.search(r'viewBox="0 0 ([\d.]+) ', body)
    width = f"max-width: {float(size[1]) * 1.25:.0f}px" if size else ""
    body = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", body, count=1)
    body = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", body, count=1)
    return Markup(  # noqa: S704 - drawn here, of numbers and of words that are ours
        f'<figure class="chart"><div role="img" aria-label="{title}" style="{width}">'
        + body.strip()
        + "</div></figure>"
    )
