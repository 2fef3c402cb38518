"""Puts another catalog in the place of a store's. The one before is kept under a name that tells the time.

Only for who holds the store. Knows file names, and nothing of what is in them.
"""

import time
from pathlib import Path

from adamix_server.blobs.directories import sync_directory
from adamix_server.blobs.local import room
from adamix_server.catalog.database import LOG_SUFFIXES
from adamix_server.catalog.lineage import CATALOG_FILE


def set_aside(store: Path) -> str:
    """Move the catalog and its logs away, together: as `<name>`, `<name>-wal` and `<name>-shm` they are a database.

    Returns:
        The name; empty if there was nothing to move.
    """
    files = {suffix: store / (CATALOG_FILE + suffix) for suffix in ("", *LOG_SUFFIXES)}
    there = [suffix for suffix, file in files.items() if file.exists()]
    if not there:
        return ""
    base = name = f"{CATALOG_FILE}.set-aside-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    number = 0
    while any((store / (name + suffix)).exists() for suffix in files):
        number += 1
        name = f"{base}.{number}"
    with room():
        # The database first: a log without one is met as a catalog that is missing.
        for suffix in there:
            files[suffix].rename(store / (name + suffix))
        sync_directory(store)
    return name


def put_in_place(new: Path, store: Path) -> None:
    """Make `new`, a whole database without a log and on the same disk, the catalog of a store that has none."""
    with room():
        new.rename(store / CATALOG_FILE)
        sync_directory(store)
