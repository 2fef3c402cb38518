"""Directories and small files whose names survive power loss: a file is only as durable as the entry that leads to it.

What is made here is for this user alone, whatever the umask.
"""

import os
import tempfile
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

# Of the names that a file has until it is whole; nothing else in a store begins so.
ARRIVING = "."


def make_directory(path: Path, *, is_durable: bool = True) -> None:
    """Make `path` and its missing parents (mode 0700). One that exists is fine and stays as it is.

    Args:
        is_durable: put them on disk now.
    """
    missing = list(takewhile(lambda directory: not directory.exists(), (path, *path.parents)))
    for directory in reversed(missing):
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            # A umask takes away from the mode of `mkdir`.
            directory.chmod(0o700)
    if is_durable:
        for made in missing or (path,):
            sync_directory(made.parent)


def sync_directory(path: Path) -> None:
    """Put the entries of a directory on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, is_durable: bool = True) -> None:
    """Give `path` (mode 0600) these bytes: whoever reads it sees the old ones or the new ones, after a crash, too.

    Args:
        is_durable: put it on disk now. If not, a crash may leave the name with anything; `os.sync` ends that.

    Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{ARRIVING}{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o600)
            if is_durable:
                os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:  # nothing is handled: what is half written goes
        Path(name).unlink(missing_ok=True)
        raise
    if is_durable:
        sync_directory(path.parent)
