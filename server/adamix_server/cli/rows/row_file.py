"""What every format of file can do. Knows none of them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from adamix_server.cli.rows.answers import Told
from adamix_server.cli.rows.row import Row

AnswerOf = Callable[[Row], Told]


class RowFile(Protocol):
    """The rows of a file. Making one reads it to its end, and raises InvalidData for what is malformed in it.

    Attributes:
        name: of the file, for messages.
        num_rows: as many as are written back.
        names: of its columns, as far as one of them may be in the way of another.
    """

    name: str
    num_rows: int
    names: frozenset[str]

    def rows(self) -> Iterator[Row]:
        """All of them in order, from the first; read as they are asked for."""
        ...

    def write(self, out: Path, columns: Mapping[str, str], answer_of: AnswerOf) -> None:
        """Write every row to `out` as it is, with its answer.

        Args:
            columns: what of an answer is added, in this order, and the name under which.
            answer_of: called for each row in turn.
        """
        ...
