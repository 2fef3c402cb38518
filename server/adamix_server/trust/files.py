"""Small files of an operator that may change while the server runs: whether they have, and what is in them."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from adamix.errors import InvalidConfig
from adamix_server.limits.operators import MAX_TRUST_FILE_BYTES

# What was wrong with a file may pass by itself: it is not valid yet, or nobody could read it for a moment.
RETRY_S = 10.0

# Of each file what changes with it; None where there is none.
Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp(paths: Iterable[Path]) -> Stamp:
    """What differs once one of the files was written or exchanged. Links are followed."""
    return tuple(map(_stamp_of, paths))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Watch:
    """When files are to be read again: once they have changed, and from time to time while what is there is of no use.

    Thread-safe. To be made before they are read for the first time.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, paths: Iterable[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = stamp(self._paths)
        self._retry_at: float | None = None
        self._said = ""

    def is_due(self) -> bool:
        """Whether the caller is to read them now."""
        newest = stamp(self._paths)
        with self._lock:
            if newest != self._stamp:
                # Before they are read: what is written meanwhile is looked at next time.
                self._stamp, self._said = newest, ""
            elif self._retry_at is None or self._clock() < self._retry_at:
                return False
            self._retry_at = None
            return True

    def failed(self, why: str) -> bool:
        """They are of no use; whether that is news."""
        with self._lock:
            self._retry_at = self._clock() + RETRY_S
            is_news, self._said = why != self._said, why
        return is_news


def read(path: Path, flag: str) -> bytes:
    """The bytes of a file that a flag names. Raises InvalidConfig with what to do."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise wrong(flag, f"{path} does not exist") from None
    except OSError as error:
        raise wrong(flag, f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_TRUST_FILE_BYTES:
        raise wrong(flag, f"{path} has more than {MAX_TRUST_FILE_BYTES:,} bytes")
    return data


def wrong(flag: str, what: str) -> InvalidConfig:
    """The error for a file that a flag names."""
    return InvalidConfig(
        f"{flag}: {what}", reason="TRUST_FILE_INVALID", field=flag.removeprefix("--").replace("-", "_")
    )
