"""What changes leave beside the catalog: store.json, which never falls and fails nobody, and one origin a version."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from adamix.errors import StoreFull
from adamix_server.catalog import store_file, traces
from adamix_server.catalog.database import Database
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.origins import Origins
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.store_file import Progress, StoreFile, read_store_file, write_store_file
from adamix_testing.catalogs import registration, write_down

Add = Callable[..., VersionRow]
ME = "default"


def no_room(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def noted(store: Path) -> int:
    found = read_store_file(store)
    assert found is not None
    return found.revision


def keys(store: Path) -> set[tuple[str, str, str]]:
    return set(Origins(store / "origins").keys())


def test_every_change_is_noted(catalog: Catalog, add: Add, store: Path) -> None:
    first, second = add("t", b"1"), add("t", b"2")
    changes: list[Callable[[], object]] = [
        lambda: catalog.rollback(ME, "t"),
        lambda: catalog.set_traffic(ME, "t", [(second.digest, 1)]),
        lambda: catalog.set_pinned(ME, "t", first.digest, True),
        lambda: catalog.delete_version(ME, "t", first.digest),
        lambda: catalog.delete_task(ME, "t"),
    ]
    for change in changes:
        before = noted(store)
        change()
        assert noted(store) == catalog.revision() == before + 1
    write_down(catalog, "TRUNCATED")
    catalog.purge(first.digest)
    assert noted(store) == catalog.revision()


def test_others_write_while_the_origins_of_a_deleted_tenant_are_removed(
    catalog: Catalog, add: Add, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        add(f"t{number}", b"1", tenant="acme")
    kept = add("t0", b"1")
    monkeypatch.setattr(traces, "_FORGOTTEN_AT_ONCE", 2)
    write, happened = Database.write, list[str]()

    def seen_writing(database: Database) -> AbstractContextManager[Connection]:
        happened.append("begin")
        return write(database)

    def seen_removing(origins: Origins, key: tuple[str, str, str]) -> None:
        happened.append("remove")
        origins.path(key).unlink()

    monkeypatch.setattr(Database, "write", seen_writing)
    monkeypatch.setattr(Origins, "remove", seen_removing)
    catalog.tenants.delete("acme", force=True)
    some = ["begin", "remove", "remove"]
    assert happened == ["begin", *some, *some, *some[:2]]
    assert keys(store) == {(ME, "t0", kept.digest)}


def test_the_number_never_falls(store: Path) -> None:
    """Two processes may note in any order."""
    recover(store)
    known = read_store_file(store)
    assert known is not None
    progress = [Progress(store, known.store_id) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: progress[number % 4].reached(number), [*range(40, 0, -1), *range(40)]))
    assert noted(store) == 40
    progress[0].reached(7)
    assert noted(store) == 40


def test_another_stores_file_is_left_as_it_is(store: Path) -> None:
    recover(store)
    write_store_file(store, StoreFile(store_id="f" * 32, revision=3))
    Progress(store, "e" * 32).reached(9)
    assert noted(store) == 3


@pytest.mark.parametrize("trouble", ["no room", "somebody keeps it"])
def test_what_is_committed_stays_so_if_it_cannot_be_noted(
    catalog: Catalog, add: Add, store: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    add("t", b"1")
    with monkeypatch.context() as patch:
        if trouble == "no room":
            patch.setattr(store_file, "replace_file", no_room)
            version = add("t", b"2")
        else:
            patch.setattr(store_file, "_PATIENCE_S", 0.02)
            with store_file._alone(store):
                version = add("t", b"2")
    assert catalog.get_task(ME, "t").live[0].digest == version.digest
    assert noted(store) == 1, "the catalog is ahead, which is normal"
    assert recover(store).missing == ()
    assert noted(store) == 2


def test_an_origin_comes_with_its_version_and_goes_with_it(catalog: Catalog, add: Add, store: Path) -> None:
    first, second, other = add("t", b"1"), add("t", b"2"), add("u", b"1", make_live=False, tenant="other")
    assert keys(store) == {(ME, "t", first.digest), (ME, "t", second.digest), ("other", "u", other.digest)}
    origin = Origins(store / "origins").read((ME, "t", first.digest))
    assert origin is not None
    assert (origin.revision, origin.live) == (1, True)
    catalog.delete_version(ME, "t", first.digest)
    assert keys(store) == {(ME, "t", second.digest), ("other", "u", other.digest)}
    catalog.delete_task(ME, "t")
    assert keys(store) == {("other", "u", other.digest)}
    add("t", b"1")
    assert (ME, "t", first.digest) in keys(store)


def test_registering_again_to_answer_is_the_last_registration(catalog: Catalog, add: Add, store: Path) -> None:
    digest = add("t", b"1", make_live=False).digest
    add("t", b"2")
    add("t", b"1")
    origin = Origins(store / "origins").read((ME, "t", digest))
    assert origin is not None
    assert (origin.revision, origin.live) == (3, True)


def test_a_registration_that_fails_leaves_no_origin(
    catalog: Catalog, add: Add, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("t", b"1")
    leave = traces.Traces._leave

    def and_fail(*args: Any) -> None:
        leave(*args)
        no_room()

    with monkeypatch.context() as patch:
        patch.setattr(traces.Traces, "_leave", and_fail)
        with pytest.raises(OSError, match="No space"):
            add("t", b"2")
    assert len(keys(store)) == 1
    with monkeypatch.context() as patch:
        patch.setattr("adamix_server.catalog.origins.replace_file", no_room)
        with pytest.raises(StoreFull):
            add("t", b"2")
    assert len(keys(store)) == 1
    assert catalog.revision() == 1
    add("t", b"2")
    assert len(keys(store)) == 2


def test_a_deletion_that_was_cut_short_is_finished_by_the_next_start(
    catalog: Catalog, add: Add, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("t", b"1")
    add("u", b"1")
    add("u", b"2")
    with monkeypatch.context() as patch:
        patch.setattr(Origins, "remove", no_room)
        catalog.delete_task(ME, "t")
        catalog.delete_version(ME, "u", hashlib.sha256(b"1").hexdigest())
    assert len(keys(store)) == 3
    recover(store)
    assert keys(store) == {(ME, "u", hashlib.sha256(b"2").hexdigest())}
    assert not (store / "origins" / ME / "t").exists()


def test_an_origin_without_a_reason_to_go_stays(catalog: Catalog, add: Add, store: Path) -> None:
    """Until the bytes of a registration that was cut short are gone, a week after the next start."""
    add("t", b"1")
    origins = Origins(store / "origins")
    origin = origins.read(next(origins.keys()))
    assert origin is not None
    digest = hashlib.sha256(b"cut short").hexdigest()
    catalog.blobs.put(b"cut short", digest)
    cut = {name: getattr(origin, name) for name in ("tenant", "task", "store_id", "time", "live")}
    origins.put(type(origin)(**cut, digest=digest, revision=2))
    recover(store)
    assert (ME, "t", digest) in keys(store)
    os.utime(store / "blobs" / "orphans" / digest, (0, 0))
    assert recover(store).swept.expired == (digest,)
    assert (ME, "t", digest) not in keys(store)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o022])
def test_files_are_for_this_user_alone(store: Path, here: str, manifest_json: Callable[[str], str], mask: int) -> None:
    """Whatever the umask, also in a directory that was there, and of files that were there."""
    store.mkdir(mode=0o755)
    before = os.umask(mask)
    try:
        recover(store)
        (store / CATALOG_FILE).chmod(0o644)
        catalog = Catalog(store, backbone_fingerprint=here)
        digest = hashlib.sha256(b"1").hexdigest()
        catalog.blobs.put(b"1", digest)
        catalog.register(registration(ME, "t", digest, manifest_json(here), 1, here))
        modes = {path.relative_to(store): stat.S_IMODE(path.stat().st_mode) for path in store.rglob("*")}
        catalog.close()
    finally:
        os.umask(before)
    expected = {True: {0o700}, False: {0o600, 0o400}}
    for path, mode in modes.items():
        assert mode in expected[(store / path).is_dir()] or not (store / path).exists(), path
    assert {Path(f"{CATALOG_FILE}{suffix}") for suffix in ("", "-wal", "-shm")} <= modes.keys()
