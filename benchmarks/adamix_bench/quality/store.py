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

from adamix.errors import InvalidConfig, InvalidData

Record = dict[str, Any]


class RunStore:
    """One `quality.jsonl`. `kind` is `run` (a reported result), `trial` (of the tuning) or `protocol`.

    Args:
        claims: directory of one empty file for each piece of work that was ever claimed.
    """

    def __init__(self, path: Path, claims: Path) -> None:
        self.path = path
        self._claims = claims

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

    def begin(self, protocol: Record, *, flag: str = "--out") -> None:
        """Say how the runs of this file are made, or check that it is how its earlier ones were.

        Args:
            flag: the option that names the directory of the file.

        Raises:
            InvalidConfig: the file was begun with other settings.
        """
        begun = self.records("protocol")
        if not begun:
            self.append("protocol", protocol)
            return
        for name, value in protocol.items():
            if begun[0].get(name) != value:
                raise InvalidConfig(
                    f"{self.path} was begun with {name} {begun[0].get(name)}, not {value}: name another {flag}",
                    field=name,
                )

    @contextmanager
    def claimed(self, key: str, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process may work on `key` now: False while another one does. Freed by the end of the process.

        Args:
            wait: until the other one has ended its work on it, and answer True.
        """
        self._claims.mkdir(parents=True, exist_ok=True)
        with (self._claims / key).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
