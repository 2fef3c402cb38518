"""Readers that only want the difference: they miss nothing, and need no audit."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adamix.errors import FailedPrecondition
from adamix_server.catalog import changes
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import write_down

Add = Callable[..., VersionRow]
Edit = Callable[[str], list[tuple[object, ...]]]
ME = "default"


@pytest.fixture
def reader(store: Path, here: str) -> Iterator[Catalog]:
    """Another front end's catalog."""
    reader = Catalog(store, backbone_fingerprint=here)
    yield reader
    reader.close()


@pytest.fixture
def edit(store: Path) -> Edit:
    """Runs a statement behind everybody's back."""

    def edit(statement: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(store / CATALOG_FILE)
        with connection:
            rows = connection.execute(statement).fetchall()
        connection.close()
        return rows

    return edit


def check(reader: Catalog, store: Path, here: str, *, whole: bool) -> None:
    """The reader is up to date, by reading everything or only the difference."""
    fresh = Catalog(store, backbone_fingerprint=here)
    assert reader.snapshot() == fresh.snapshot()
    assert (reader.snapshot().since is None) is whole
    fresh.close()


def test_each_change_names_its_task_and_what_was_registered(catalog: Catalog, add: Add, edit: Edit) -> None:
    first = add("t", b"v1")
    add("t", b"v2")
    catalog.rollback(ME, "t")
    catalog.set_pinned(ME, "t", first.digest, True)
    write_down(catalog, "TRUNCATED")
    catalog.delete_task(ME, "t")
    rows = edit("SELECT revision, kind, tenant, name FROM changes WHERE kind = 'task' ORDER BY revision")
    assert rows == [(revision, "task", ME, "t") for revision in range(1, 6)]
    assert edit("SELECT revision, tenant, name FROM changes WHERE kind = 'version'")[0] == (1, ME, first.digest)


def test_a_reader_needs_no_audit(
    catalog: Catalog, reader: Catalog, add: Add, store: Path, here: str, edit: Edit
) -> None:
    add("t", b"v1")
    add("u", b"v1")
    reader.snapshot()
    add("t", b"v2")
    catalog.delete_task(ME, "u")
    edit("DELETE FROM audit")
    check(reader, store, here, whole=False)


def test_refusals_say_nothing_to_readers(
    catalog: Catalog,
    reader: Catalog,
    add: Add,
    edit: Edit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("t", b"v1")
    before, logged = reader.snapshot(), edit("SELECT * FROM changes")
    for _ in range(6):
        write_down(catalog, "TRUNCATED")
    assert edit("SELECT * FROM changes") == logged
    assert reader.snapshot() is before


def test_what_changed_is_told_with_the_snapshot(catalog: Catalog, reader: Catalog, add: Add) -> None:
    for task in ("t", "u", "v"):
        add(task, b"v1")
    old = reader.snapshot()
    add("t", b"v2")
    catalog.delete_task(ME, "u")
    new = reader.snapshot()
    assert new.touched_since(old) == {(ME, "t"), (ME, "u")}
    assert new.gone_since(old) == {(ME, "u")}
    add("w", b"v1")
    newest = reader.snapshot()
    # One was left out: all may differ.
    assert newest.touched_since(old) == {(ME, name) for name in "tuvw"}
    assert newest.gone_since(old) == {(ME, "u")}


def test_the_log_does_not_grow_for_ever_and_who_is_too_far_behind_reads_everything(
    catalog: Catalog,
    reader: Catalog,
    add: Add,
    store: Path,
    here: str,
    edit: Edit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes, "MAX_LOGGED_REVISIONS", 4)
    reader.snapshot()
    for number in range(5):
        add(f"t{number}", b"v1")
    assert [row[0] for row in edit("SELECT DISTINCT revision FROM changes")] == [2, 3, 4, 5]
    check(reader, store, here, whole=True)
    for number in range(3, 7):
        add(f"t{number}", b"v2")
    check(reader, store, here, whole=False)


@pytest.mark.parametrize("lost", ["revision = 2", "revision > 2", "revision < 5", "TRUE"])
def test_a_log_with_a_hole_is_not_believed(
    catalog: Catalog,
    reader: Catalog,
    add: Add,
    store: Path,
    here: str,
    edit: Edit,
    lost: str,
) -> None:
    add("t", b"v1")
    reader.snapshot()
    add("u", b"v1")
    add("t", b"v2")
    catalog.delete_task(ME, "u")
    add("v", b"v1")
    edit(f"DELETE FROM changes WHERE {lost}")
    check(reader, store, here, whole=True)
    add("w", b"v1")
    check(reader, store, here, whole=False)


def test_a_reader_that_saw_a_recovery_reads_everything(
    catalog: Catalog, reader: Catalog, add: Add, store: Path, here: str, edit: Edit
) -> None:
    add("t", b"v1")
    reader.snapshot()
    add("t", b"v2")
    recover(store)
    assert edit("SELECT * FROM changes") == []
    check(reader, store, here, whole=True)


def test_a_catalog_that_was_put_back_is_read_as_a_whole(
    catalog: Catalog, reader: Catalog, add: Add, store: Path, here: str, edit: Edit
) -> None:
    add("t", b"v1")
    add("t", b"v2")
    reader.snapshot()
    edit("UPDATE catalog_state SET revision = 1")
    assert (reader.snapshot().revision, reader.snapshot().since) == (1, None)
    # Nobody begins with it.
    with pytest.raises(FailedPrecondition) as caught:
        Catalog(store, backbone_fingerprint=here)
    assert caught.value.reason == "CATALOG_OLDER"


def test_bytes_stay_if_it_is_not_known_who_registered_them(catalog: Catalog, add: Add, edit: Edit) -> None:
    digest = add("t", b"v1").digest
    catalog.delete_task(ME, "t")
    decided = catalog.revision()
    add("u", b"v2")
    add("v", b"v2")
    edit(f"DELETE FROM changes WHERE revision = {decided + 1}")
    assert not catalog.purge(digest, unless_registered_since=decided)
    assert catalog.blobs.exists(digest)
    assert catalog.purge(digest, unless_registered_since=catalog.revision())
