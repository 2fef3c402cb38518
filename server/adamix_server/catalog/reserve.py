"""Room that a stopped store keeps for its own next start: SQLite needs some for its log before it can read.

A killed server leaves the log where it is, so there is room; one that ended in order has removed it, and whatever else
is on the disk may have taken its place by the next start. Knows nothing of what is in the store.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RESERVE_FILE = "reserve"
# The log's index, and a log of some pages.
RESERVE_BYTES = 128 << 10


@contextmanager
def reserve(store: Path) -> Iterator[None]:
    """Give the room back for the time that the store is in use, and keep it again from then on, if there is any."""
    path = store / RESERVE_FILE
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            with suppress(OSError):
                path.unlink()
