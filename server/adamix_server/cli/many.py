"""Many calls that do not depend on each other: several at once, with progress, until all have ended or Ctrl-C.

Knows neither what a call does nor what a server is.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Generic, TypeVar

from adamix.cli.progress import Shown
from adamix.errors import AdamixError

Item = TypeVar("Item")
Value = TypeVar("Value")

# How often it is looked whether Ctrl-C was pressed.
_TURN_S = 0.2


@dataclass(frozen=True)
class Ended(Generic[Item, Value]):
    """One call that has ended: with a value, or with an error."""

    item: Item
    value: Value | None = None
    error: AdamixError | None = None


@dataclass(frozen=True)
class Run(Generic[Item, Value]):
    """What became of all; `left` were never begun."""

    ended: Sequence[Ended[Item, Value]]
    left: Sequence[Item]

    @property
    def failed(self) -> list[Ended[Item, Value]]:
        return [one for one in self.ended if one.error is not None]


def run_many(
    items: Sequence[Item], work: Callable[[Item], Value], *, jobs: int, shown: Shown, stop: Event
) -> Run[Item, Value]:
    """Call `work` for each of the items, in their order, `jobs` at once. An error of one is its own.

    Args:
        shown: is advanced by each that ends.
        stop: once it is set no further call begins, and those under way are waited for.
    """
    ended: dict[int, Ended[Item, Value]] = {}
    waiting = iter(enumerate(items))
    running: dict[Future[Value], int] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            while not stop.is_set() and len(running) < jobs and (following := next(waiting, None)) is not None:
                number, item = following
                running[pool.submit(work, item)] = number
            if not running:
                break
            finished, _ = wait(running, timeout=_TURN_S, return_when=FIRST_COMPLETED)
            for future in finished:
                number = running.pop(future)
                ended[number] = _ended(items[number], future)
            failed = sum(one.error is not None for one in ended.values())
            shown.advance(len(finished), note=f"{failed:,} failed" if failed else "")
    finally:
        # Nobody waits for what is under way when Ctrl-C was pressed twice: the client is closed, which ends it.
        pool.shutdown(wait=False, cancel_futures=True)
    left = [item for number, item in enumerate(items) if number not in ended]
    return Run([ended[number] for number in sorted(ended)], left)


def _ended(item: Item, future: "Future[Value]") -> Ended[Item, Value]:
    try:
        return Ended(item, value=future.result())
    except AdamixError as error:
        return Ended(item, error=error)
