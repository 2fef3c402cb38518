"""Rows asked about, several calls at a time, in their order. Knows the client; nothing of files.

An error of one row is its answer; one that every row would have ends it all.
"""

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adamix.errors import AdamixError, Code
from adamix_server.cli.rows.answers import Told, told, told_error
from adamix_server.cli.rows.in_order import in_order
from adamix_server.cli.rows.row import Row
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL

if TYPE_CHECKING:
    from adamix_client import Client, Input

MAX_TRIES = 5
_MAX_WAIT_S = 10.0
# Of a call; one text may have 64 KiB, and a message 4 MiB.
_CALL_BYTES = 1 << 20
_OWN_REASONS = ("TEXT_EMPTY", "TEXT_TOO_LONG", "TEXT_TOO_LARGE", "TEXT_INVALID")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about every row."""

    task: str
    version: str = ""
    truncate: bool = False

    def input(self, row: Row) -> "Input":
        """What is sent for a row."""
        from adamix_client import Input

        single, pair = (row.text, None) if row.pair is None else (None, (row.text, row.pair))
        return Input(self.task, text=single, pair=pair, version=self.version, truncate=self.truncate)

    def answers(
        self, client: "Client", rows: Iterable[Row], at_once: int, rows_per_call: int = MAX_INPUTS_PER_CALL
    ) -> Generator[Sequence[tuple[Row, Told]], None, None]:
        """Some rows with their answers, again and again, in order.

        Raises:
            AdamixError: the server is gone, or refuses what is no row's own.
        """
        stop = threading.Event()

        def leave() -> None:
            stop.set()
            client.close()

        def ask(call: Sequence[Row]) -> Sequence[Told]:
            return self._ask(client, call, stop)

        # Alone, each is given as soon as it is there, before the next is read.
        window = 2 * at_once if at_once > 1 else 1
        calls = in_order(_calls(rows, rows_per_call), ask, at_once=at_once, window=window, leave=leave)
        with closing(calls):
            for call, result in calls:
                yield list(zip(call, result(), strict=True))

    def _ask(self, client: "Client", call: Sequence[Row], stop: threading.Event) -> Sequence[Told]:
        """In a thread."""
        found: dict[int, Told] = {
            place: told_error(row.problem) for place, row in enumerate(call) if row.problem is not None
        }
        for left in reversed(range(MAX_TRIES)):
            open_places = [place for place in range(len(call)) if place not in found]
            failed = self._ask_once(client, {place: call[place] for place in open_places}, found)
            if failed is None:
                return [found[place] for place in range(len(call))]
            wait_s = failed.retry_after_s
            if wait_s is None or not left or stop.wait(min(wait_s, _MAX_WAIT_S)):
                raise failed
        raise AssertionError("unreachable")

    def _ask_once(self, client: "Client", rows: dict[int, Row], found: dict[int, Told]) -> AdamixError | None:
        """Put into `found` what has an answer. Returns the error of what has none."""
        if not rows:
            return None
        inputs = [self.input(row) for row in rows.values()]
        try:
            predictions = client.predict(inputs).predictions
        except AdamixError as error:
            if not is_own(error):
                return error
            found |= {place: told_error(error) for place in rows}
            return None
        others: AdamixError | None = None
        for place, prediction in zip(rows, predictions, strict=True):
            if prediction.error is None:
                found[place] = told(prediction)
            elif is_own(prediction.error):
                found[place] = told_error(prediction.error)
            else:
                others = prediction.error
        return others


def is_own(error: AdamixError) -> bool:
    """Whether an error is that of one row; the others are of the server, the task or the flags, and so of all rows."""
    return error.code is Code.INTERNAL or error.reason in _OWN_REASONS


def _calls(rows: Iterable[Row], most: int) -> Iterator[Sequence[Row]]:
    call: list[Row] = []
    size = 0
    for row in rows:
        call.append(row)
        size += len(row.text) + len(row.pair or "")
        if len(call) == most or size >= _CALL_BYTES:
            yield call
            call, size = [], 0
    if call:
        yield call
