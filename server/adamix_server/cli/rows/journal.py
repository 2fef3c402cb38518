"""What rows were answered, in a file beside the one that is to be written: what is left of a run that was killed.

A line for each row, in order, each written to its end or not there; before them one that says what was asked. The file
is appended to and never gone back in, so a kill or a full disk costs no more than its last lines. Knows no format.
"""

import errno
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adamix.errors import InvalidData, StoreFull
from adamix_server.cli.rows.answers import Told
from adamix_server.cli.rows.row import Row

FORMAT = "adamix-answers/1"
_ROW = "row"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Journal:
    """The answers so far; the file is held until it is closed.

    Args:
        path: of the file, which is made if it is not there.
        asked: what every answer is one to; those of something else are not gone on with.
        anew: leave out what is there.

    Attributes:
        done: how many rows are answered.
        failed: of those, how many have an error, by reason.
        used: what their answers have, by name.

    Raises:
        InvalidData: the file is another command's, is being written by one, or no such file.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], *, anew: bool = False) -> None:
        self.path = path
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.used: set[str] = set()
        self._head = json.dumps({"format": FORMAT, **asked}).encode() + b"\n"
        # Unbuffered: what could not be written is not tried again when it is closed.
        self._file = path.open("a+b", buffering=0)
        try:
            self._take_over(asked, anew=anew)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def append(self, row: Row, answer: Told) -> None:
        """Keep the answer to the next row. Raises StoreFull when there is no room; what is whole stays."""
        self._write(json.dumps({_ROW: row.checksum, **answer}).encode() + b"\n")
        self._count(answer)

    def answers(self) -> Iterator[tuple[int, Told]]:
        """The checksum of each row and its answer, from the first."""
        for _, found in _objects(self.path):
            if _ROW in found:
                yield found.pop(_ROW), found

    def _take_over(self, asked: Mapping[str, Any], *, anew: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidData(f"another command writes {self.path.name}") from None
        if not self.path.exists() or not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
            raise InvalidData(f"another command has just written what {self.path.name} was for")
        size, is_own = 0, False
        for end, found in _objects(self.path):
            if found.get("format") != FORMAT if not is_own else _ROW not in found:
                raise self._foreign()
            if anew:
                is_own = True
                break
            if is_own:
                del found[_ROW]
                self._count(found)
            elif (other := _difference(found, {"format": FORMAT, **asked})) is not None:
                raise InvalidData(
                    f"{self.path.name} holds answers to something else ({other}); give the same command again to go "
                    "on with them, or --overwrite"
                )
            size, is_own = end, True
        self._file.seek(0)
        if not is_own and not self._head.startswith(self._file.read(len(self._head) + 1)):
            raise self._foreign()
        # What was not written to its end is asked again.
        self._file.truncate(size)
        if not size:
            self._write(self._head)

    def _foreign(self) -> InvalidData:
        return InvalidData(f"{self.path.name} holds no answers of this command; name another --out")

    def _count(self, answer: Told) -> None:
        self.done += 1
        self.used.update(answer)
        if "error" in answer:
            self.failed[answer["error"]["reason"]] += 1

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StoreFull(f"no room for {self.path.name}; what is in it stays") from None


def _difference(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first thing that is not the same, in words."""
    for name in asked.keys() | found.keys():
        if found.get(name) != asked.get(name):
            return f"{name} {found.get(name)!r}, not {asked.get(name)!r}"
    return None


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each whole line as an object, and where it ends in bytes. Ends before one that is neither."""
    size = 0
    with path.open("rb") as file:
        for line in file:
            found = _object(line)
            if found is None:
                return
            size += len(line)
            yield size, found


def _object(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
