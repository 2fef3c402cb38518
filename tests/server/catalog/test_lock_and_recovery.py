import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.errors import DataLoss, FailedPrecondition, StoreFull
from adamix_server.blobs.local import Swept
from adamix_server.catalog import recovery, schema
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.recovery import Recovered, recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog

Add = Callable[..., VersionRow]


def test_a_second_server_is_refused_by_name(store: Path) -> None:
    with StoreLock(store):
        with pytest.raises(FailedPrecondition, match=rf"another server \(process {os.getpid()}\) is using") as caught:
            StoreLock(store)
        assert caught.value.reason == "STORE_LOCKED"
        assert str(store) not in caught.value.message
    StoreLock(store).release()


def test_a_killed_server_leaves_no_lock(store: Path) -> None:
    program = (
        "import pathlib, sys, adamix_server.catalog.lock as lock\n"
        "held = lock.StoreLock(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", program, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(FailedPrecondition, match=str(child.pid)):
            StoreLock(store)
        child.kill()
    with StoreLock(store):
        pass


def test_a_place_that_cannot_be_a_store_is_said(store: Path) -> None:
    store.write_bytes(b"a file")
    with pytest.raises(FailedPrecondition, match="choose another --store") as caught:
        StoreLock(store)
    assert caught.value.reason == "STORE_READONLY"
    assert str(store) not in caught.value.message


def test_an_empty_store_needs_nothing(store: Path) -> None:
    assert recover(store) == Recovered(Swept(), ())
    assert recover(store) == Recovered(Swept(), ())


def test_recovery_finishes_deletions_and_puts_orphans_aside(catalog: Catalog, add: Add, store: Path) -> None:
    kept, gone = add("kept", b"kept"), add("gone", b"gone")
    shared = add("gone", b"shared")
    add("kept", b"shared", make_live=False)
    catalog.delete_task("default", "gone")
    catalog.blobs.put(b"orphan", hashlib.sha256(b"orphan").hexdigest())
    (store / "blobs" / "tmp" / "left-behind").write_bytes(b"x")
    (store / "catalog.db.rebuilding").mkdir()
    assert set(catalog.retired()) == {gone.digest, shared.digest}
    assert recover(store) == Recovered(Swept(temporaries=1, orphaned=1), (), orphans=1)
    assert not (store / "catalog.db.rebuilding").exists()
    assert set(catalog.blobs.digests()) == {kept.digest, shared.digest}
    assert list(catalog.blobs.orphans()) == [hashlib.sha256(b"orphan").hexdigest()]
    assert catalog.retired() == ()
    assert set(catalog.get_task("default", "kept").versions) == {kept.digest, shared.digest}


def test_what_recovery_has_no_room_to_delete_waits(
    catalog: Catalog, add: Add, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = add("kept", b"kept"), add("gone", b"gone")
    catalog.delete_task("default", "gone")

    def no_room(connection: object) -> None:
        raise StoreFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "forget_changes", no_room)
        assert recover(store) == Recovered(Swept(), ())
    assert catalog.retired() == (gone.digest,)
    assert set(catalog.blobs.digests()) == {kept.digest}
    assert recover(store) == Recovered(Swept(), ())
    assert catalog.retired() == ()


def test_recovery_names_versions_without_their_bytes(catalog: Catalog, add: Add, store: Path) -> None:
    gone, short, whole = add("a", b"gone"), add("b", b"short"), add("c", b"whole")
    catalog.blobs.delete(gone.digest)
    catalog.blobs.path(short.digest).chmod(0o600)
    catalog.blobs.path(short.digest).write_bytes(b"s")
    assert recover(store).missing == tuple(sorted([gone.digest, short.digest]))
    assert catalog.get_task("default", "c").live[0].digest == whole.digest


def edit(store: Path, statement: str) -> None:
    connection = sqlite3.connect(store / "catalog.db")
    with connection:
        connection.execute(statement)
    connection.close()


def test_a_store_of_a_newer_version_is_refused_and_not_touched(store: Path) -> None:
    recover(store)
    edit(store, f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    before = (store / "catalog.db").read_bytes()
    with pytest.raises(FailedPrecondition, match="newer adamix") as caught:
        recover(store)
    assert caught.value.reason == "STORE_SCHEMA"
    assert (store / "catalog.db").read_bytes() == before


def test_another_programs_database_is_refused_and_not_touched(store: Path) -> None:
    store.mkdir()
    edit(store, "CREATE TABLE theirs (x)")
    with pytest.raises(FailedPrecondition) as caught:
        recover(store)
    assert caught.value.reason == "STORE_FOREIGN"
    edit(store, "PRAGMA user_version = 1")
    with pytest.raises(FailedPrecondition) as caught:
        recover(store)
    assert caught.value.reason == "STORE_FOREIGN"


def test_a_file_that_is_no_database_is_refused(store: Path) -> None:
    store.mkdir()
    (store / "catalog.db").write_bytes(b"these are not the pages you are looking for" * 100)
    with pytest.raises(DataLoss) as caught:
        recover(store)
    assert caught.value.reason == "CATALOG_CORRUPT"


def test_a_damaged_page_is_found_at_start(catalog: Catalog, add: Add, store: Path) -> None:
    for i in range(50):
        add(f"task{i}", b"same")
    catalog.close()
    file = store / "catalog.db"
    data = bytearray(file.read_bytes())
    for page in range(4096 * 4, len(data), 4096):
        data[page : page + 200] = b"\xff" * 200
    file.write_bytes(data)
    with pytest.raises(DataLoss) as caught:
        recover(store)
    assert caught.value.reason == "CATALOG_CORRUPT"
