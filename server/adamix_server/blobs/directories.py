"""Directories whose names survive power loss: a file is only as durable as the entry that leads to it."""

import os
from itertools import takewhile
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make `path` (mode 0700) and its missing parents, durably. One that exists is fine."""
    missing = list(takewhile(lambda parent: not parent.exists(), path.parents))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in (path, *missing):
        sync_directory(made.parent)


def sync_directory(path: Path) -> None:
    """Put the entries of a directory on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
