"""Ways of doing the same work, timed in turns, and what is said about the numbers. Knows no way by name.

Two ways are only compared within one run, in which they took turns: what else the machine did met both. A ratio is
taken turn by turn; medians are of the turns.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Name = TypeVar("Name")


@dataclass(frozen=True)
class Spread:
    """Values of one quantity over the turns, in order."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    def over(self, other: "Spread") -> "Spread":
        """The ratios, turn by turn."""
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def to_json(self) -> dict[str, float | list[float]]:
        return {
            "median": self.median,
            "min": self.lowest,
            "max": self.highest,
            "values": list(self.values),
        }


@dataclass(frozen=True)
class Goal:
    """One number that has a target, or is told beside those that have.

    Attributes:
        name: of the target, with what was varied: `a.32`.
        target: bound of the median; None where the number is only told.
        at_least: the bound is a lower one.
        measured: None if it could not be measured; `note` then says why.
    """

    name: str
    what: str
    measured: Spread | None
    target: float | None = None
    at_least: bool = True
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """None where there is nothing to hold."""
        if self.target is None or self.measured is None:
            return None
        return self.measured.median >= self.target if self.at_least else self.measured.median <= self.target

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "target": self.target,
            "bound": "at least" if self.at_least else "at most",
            "measured": None if self.measured is None else self.measured.to_json(),
            "holds": self.holds,
            "note": self.note,
        }


def in_turns(
    ways: Mapping[Name, Callable[[], T]],
    repetitions: int,
    on_turn: Callable[[int, Mapping[Name, Sequence[T]]], None],
    *,
    there_and_back: bool = False,
) -> dict[Name, list[T]]:
    """Call every way once a turn, in the order given; one turn more before the first that counts.

    Args:
        there_and_back: every second turn goes in the opposite order, so that no way always comes after the same one.
        on_turn: called before each turn with its number (0 is the one that warms up) and the results of all whole
            turns so far, so that a run that is cut short has them.
    """
    found: dict[Name, list[T]] = {name: [] for name in ways}
    for turn in range(repetitions + 1):
        on_turn(turn, found)
        order = list(ways.items())
        for name, run in reversed(order) if there_and_back and turn % 2 else order:
            result = run()
            if turn > 0:
                found[name].append(result)
    return found


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Work as a way whose result is the seconds it took."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def rates(count: int, seconds: Sequence[float]) -> Spread:
    """`count` things a turn, as things a second."""
    return Spread(tuple(count / value for value in seconds))
