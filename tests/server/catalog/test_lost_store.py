"""A store that is taken away under those who serve from it: they say so, write nothing, and go on when it is back."""

import hashlib
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.errors import AdamixError, Code
from adamix_server.catalog import database
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import write_down

Add = Callable[..., VersionRow]

ME = "default"
DATA = b"the bytes"
DIGEST = hashlib.sha256(DATA).hexdigest()


def reason(work: Callable[[], object]) -> tuple[Code, str]:
    with pytest.raises(AdamixError) as caught:
        work()
    return caught.value.code, caught.value.reason


LOST = (Code.UNAVAILABLE, "STORE_LOST")


def all_lost(catalog: Catalog, add: Add) -> bool:
    work: list[Callable[[], object]] = [
        catalog.check,
        catalog.revision,
        catalog.snapshot,
        lambda: catalog.list_tasks(ME),
        lambda: catalog.delete_task(ME, "t"),
        lambda: write_down(catalog, "x"),
        lambda: add("t", b"more"),
    ]
    return [reason(step) for step in work] == [LOST] * len(work)


def test_a_store_that_is_moved_away_is_lost_until_it_is_back(catalog: Catalog, add: Add, store: Path) -> None:
    add("t", DATA)
    before = catalog.snapshot()
    away = store.rename(store.with_name("away"))
    assert all_lost(catalog, add)
    blobs = catalog.blobs
    for step in (
        lambda: blobs.get(DIGEST),
        lambda: blobs.size(DIGEST),
        lambda: blobs.start(DIGEST, 8),
        lambda: blobs.identity(DIGEST),
        lambda: blobs.put(DATA, DIGEST),
        blobs.sizes,
        blobs.check,
    ):
        assert reason(step) == LOST
    assert not store.exists(), "nothing was made in its place"
    away.rename(store)
    assert catalog.snapshot() == before
    assert blobs.get(DIGEST) == DATA
    add("t", b"more")


def test_a_catalog_that_is_deleted_or_replaced_is_lost_and_no_new_one_is_made(
    catalog: Catalog, add: Add, store: Path
) -> None:
    """A connection would go on writing to the file without a name, and all of it would be gone at the next start."""
    add("t", DATA)
    file, kept = store / "catalog.db", store / "kept.db"
    file.rename(kept)
    assert all_lost(catalog, add)
    assert not file.exists()
    file.write_bytes(b"")
    assert all_lost(catalog, add), "another file under the name"
    assert file.read_bytes() == b""
    kept.rename(file)
    assert len(catalog.list_tasks(ME).rows) == 1
    add("t", b"more")


def test_a_file_that_goes_away_during_a_change_is_not_called_written(
    catalog: Catalog, add: Add, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = database.Database.check
    looks = 0

    def go_away_after_the_first(of: database.Database) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            (store / "catalog.db").rename(store / "kept.db")
        record(of)

    monkeypatch.setattr(database.Database, "check", go_away_after_the_first)
    assert reason(lambda: write_down(catalog, "x")) == LOST


def test_only_blobs_that_are_gone_alone_are_missing(catalog: Catalog, add: Add, store: Path) -> None:
    add("t", DATA)
    blob = catalog.blobs.path(DIGEST)
    blob.unlink()
    assert reason(lambda: catalog.blobs.get(DIGEST)) == (Code.DATA_LOSS, "BLOB_MISSING")
    assert not catalog.blobs.exists(DIGEST)
    blob.parent.rmdir()
    assert reason(lambda: catalog.blobs.get(DIGEST)) == LOST


def test_who_serves_from_a_store_makes_none(store: Path, here: str) -> None:
    """It would be empty, and what is only away could not come back to its place."""
    assert reason(lambda: Catalog(store, backbone_fingerprint=here, make=False)) == LOST
    assert not store.exists()
    Catalog(store, backbone_fingerprint=here).close()
    Catalog(store, backbone_fingerprint=here, make=False).close()
    (store / "blobs").rename(store / "blobs-away")
    assert reason(lambda: Catalog(store, backbone_fingerprint=here, make=False)) == LOST
    assert not (store / "blobs").exists()
    (store / "blobs-away").rename(store / "blobs")
    for end in ("", "-wal", "-shm"):
        (store / f"catalog.db{end}").unlink(missing_ok=True)
    (store / "catalog.db").touch()
    assert reason(lambda: Catalog(store, backbone_fingerprint=here, make=False)) == LOST


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_READONLY_DBMOVED, LOST),
        (sqlite3.SQLITE_CANTOPEN, (Code.UNAVAILABLE, "STORE_IO")),
        (sqlite3.SQLITE_IOERR_WRITE, (Code.UNAVAILABLE, "STORE_IO")),
        (sqlite3.SQLITE_READONLY, (Code.FAILED_PRECONDITION, "STORE_READONLY")),
        (sqlite3.SQLITE_PERM, (Code.FAILED_PRECONDITION, "STORE_READONLY")),
        (sqlite3.SQLITE_NOMEM, (Code.RESOURCE_EXHAUSTED, "OVERLOADED")),
        (sqlite3.SQLITE_FULL, (Code.RESOURCE_EXHAUSTED, "STORE_FULL")),
    ],
)
def test_what_sqlite_says_where_the_file_system_says_nothing(code: int, expected: tuple[Code, str]) -> None:
    error = sqlite3.OperationalError("…")
    error.sqlite_errorcode = code
    found = database._translate(error)
    assert found is not None
    assert (found.code, found.reason) == expected


def failing_with(code: int) -> Callable[[Catalog], object]:
    """Something that SQLite ends with this code."""

    def work(catalog: Catalog) -> None:
        with catalog._database.read():
            error = sqlite3.OperationalError("…")
            error.sqlite_errorcode = code
            raise error

    return work


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_READONLY])
def test_what_sqlite_keeps_to_itself_the_file_system_says(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fail = failing_with(code)
    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (1 << 12, 1 << 12))
        assert reason(lambda: fail(catalog)) == (Code.RESOURCE_EXHAUSTED, "STORE_FULL")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert reason(lambda: fail(catalog)) == (Code.FAILED_PRECONDITION, "STORE_READONLY")
    assert catalog.revision() == 0, "and it goes on"


# A process that has no descriptor left, then no file that may grow; prints what it is told.
SHORT = """
import hashlib, os, pathlib, resource, sys
from adamix.errors import AdamixError
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import write_down
from adamix_testing.catalogs import write_down

def said(work):
    try:
        work()
    except AdamixError as error:
        print(error.code.name, error.reason)
    else:
        print("done")

catalog = Catalog(pathlib.Path(sys.argv[1]), backbone_fingerprint="a" * 64)
data = bytes(1 << 20)
digest = hashlib.sha256(data).hexdigest()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
catalog._database._engine.dispose()
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for work in (catalog.revision, lambda: catalog.blobs.put(data, digest), lambda: catalog.blobs.get(digest)):
    said(work)
for one in held:
    os.close(one)
said(catalog.revision)
resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, 256 << 10))

def fill():
    for number in range(2_000):
        write_down(catalog, "X" * 400)

for work in (lambda: catalog.blobs.put(data, digest), fill, catalog.revision):
    said(work)
"""


def test_no_descriptors_and_no_larger_files_are_said_for_what_they_are(store: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SHORT, str(store)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *["RESOURCE_EXHAUSTED OUT_OF_DESCRIPTORS"] * 3,
        "done",
        *["RESOURCE_EXHAUSTED STORE_FULL"] * 2,
        "done",
    ]
