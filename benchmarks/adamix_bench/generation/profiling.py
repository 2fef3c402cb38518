"""Where the engine's own time goes: one run under Python's profiler, by function, per step."""

import cProfile
import pstats
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rich.table import Table

_MOST_FUNCTIONS = 14


@dataclass(frozen=True)
class Share:
    """What one function took itself: of a function in C, all that it called there.

    Attributes:
        name: `file:function`, or the name of a function in C.
        calls: a step.
        ms: a step.
        share: of all time.
    """

    name: str
    calls: float
    ms: float
    share: float


def profile(run: Callable[[], int]) -> list[Share]:
    """The functions that took most of a run, which gives the number of its steps."""
    profiler = cProfile.Profile()
    profiler.enable()
    steps = run()
    profiler.disable()
    # (file, line, function) -> (primitive calls, calls, seconds of its own, …).
    found: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined] # not in typeshed
    total = sum(own for _, _, own, _, _ in found.values())
    most = sorted(found.items(), key=lambda item: -item[1][2])[:_MOST_FUNCTIONS]
    return [
        Share(_name(*function), calls / steps, 1e3 * own / steps, own / total)
        for function, (_, calls, own, _, _) in most
    ]


def table(concurrency: int, shares: list[dict[str, Any]]) -> Table:
    found = Table(f"where a step's time goes, {concurrency} at once", "calls", "ms", "share")
    for share in shares:
        found.add_row(share["name"], f"{share['calls']:,.0f}", f"{share['ms']:.2f}", f"{share['share']:.0%}")
    return found


def _name(file: str, _line: int, function: str) -> str:
    return function.strip("<>") if file == "~" else f"{PurePath(file).stem}:{function}"
