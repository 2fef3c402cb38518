"""Ctrl-C once: the command finishes or saves what it has begun. Twice: it ends.

    with finishing("writing the rows that are asked for already") as asked:
        for row in rows:
            if asked.is_set():
                raise Cancelled("stopped after 12 of 90 rows; the same command goes on from there")

Knows no command.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adamix.cli.terminal import stderr


@contextmanager
def finishing(what: str) -> Iterator[threading.Event]:
    """Take the first SIGINT of the with-block as a wish, and leave the second to whoever had it before.

    Args:
        what: is said on stderr when the wish comes: what the command still does.

    Yields:
        the event that the wish sets. A thread that waits for something else sees it when that ends.
    """
    asked = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    # Only the main thread may set a handler; and a job that was started to ignore the signal goes on ignoring it.
    if threading.current_thread() is not threading.main_thread() or previous in (signal.SIG_IGN, None):
        yield asked
        return

    def ask(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, previous)
        stderr.print(f"{what}; Ctrl-C again ends at once", markup=False)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
