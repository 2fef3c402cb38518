"""Backups: whole or not at all, of running and stopped servers, brought up to date, and brought back."""

import hashlib
import os
import runpy
import shutil
import sqlite3
from pathlib import Path

import pytest

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, InvalidConfig
from adamix_server.blobs.local import BlobStore
from adamix_server.catalog import backup as backups
from adamix_server.catalog.backup import backup, restore
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.rebuild import rebuild
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.store_file import read_store_file
from adamix_server.catalog.verification import verify

WRITER = runpy.run_path(str(Path(__file__).with_name("old_stores") / "write_store.py"))
ME = "default"


def digest(seed: int) -> str:
    return hashlib.sha256(WRITER["adapter"](seed)).hexdigest()


@pytest.fixture
def running(store: Path, here: str) -> Catalog:
    """The catalog of a server that runs: its newest changes are in its log."""
    recover(store)
    catalog = Catalog(store, backbone_fingerprint=here)
    for task, seed in (("a", 0), ("b", 0), ("b", 2)):
        WRITER["add"](catalog, ME, task, seed)
    return catalog


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def live(store: Path, here: str) -> dict[str, list[str]]:
    catalog = Catalog(store, backbone_fingerprint=here)
    found = {name: [version.digest for version in row.live] for (_, name), row in catalog.snapshot().tasks.items()}
    catalog.close()
    return found


def test_of_a_running_server_and_brought_up_to_date(running: Catalog, store: Path, to: Path, here: str) -> None:
    seen: list[tuple[int, int]] = []
    with StoreLock(store):
        first = backup(store, to, lambda done, total: seen.append((done, total)))
    assert (first.tasks, first.versions, first.blobs, first.copied) == (2, 3, 2, 2)
    assert seen == [(1, 2), (2, 2)]
    WRITER["add"](running, ME, "a", 4)
    running.delete_version(ME, "b", digest(0))
    second = backup(store, to)
    assert (second.versions, second.blobs, second.copied) == (3, 3, 1)
    running.close()
    third = backup(store, to)
    assert (third.copied, third.revision) == (0, second.revision)
    assert not list(to.glob("catalog.db?*"))
    assert verify(to).problems == ()
    # It is a store.
    known = read_store_file(to)
    recover(to)
    assert live(to, here) == {"a": [digest(4)], "b": [digest(2)]}
    assert read_store_file(to) == known == read_store_file(store)


def test_bytes_that_rot_in_a_backup_are_copied_anew(running: Catalog, store: Path, to: Path) -> None:
    backup(store, to)
    path = BlobStore(to / "blobs").path(digest(0))
    path.chmod(0o600)
    path.write_bytes(b"rotten")
    assert backup(store, to).copied == 1
    assert verify(to).problems == ()


