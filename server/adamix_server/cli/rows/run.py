"""A file of rows answered into another one, which a later run of the same command goes on with.

Answers go into a journal beside the file that is to be written; when all are there the rows are read once more and
written with them, and the file appears whole under its name. Knows no format.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape

from adamix.cli.interrupts import finishing
from adamix.cli.progress import Shown, progress
from adamix.cli.terminal import stderr
from adamix.errors import Cancelled, InvalidConfig, InvalidData, InvalidRequest, StoreFull
from adamix_server.cli.rows.answers import Told, columns, error_text
from adamix_server.cli.rows.asking import Question
from adamix_server.cli.rows.journal import NO_ROOM, Journal
from adamix_server.cli.rows.row import Choice, Row
from adamix_server.cli.rows.row_file import RowFile

if TYPE_CHECKING:
    from adamix_client import Client

_FINISHING = "ending with the answer that comes next"
_SHOWN_ERRORS = 10
# How often progress is told of.
_ROWS_A_STEP = 16


@dataclass(frozen=True)
class Written:
    """How many rows there are, how many of those were answered before, and how many have an error, by reason."""

    rows: int
    resumed: int
    failed: int
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        return {"rows": self.rows, "resumed": self.resumed, "failed": self.failed, "errors": self.errors}


class FileRun:
    """The rows of a file, and the answers that are there already; a with-block holds those for itself.

    Args:
        overwrite: write `out` anew, also over answers that are there.

    Raises:
        InvalidConfig: `out` is there already, is the file of the rows, or would have two columns of one name.
        InvalidData: answers that are there are to other rows or another question.
        OSError: they cannot be written.
    """

    def __init__(
        self, rows: RowFile, file: Path, out: Path, question: Question, choice: Choice, *, overwrite: bool
    ) -> None:
        self._rows = rows
        self._out = out
        self._question = question
        # Before anything is asked: every column that there may be has its name.
        for kind in ({"label", "score"}, {"labels", "scores"}, {"embedding"}):
            columns(kind, rows.names, rows.name)
        if out.exists() and (not out.is_file() or out.samefile(file)):
            why = "is the file that the rows are read from" if out.is_file() else "is no regular file"
            raise InvalidConfig(f"--out {out} {why}", field="out")
        path = out.with_name(f"{out.name}.partial")
        if not overwrite and out.exists() and not path.exists():
            raise InvalidConfig(f"{out.name} is there already; --overwrite writes it anew", field="out")
        asked = {
            "task": question.task,
            "version": question.version,
            "truncate": question.truncate,
            "column": choice.column,
            "pair_column": choice.pair,
        }
        self._without = "without --overwrite " if overwrite else ""
        self._journal = Journal(path, asked, anew=overwrite)
        self._resumed = self._journal.done
        self._told_errors = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._journal.done:
            self._journal.path.unlink(missing_ok=True)
        self._journal.close()
        if error is not None and self._journal.path.exists() and not isinstance(error, InvalidData):
            stderr.print(
                escape(
                    f"{self._journal.done:,} of {self._rows.num_rows:,} rows are answered and kept in "
                    f"{self._journal.path.name}; the same command {self._without}goes on from there"
                ),
                soft_wrap=True,
            )

    @property
    def is_answered(self) -> bool:
        """Whether nothing is left to be asked."""
        return self._journal.done == self._rows.num_rows

    def ask(self, client: "Client", at_once: int, *, keep_errors: bool) -> None:
        """Ask about the rows that have no answer, and keep each in its turn.

        Raises:
            InvalidData: rows that were answered before are others now.
            InvalidRequest: a row has an error, and those are not kept.
            Cancelled: Ctrl-C was pressed.
            AdamixError: the server is gone, or refuses what is no row's own. What was kept before stays.
        """
        answers = self._question.answers(client, self._left(), at_once)
        with (
            finishing(_FINISHING) as stop,
            progress("predicting", total=self._rows.num_rows) as shown,
            closing(answers),
        ):
            for row, answer in answers:
                if stop.is_set():
                    raise Cancelled("interrupted")
                if "error" in answer:
                    self._say(f"{row.where}: {error_text(answer['error'])}", shown)
                    if not keep_errors:
                        raise InvalidRequest(
                            f"{row.where} has an error, and --on-error is stop", reason=answer["error"]["reason"]
                        )
                self._journal.append(row, answer)
                if self._journal.done % _ROWS_A_STEP == 0 or self.is_answered:
                    failed = self._journal.failed.total()
                    shown.update(self._journal.done, note=f"{failed:,} failed" if failed else "")

    def write(self) -> Written:
        """Write the rows with their answers, all of which are there.

        Raises:
            InvalidData: a row is another than the one that was answered.
        """
        answers = self._journal.answers()

        def answer_of(row: Row) -> Told:
            checksum, answer = next(answers, (None, {}))
            self._check(row, checksum)
            return answer

        partial = self._out.with_name(f".{self._out.name}.tmp")
        names = columns(self._journal.used, self._rows.names, self._rows.name)
        try:
            self._rows.write(partial, names, answer_of)
            if next(answers, None) is not None:
                raise self._changed(self._rows.name)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self._out)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StoreFull(f"no room for {self._out.name}") from None
        finally:
            partial.unlink(missing_ok=True)
        self._journal.path.unlink()
        failed = self._journal.failed
        return Written(self._rows.num_rows, self._resumed, failed.total(), dict(failed))

    def _left(self) -> Iterator[Row]:
        """The rows that have no answer, after those that have one were looked at."""
        rows = self._rows.rows()
        for row, (checksum, _) in zip(islice(rows, self._journal.done), self._journal.answers(), strict=False):
            self._check(row, checksum)
        yield from rows

    def _say(self, line: str, shown: Shown) -> None:
        self._told_errors += 1
        if self._told_errors <= _SHOWN_ERRORS:
            shown.say(line)
        elif self._told_errors == _SHOWN_ERRORS + 1:
            shown.say("… further errors stand in the file alone")

    def _check(self, row: Row, checksum: int | None) -> None:
        if row.checksum != checksum:
            raise self._changed(row.where)

    def _changed(self, where: str) -> InvalidData:
        return InvalidData(
            f"{where}: another row than the one that was answered: {self._rows.name} has changed since, or its answers "
            f"are those of another file; --overwrite asks about all of it anew"
        )
