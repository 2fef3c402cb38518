"""Rows asked about, several calls at a time, in their order. Knows the client; nothing of files.

An error of one row is its answer; one that every row would have ends it all.
"""

import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adamix.errors import AdamixError, Code
from adamix_client.bounds import MAX_INPUTS_PER_CALL
from adamix_server.cli.rows.answers import Told, told, told_error
from adamix_server.cli.rows.row import Row

if TYPE_CHECKING:
    from adamix_client import Client, Prediction

_OWN_REASONS = ("TEXT_EMPTY", "TEXT_TOO_LONG", "TEXT_TOO_LARGE", "TEXT_INVALID")
# As the client names one of many: from 1.
_NUMBERED = re.compile(r"\btext (\d+)\b")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about every row."""

    task: str
    version: str = ""
    truncate: bool = False

    def answers(self, client: "Client", rows: Iterable[Row], at_once: int) -> Generator[tuple[Row, Told], None, None]:
        """Each row with its answer, in order; read no further than the calls that run.

        Raises:
            AdamixError: the server is gone, or refuses what is no row's own.
        """
        waiting: deque[Row] = deque()
        names = _Names()

        def asked() -> Iterator[str | tuple[str, str]]:
            for row in rows:
                waiting.append(row)
                if row.problem is None:
                    yield _content(row)

        found = client.predict_iter(
            self.task,
            asked(),
            version=self.version,
            truncate=self.truncate,
            on_error="return",
            calls_in_flight=at_once,
        )
        with closing(found):
            for prediction in found:
                yield from _refused(waiting)
                row = waiting.popleft()
                names.add(row)
                yield row, _told(prediction, names)
            yield from _refused(waiting)


def _told(prediction: "Prediction", names: "_Names") -> Told:
    """The answer to a row. Raises AdamixError for an error that is not its own."""
    if (error := prediction.error) is None:
        return told(prediction)
    if not is_own(error):
        raise error
    return told_error(error, names.of(error.message))


def is_own(error: AdamixError) -> bool:
    """Whether an error is that of one row; the others are of the server, the task or the flags, and so of all rows."""
    return error.code is Code.INTERNAL or error.reason in _OWN_REASONS


def _refused(waiting: deque[Row]) -> Iterator[tuple[Row, Told]]:
    """The rows in front that are not asked about."""
    while waiting and (problem := waiting[0].problem) is not None:
        yield waiting.popleft(), told_error(problem, problem.message)


def _content(row: Row) -> str | tuple[str, str]:
    return row.text if row.pair is None else (row.text, row.pair)


class _Names:
    """Where the last rows stand that were asked about: the client counts what it was given, and people the lines."""

    def __init__(self) -> None:
        self._count = 0
        # Of an error's own call no more are told of.
        self._last: deque[str] = deque(maxlen=MAX_INPUTS_PER_CALL)

    def add(self, row: Row) -> None:
        self._count += 1
        # A file may have any bytes for a name.
        self._last.append(row.where.encode(errors="replace").decode())

    def of(self, message: str) -> str:
        """What is said of the last row that was added, in words of the file."""

        def name(found: "re.Match[str]") -> str:
            back = self._count - int(found[1])
            if not 0 <= back < len(self._last):
                return found[0]
            return "the text" if back == 0 else f"that of {self._last[-1 - back]}"

        return _NUMBERED.sub(name, message)
