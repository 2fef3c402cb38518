"""Results as JSON lines: appended one by one, each on disk before the next cell begins, read again on the next start.

A run may be killed at any moment, continued on another day, and split over several processes that share one file. Knows
nothing of what the records mean beyond the keys that tell them apart.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adamix.errors import InvalidData

Record = dict[str, Any]


class RunStore:
    """One `quality.jsonl`. `kind` is `run` (a reported result) or `trial` (of the tuning)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self, kind: str) -> list[Record]:
        """All records of a kind. A last line that was cut off by a kill does not count.

        Raises:
            InvalidData: a line in the middle is not a record.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        complete, found = lines[:-1], []
        for number, line in enumerate(complete, start=1):
            try:
                record = json.loads(line)
                if record["kind"] == kind:
                    found.append(record)
            except (ValueError, KeyError, TypeError):
                raise InvalidData(f"{self.path.name}:{number} is not a record; remove the line") from None
        return found

    def append(self, kind: str, record: Record) -> None:
        """Add one record, durably, after whatever other processes have added."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"kind": kind, **record}, allow_nan=False).encode() + b"\n"
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _drop_torn_line(file.fileno())
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Whether this process may work on `key` now: False while another one does. Freed by the end of the process."""
        directory = self.path.with_suffix(".claims")
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / key).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _drop_torn_line(descriptor: int) -> None:
    """Cut what a killed process left of a line, or the next record would be lost with it."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, min(size, 1 << 20), max(0, size - (1 << 20)))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
