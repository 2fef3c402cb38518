"""The audit of a whole store: checked, backed up, restored, made anew, and carried over from older schemas."""

import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from adamix_server.catalog import backup
from adamix_server.catalog.audit import EntryRow
from adamix_server.catalog.audit_chain import Verified
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.rebuild import rebuild
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.verification import verify

STORES = Path(__file__).with_name("old_stores")


def audit_of(store: Path, here: str) -> tuple[Verified, tuple[EntryRow, ...]]:
    """What its chain is, and its entries, the newest first."""
    catalog = Catalog(store, backbone_fingerprint=here)
    try:
        return catalog.audit_log.verify(), catalog.audit_log.page(None).rows
    finally:
        catalog.close()


@pytest.fixture(params=[1, 2, 3, 4])
def schema(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old_store(store: Path, schema: int) -> Path:
    shutil.copytree(STORES / f"schema_{schema}", store)
    return store


def test_an_older_one_becomes_a_chain(old_store: Path, here: str) -> None:
    with sqlite3.connect(old_store / CATALOG_FILE) as connection:
        before = connection.execute("SELECT time_us, digest FROM audit ORDER BY id").fetchall()
    connection.close()
    began_us = time.time_ns() // 1_000
    recover(old_store)
    found, rows = audit_of(old_store, here)
    assert (found.fault, found.entries, found.first_id) == (None, len(before), 1)
    assert [(row.time_us, row.digest or None) for row in sorted(rows, key=lambda row: row.id)] == before
    catalog = Catalog(old_store, backbone_fingerprint=here)
    used = catalog.usage.read("default")
    assert began_us <= used.since_us <= time.time_ns() // 1_000
    assert (used.calls, used.tasks > 3, used.versions > 3, used.stored_bytes > 0) == (0, True, True, True)
    catalog.close()


@pytest.mark.parametrize("schema", [4], indirect=True)
class TestOneStore:
    @pytest.fixture
    def used(self, old_store: Path) -> Path:
        recover(old_store)
        return old_store

    def test_a_broken_chain_is_a_problem_of_the_store(self, used: Path) -> None:
        assert verify(used).problems == ()
        with sqlite3.connect(used / CATALOG_FILE) as connection:
            connection.execute("DELETE FROM audit WHERE id = 7")
        connection.close()
        (problem,) = verify(used).problems
        assert (problem.reason, problem.name) == ("AUDIT_BROKEN", "catalog.db: entries from 7 on were removed")

    def test_a_restored_one_goes_on_and_says_so(self, used: Path, here: str) -> None:
        to = used.with_name("backup")
        backup.backup(used, to)
        before, _ = audit_of(used, here)
        catalog = Catalog(used, backbone_fingerprint=here)
        catalog.delete_task("default", "reviews")
        catalog.close()
        restored = backup.restore(used, to)
        found, rows = audit_of(used, here)
        assert (found.fault, found.entries) == (None, before.entries + 1)
        assert (rows[0].method, rows[0].detail) == (
            "adamix store restore",
            f"from a backup of revision {restored.revision - 2}",
        )

    def test_one_that_is_made_anew_begins_with_a_word(self, used: Path, here: str) -> None:
        rebuilt = rebuild(used)
        found, rows = audit_of(used, here)
        assert (found.fault, found.entries) == (None, 1 + len(rebuilt.versions))
        assert rows[-1].method == "adamix store rebuild"

    def test_one_that_is_taken_as_it_is_says_so(self, used: Path, here: str) -> None:
        (used / CATALOG_FILE).unlink()
        recover(used, accept_catalog=True)
        found, rows = audit_of(used, here)
        assert found.fault is None
        assert [row.method for row in rows] == ["adamix serve --accept-catalog"]

    def test_what_is_deleted_is_told_by_names_whatever_is_in_the_audit(self, used: Path, here: str) -> None:
        """A backup forgets a version because its deletion is written down; it keeps one of which nothing is."""
        to = used.with_name("backup")
        backup.backup(used, to)
        catalog = Catalog(used, backbone_fingerprint=here)
        catalog.delete_task("default", "reviews")
        catalog.close()
        assert backup.backup(used, to).set_aside == ""
        assert list((to / "origins" / "default" / "reviews").glob("*")) == []
