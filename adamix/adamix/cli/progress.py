"""How far a command is, on stderr: a bar on a terminal, elsewhere a line every ten seconds.

The one progress that all commands share::

    with progress("evaluating", total=len(rows)) as shown:
        for batch in batches:
            ...
            shown.advance(len(batch))                # or shown.update(done, total, note="loss 0.312")

Nothing is shown before the first of these calls, so that an early error stands alone; and in a pipe nothing of work
that ends within ten seconds. Both calls may come from any thread. This module knows no command, and loads rich when
there is a terminal.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adamix.cli.terminal import visible

LINE_S = 10.0


class Shown:
    """What `progress` yields: counts, and somebody who draws them."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.note = ""
        self._lock = threading.Lock()
        self._began = self._told = time.monotonic()

    def advance(self, count: int = 1, *, note: str | None = None) -> None:
        """`count` more are done. A note stays until there is another one."""
        with self._lock:
            self.done += count
            self._take(note)

    def update(self, done: int, total: int | None = None, *, note: str | None = None) -> None:
        """So many are done, of so many if that is said: a total that was said before stays."""
        with self._lock:
            self.done = done
            self.total = self.total if total is None else total
            self._take(note)

    def say(self, text: str) -> None:
        """A line on stderr that stays, above the bar if there is one. Control characters are escaped."""
        with self._lock:
            self._write(visible(text))

    def close(self) -> None:
        """Draw no more."""

    def _take(self, note: str | None) -> None:
        self.note = self.note if note is None else visible(note)
        self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._told >= LINE_S:
            self._told = now
            self._write(self._line(now))

    def _write(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        """`evaluating: 1,200/5,000, eta 0:41, loss 0.312`."""
        counts = f"{self.what}: {self.done:,}"
        if self.total:
            counts += f"/{self.total:,}"
            if 0 < self.done < self.total:
                counts += f", eta {_clock((now - self._began) / self.done * (self.total - self.done))}"
        return f"{counts}, {self.note}" if self.note else counts


class _Bar(Shown):
    """The same, drawn by rich."""

    def __init__(self, what: str, total: int | None) -> None:
        super().__init__(what, total)
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from adamix.cli.terminal import stderr

        columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
        columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False)]
        self._bar = Progress(*columns, console=stderr)
        self._task = self._bar.add_task(what, total=total, note="")

    def close(self) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def _draw(self) -> None:
        self._bar.start()
        self._bar.update(self._task, completed=self.done, total=self.total, note=self.note)

    def _write(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)


@contextmanager
def progress(what: str, *, total: int | None = None) -> Iterator[Shown]:
    """Show how far the work of the with-block is.

    Args:
        what: the work, in a word or two: `evaluating`.
        total: how many there are in all; None while that is not known.
    """
    shown = _Bar(what, total) if sys.stderr.isatty() else Shown(what, total)
    try:
        yield shown
    finally:
        shown.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
