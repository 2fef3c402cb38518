"""Copies a catalog, and puts another one in its place. The one before is kept under a name that tells the time.

Knows file names, and nothing of what is in them.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from adamix_server.blobs.directories import sync_directory
from adamix_server.blobs.os_errors import store_errors
from adamix_server.catalog.database import LOG_SUFFIXES, corrupt, is_fixed, translated
from adamix_server.catalog.lineage import CATALOG_FILE


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """A directory of this name, empty and for this user alone, gone at the end. A kill leaves it to the next one.

    A directory, because SQLite may put files beside the one it writes to.
    """
    shutil.rmtree(path, ignore_errors=True)
    try:
        with store_errors(), translated():
            path.mkdir(mode=0o700)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_workplaces(store: Path) -> None:
    """End what upgrades, restores and rebuilds left that were killed. Only for who holds the store."""
    for kind in ("copying", "restoring", "rebuilding"):
        shutil.rmtree(store / f"{CATALOG_FILE}.{kind}", ignore_errors=True)


def copy_catalog(path: Path, to: Path) -> Path:
    """The catalog as one file, checked and on disk. A copy of the file alone would miss what its log holds.

    Others may write to it meanwhile: the copy is the catalog of one moment.

    Raises:
        DataLoss: the copy, and so the catalog, is damaged (`CATALOG_CORRUPT`).
    """
    # As `database.reading`; otherwise to read and write, as SQLite itself does it.
    options = "?mode=ro&immutable=1" if is_fixed(path) else "?mode=rw"
    name = f"file:{quote(str(path.absolute()))}{options}"
    with closing(sqlite3.connect(name, uri=True)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        if copy.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise corrupt()
    with to.open("rb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
    return to


def set_aside(store: Path) -> str:
    """Move the catalog and its logs away, together: as `<name>`, `<name>-wal` and `<name>-shm` they are a database.

    Only for who holds the store.

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
    with store_errors():
        # The database first: a log without one is met as a catalog that is missing.
        for suffix in there:
            files[suffix].rename(store / (name + suffix))
        sync_directory(store)
    return name


def put_in_place(new: Path, store: Path) -> None:
    """Make `new`, a whole database without a log and on the same disk, the catalog. What was there must have no log."""
    with store_errors():
        new.rename(store / CATALOG_FILE)
        sync_directory(store)
