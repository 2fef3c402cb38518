"""No room left, at each step of a registration in turn: said as what it is, nothing half done, and cured by room."""

import errno
import hashlib
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from adamix.errors import FailedPrecondition, StoreFull, Unavailable
from adamix_server.catalog import database
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import write_down

Add = Callable[..., VersionRow]

ME = "default"
OLD, NEW = b"the old version" * 1000, b"the new version" * 1000


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def no_room(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def only(call: Callable[..., Any], is_meant: Callable[..., bool]) -> Callable[..., Any]:
    return lambda *args, **kwargs: no_room() if is_meant(*args) else call(*args, **kwargs)


def is_directory(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


STEPS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "open the upload": (tempfile, "mkstemp", no_room),
    "write": (os, "write", no_room),
    "write, in the middle": (os, "write", only(os.write, lambda _, data: len(data) < 4096)),
    "make read-only": (os, "fchmod", no_room),
    "sync the file": (os, "fsync", only(os.fsync, lambda descriptor: not is_directory(descriptor))),
    "rename": (Path, "rename", no_room),
    "sync the directory": (os, "fsync", only(os.fsync, is_directory)),
}


def state(catalog: Catalog) -> tuple[object, ...]:
    return catalog.list_tasks(ME).rows, catalog.revision(), catalog.audit_log.page(ME).rows, catalog.snapshot()


def upload(catalog: Catalog, data: bytes) -> str:
    with catalog.blobs.temporary() as temporary:
        for start in range(0, len(data), 4096):
            temporary.write(data[start : start + 4096])
        catalog.blobs.put(temporary.path, temporary.digest)
        return temporary.digest


@pytest.mark.parametrize("step", STEPS)
def test_no_room_at_a_step_of_an_upload(catalog: Catalog, add: Add, store: Path, here: str, step: str) -> None:
    add("t", OLD)
    before = state(catalog)
    owner, name, broken = STEPS[step]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, broken)
        for _ in range(2):
            with pytest.raises(StoreFull, match="disk is full"):
                upload(catalog, NEW)
    assert state(catalog) == before
    assert catalog.blobs.get(digest_of(OLD)) == OLD
    assert list((store / "blobs" / "tmp").iterdir()) == []
    # A blob is whole or absent: one that nobody refers to is swept at the next start.
    assert set(catalog.blobs.digests()) - {digest_of(NEW)} == {digest_of(OLD)}
    assert recover(store).missing == ()
    assert set(catalog.blobs.digests()) == {digest_of(OLD)}
    assert upload(catalog, NEW) == digest_of(NEW)
    assert add("t", NEW).digest == digest_of(NEW)
    assert catalog.blobs.get(digest_of(NEW)) == NEW


@pytest.fixture
def pages(catalog: Catalog) -> Iterator[list[int]]:
    """The most pages that catalog.db may have, in a list of one; SQLite says "full" itself."""
    limit = [1 << 30]

    def set_limit(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}")

    event.listen(catalog._database._engine, "begin", set_limit)
    yield limit
    event.remove(catalog._database._engine, "begin", set_limit)


def test_no_room_for_the_row_of_a_version(catalog: Catalog, add: Add, pages: list[int]) -> None:
    add("t", OLD)
    pages[0] = 1  # SQLite takes that for "no more than there are now"
    before = state(catalog)
    with pytest.raises(StoreFull, match="disk is full"):  # noqa: PT012 - the pages there are have room for some
        for number in range(500):
            before = state(catalog)
            add("t", b"version %d" % number)
    assert state(catalog) == before
    for change in (lambda: write_down(catalog, "x" * 500), lambda: add("another", NEW)):
        with pytest.raises(StoreFull):  # noqa: PT012 - as above
            for _ in range(500):
                change()
    pages[0] = 1 << 30
    assert add("t", NEW).digest == digest_of(NEW)
    (live,) = catalog.get_task(ME, "t").live
    assert live.digest == digest_of(NEW)


def test_a_store_can_be_locked_without_room_for_a_word(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", no_room)
    with StoreLock(store), pytest.raises(FailedPrecondition) as caught:
        StoreLock(store)
    assert caught.value.reason == "STORE_LOCKED"


def test_an_index_of_the_log_that_cannot_grow_is_a_full_disk() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    assert isinstance(database._translate(error), StoreFull)
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    assert isinstance(database._translate(error), Unavailable)
