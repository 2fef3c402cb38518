"""Many calls that do not depend on each other: several at once, with progress, until all have ended or Ctrl-C.

Knows neither what a call does nor what a server is.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from adamix.cli.terminal import progress_bar, stderr
from adamix.errors import AdamixError

Item = TypeVar("Item")
Value = TypeVar("Value")

# How often it is looked whether a line is due, or Ctrl-C was pressed.
_TURN_S = 0.2
_LINE_S = 10.0


class Progress(Protocol):
    """Told how many have ended, and how many of them failed, again and again."""

    def __call__(self, done: int, failed: int, /) -> None: ...


@dataclass(frozen=True)
class Ended(Generic[Item, Value]):
    """One call that has ended: with a value, or with an error."""

    item: Item
    value: Value | None = None
    error: AdamixError | None = None


@dataclass(frozen=True)
class Run(Generic[Item, Value]):
    """What became of all. `left` were never begun; `was_interrupted` says that Ctrl-C is why."""

    ended: Sequence[Ended[Item, Value]]
    left: Sequence[Item]
    was_interrupted: bool

    @property
    def failed(self) -> list[Ended[Item, Value]]:
        return [one for one in self.ended if one.error is not None]


def run_many(
    items: Sequence[Item],
    work: Callable[[Item], Value],
    *,
    jobs: int,
    progress: Progress,
) -> Run[Item, Value]:
    """Call `work` for each of the items, in their order, `jobs` at once. An error of one is its own.

    After Ctrl-C no further call begins and those under way are waited for; pressed again, it is raised.
    """
    ended: dict[int, Ended[Item, Value]] = {}
    interrupted = False
    waiting = iter(enumerate(items))
    running: dict[Future[Value], int] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            try:
                while not interrupted and len(running) < jobs and (next_ := next(waiting, None)) is not None:
                    running[pool.submit(work, next_[1])] = next_[0]
                if not running:
                    break
                finished, _ = wait(running, timeout=_TURN_S, return_when=FIRST_COMPLETED)
                for future in finished:
                    number = running.pop(future)
                    ended[number] = _ended(items[number], future)
                progress(len(ended), sum(one.error is not None for one in ended.values()))
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                stderr.print(f"stopping: {len(running)} under way are finished first; Ctrl-C again leaves them")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    left = [item for number, item in enumerate(items) if number not in ended]
    return Run([ended[number] for number in sorted(ended)], left, interrupted)


def _ended(item: Item, future: "Future[Value]") -> Ended[Item, Value]:
    try:
        return Ended(item, value=future.result())
    except AdamixError as error:
        return Ended(item, error=error)


@contextmanager
def shown_progress(total: int, what: str) -> Iterator[Progress]:
    """On a terminal a bar; else a line on stderr every 10 s, with what is done, of how many, and when it will be over.

    Args:
        what: is done, e.g. `registered`.
    """
    began = told = time.monotonic()

    def line(done: int, failed: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < _LINE_S:
            return
        told = now
        eta = f"{(now - began) / done * (total - done):,.0f} s" if done else "unknown"
        stderr.print(f"{done:,} of {total:,} {what}, {failed:,} failed, eta {eta}", soft_wrap=True)

    if not stderr.is_terminal:
        yield line
        return
    with progress_bar() as bar:
        task = bar.add_task(what, total=total, note="")
        if total > 1:
            bar.start()
        yield lambda done, failed: bar.update(task, completed=done, note=f"{failed:,} failed" if failed else "")