def test_a_version_deleted_meanwhile_is_not_missed(
    running: Catalog, store: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_first(path: Path, copied_to: Path, copy=backups.copy_catalog) -> Path:  # type: ignore[no-untyped-def]
        copied: Path = copy(path, copied_to)
        monkeypatch.undo()
        running.delete_version(ME, "b", digest(0))
        running.delete_task(ME, "a")
        assert running.purge(digest(0))
        return copied

    monkeypatch.setattr(backups, "copy_catalog", delete_first)
    made = backup(store, to)
    assert (made.tasks, made.versions, made.missing) == (1, 1, ())
    assert verify(to).problems == ()


def test_what_the_store_has_lost_is_named(running: Catalog, store: Path, to: Path) -> None:
    running.blobs.delete(digest(2))
    assert backup(store, to).missing == (digest(2),)
    assert [problem.reason for problem in verify(to).problems] == ["BLOB_MISSING"]


def test_one_that_is_cut_short_is_not_taken_for_whole(
    running: Catalog, store: Path, to: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backups, "put_in_place", cut)
        with pytest.raises(KeyboardInterrupt):
            backup(store, to)
    with pytest.raises(FailedPrecondition) as caught:
        restore(to.with_name("new"), to)
    assert caught.value.reason == "BACKUP_INCOMPLETE"
    backup(store, to)
    WRITER["add"](running, ME, "a", 4)
    with monkeypatch.context() as patch:
        patch.setattr(backups, "put_in_place", cut)
        with pytest.raises(KeyboardInterrupt):
            backup(store, to)
    # The one of before still is.
    restore(to.with_name("new"), to)
    assert live(to.with_name("new"), here) == {"a": [digest(0)], "b": [digest(2)]}
    backup(store, to)
    assert verify(to).versions == 4


def test_places_that_are_no_place_for_a_backup(running: Catalog, store: Path, to: Path, tmp_path: Path) -> None:
    for place in (store, store / "blobs" / "mine"):
        with pytest.raises(InvalidConfig):
            backup(store, place)
    other = tmp_path / "other"
    recover(other)
    backup(store, to)
    WRITER["add"](running, ME, "a", 4)
    backup(store, tmp_path / "newer")
    refusals = {
        "STORE_MISSING": (tmp_path / "nothing", tmp_path / "any"),
        "BACKUP_FOREIGN": (store, other),
        "BACKUP_NEWER": (to, tmp_path / "newer"),
    }
    for reason, (source, place) in refusals.items():
        with pytest.raises(FailedPrecondition) as caught:
            backup(source, place)
        assert caught.value.reason == reason
    assert not (tmp_path / "nothing").exists()
    with StoreLock(to), pytest.raises(FailedPrecondition) as caught:
        backup(store, to)
    assert caught.value.reason == "STORE_LOCKED"


def test_a_store_moves_by_its_backup(running: Catalog, store: Path, to: Path, tmp_path: Path, here: str) -> None:
    running.close()
    backup(store, to)
    shutil.rmtree(store)
    made = restore(tmp_path / "elsewhere", to)
    assert (made.versions, made.copied, made.set_aside) == (3, 2, "")
    assert recover(tmp_path / "elsewhere").missing == ()
    assert live(tmp_path / "elsewhere", here) == {"a": [digest(0)], "b": [digest(2)]}
    assert verify(tmp_path / "elsewhere").problems == ()


def test_a_restore_deletes_nothing(running: Catalog, store: Path, to: Path, here: str) -> None:
    backup(store, to)
    WRITER["add"](running, ME, "c", 4)
    with StoreLock(store), pytest.raises(FailedPrecondition) as caught:
        restore(store, to)
    assert caught.value.reason == "STORE_LOCKED"
    before = running.revision()
    running.close()
    made = restore(store, to)
    assert made.copied == 0
    assert made.revision > before, "what was set aside is an older one from now on"
    assert recover(store).orphans == 1
    assert live(store, here) == {"a": [digest(0)], "b": [digest(2)]}
    (store / CATALOG_FILE).unlink()
    (store / made.set_aside).rename(store / CATALOG_FILE)
    with pytest.raises(FailedPrecondition) as caught:
        recover(store)
    assert caught.value.reason == "CATALOG_OLDER"
    recover(store, accept_catalog=True)
    assert live(store, here)["c"] == [digest(4)]
    assert BlobStore(store / "blobs").exists(digest(4))


def test_a_restore_takes_bytes_from_wherever_they_are_whole(running: Catalog, store: Path, to: Path) -> None:
    running.close()
    backup(store, to)
    (store / CATALOG_FILE).unlink()
    assert recover(store, accept_catalog=True).orphans == 2
    BlobStore(to / "blobs").delete(digest(0))
    restore(store, to)
    assert verify(store).problems == ()


@pytest.mark.parametrize("damage", ["a file is gone", "a file is damaged", "the catalog is damaged", "it is older"])
def test_a_backup_that_is_not_whole_changes_nothing(
    running: Catalog, store: Path, to: Path, damage: str, here: str
) -> None:
    old = shutil.copytree(store, to.with_name("old"), ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    WRITER["add"](running, ME, "a", 4)
    backup(store, to)
    running.close()
    file = BlobStore(to / "blobs").path(digest(4))
    file.chmod(0o600)
    match damage:
        case "a file is gone":
            file.unlink()
        case "a file is damaged":
            file.write_bytes(b"x")
        case "the catalog is damaged":
            (to / CATALOG_FILE).write_bytes((to / CATALOG_FILE).read_bytes()[:20_000])
        case "it is older":
            shutil.copy(old / CATALOG_FILE, to / CATALOG_FILE)
    with pytest.raises(AdamixError) as caught:
        restore(to.with_name("new"), to)
    assert isinstance(caught.value, DataLoss | FailedPrecondition)
    assert "`adamix store rebuild`" in caught.value.message
    assert not (to.with_name("new") / CATALOG_FILE).exists()
    assert not list(to.with_name("new").glob("catalog.db*"))


def test_looking_over_a_store_changes_nothing(running: Catalog, store: Path, tmp_path: Path) -> None:
    """Of one that was killed, say, whose newest changes are in its log alone."""
    copy = shutil.copytree(store, tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
    before = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert verify(copy).problems == ()
    assert verify(copy).versions == 3
    after = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    after.pop(Path(f"{CATALOG_FILE}-shm"), None)
    assert after == before
    (copy / f"{CATALOG_FILE}-wal").unlink()
    (problem,) = verify(copy).problems
    assert problem.reason in ("CATALOG_MISSING", "CATALOG_OLDER")


def test_what_was_registered_again_outlives_a_catalog_that_had_deleted_it(
    running: Catalog, store: Path, to: Path, here: str
) -> None:
    """The deletion that a backup, or an older catalog, still had before it was one of before."""
    running.delete_version(ME, "b", digest(0))
    running.delete_task(ME, "a")
    backup(store, to)
    old = shutil.copy(to / CATALOG_FILE, to.with_name("old"))
    WRITER["add"](running, ME, "a", 0)
    running.close()
    newest = shutil.copy(store / CATALOG_FILE, to.with_name("newest"))
    restore(store, to)
    assert recover(store).orphans == 1
    assert live(store, here) == {"b": [digest(2)]}
    shutil.copy(newest, store / CATALOG_FILE)
    recover(store, accept_catalog=True)
    assert live(store, here)["a"] == [digest(0)]
    shutil.copy(old, store / CATALOG_FILE)
    assert recover(store, accept_catalog=True).orphans == 1
    rebuild(store)
    assert recover(store).missing == ()
    assert live(store, here)["a"] == [digest(0)]


def test_a_lost_catalog_that_was_accepted_is_no_end_of_the_backup(
    running: Catalog, store: Path, to: Path, here: str
) -> None:
    """The backup of every night goes on over the good one."""
    running.delete_version(ME, "b", digest(0))
    backup(store, to)
    running.close()
    (store / CATALOG_FILE).unlink()
    recover(store, accept_catalog=True)
    made = backup(store, to)
    assert made.versions == 0
    assert backup(store, to).set_aside == ""
    good = to.with_name("good")
    shutil.copytree(to, good, ignore=shutil.ignore_patterns("store.json"))
    shutil.copy(good / made.set_aside, good / CATALOG_FILE)
    restore(to.with_name("new"), good)
    assert live(to.with_name("new"), here) == {"a": [digest(0)], "b": [digest(2)]}
    assert {version.digest for version in rebuild(to).versions} == {digest(0), digest(2)}
    assert live(to, here) == {"a": [digest(0)], "b": [digest(2)]}


def test_what_was_deleted_goes_from_the_origins_of_a_backup(running: Catalog, store: Path, to: Path) -> None:
    backup(store, to)
    running.delete_version(ME, "b", digest(0))
    running.delete_task(ME, "a")
    backup(store, to)
    assert [path.stem for path in to.glob("origins/*/*/*")] == [digest(2)]


def test_a_restore_from_a_store_that_a_server_changes_meanwhile(
    running: Catalog, store: Path, to: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_change(path: Path, copied_to: Path, copy=backups.copy_catalog) -> Path:  # type: ignore[no-untyped-def]
        copied: Path = copy(path, copied_to)
        WRITER["add"](running, ME, "late", 4)
        return copied

    monkeypatch.setattr(backups, "copy_catalog", then_change)
    restore(to, store)
    assert live(to, here) == {"a": [digest(0)], "b": [digest(2)]}


def test_a_store_that_was_served_and_is_read_only_now(
    running: Catalog, store: Path, to: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that was tried out, say, and lies on a read-only disk. No mode keeps a superuser off."""
    running.close()
    names: list[str] = []
    connect = sqlite3.connect

    def noted(name: str, *args: object, **options: object) -> sqlite3.Connection:
        names.append(str(name))
        return connect(name, *args, **options)  # type: ignore[call-overload, no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != store)
        patch.setattr(sqlite3, "connect", noted)
        store.chmod(0o500)
        try:
            assert verify(store).problems == ()
            assert not list(store.glob("catalog.db?*")), "no log is made"
            restore(to, store)
        finally:
            store.chmod(0o700)
    assert f"file:{store / CATALOG_FILE}?mode=ro&immutable=1" in names
    assert live(to, here) == {"a": [digest(0)], "b": [digest(2)]}


def test_a_first_backup_that_was_cut_short_at_its_end_is_brought_up_to_date(
    running: Catalog, store: Path, to: Path
) -> None:
    backup(store, to)
    (to / "store.json").unlink()
    WRITER["add"](running, ME, "a", 4)
    assert backup(store, to).copied == 1
    assert verify(to).problems == ()
    (to / "store.json").unlink()
    (to / CATALOG_FILE).write_bytes(b"whose?" * 1000)
    with pytest.raises(FailedPrecondition) as caught:
        backup(store, to)
    assert caught.value.reason == "BACKUP_FOREIGN"


@pytest.mark.parametrize("step", ["write_store_file", "set_aside", "put_in_place"])
def test_a_restore_that_is_cut_short_is_done_again(
    running: Catalog, store: Path, to: Path, here: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    backup(store, to)
    WRITER["add"](running, ME, "c", 4)
    running.close()

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backups, step, cut)
        with pytest.raises(KeyboardInterrupt):
            restore(store, to)
    if step != "write_store_file":
        with pytest.raises(FailedPrecondition, match="`adamix store restore`"):
            recover(store)
    restore(store, to)
    assert recover(store).orphans == 1
    assert live(store, here) == {"a": [digest(0)], "b": [digest(2)]}
