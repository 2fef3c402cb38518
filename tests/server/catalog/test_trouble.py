"""Full disks, locks, threads, processes: what is said, and that nothing is lost."""

import hashlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from adamix.errors import Aborted, StoreFull, Unavailable
from adamix_server import retry
from adamix_server.access import api_keys
from adamix_server.access.quotas import Quotas
from adamix_server.catalog import changes, database
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import registration, write_down

Add = Callable[..., VersionRow]

ME = "default"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class TestTrouble:
    def test_an_error_in_the_middle_undoes_all_of_it(
        self, catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add("t", b"v1")
        before = catalog.get_task(ME, "t"), catalog.revision(), catalog.audit_log.page(ME).rows, catalog.snapshot()

        def fail(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(changes, "record", fail)
        for change in (lambda: add("t", b"v2"), lambda: add("new", b"v3"), lambda: catalog.delete_task(ME, "t")):
            with pytest.raises(KeyboardInterrupt):
                change()
        after = catalog.get_task(ME, "t"), catalog.revision(), catalog.audit_log.page(ME).rows, catalog.snapshot()
        assert after == before
        assert catalog.list_tasks(ME).rows == before[:1]

    def test_a_full_disk_is_said_and_changes_nothing(self, catalog: Catalog, add: Add, store: Path, here: str) -> None:
        add("t", b"v1")

        def shrink(connection: sqlite3.Connection, _: object) -> None:
            connection.execute("PRAGMA max_page_count = 1")

        event.listen(Engine, "connect", shrink)
        try:
            full = Catalog(store, backbone_fingerprint=here)
            full.revision()
        finally:
            event.remove(Engine, "connect", shrink)

        def fill() -> None:
            for _ in range(1000):
                write_down(full, "x" * 500)

        with pytest.raises(StoreFull):
            fill()
        assert full.get_task(ME, "t") == catalog.get_task(ME, "t")
        full.close()

    def test_a_locked_catalog_asks_to_try_again(self, store: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database, "_BUSY_TIMEOUT_MS", 10)
        catalog = Catalog(store, backbone_fingerprint=here)
        other = sqlite3.connect(store / "catalog.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            write_down(catalog, "x")
        assert (caught.value.reason, caught.value.retry_after_s) == ("CATALOG_BUSY", retry.MIN_S)
        assert catalog.list_tasks(ME).rows == (), "readers are not held up"
        other.execute("ROLLBACK")
        write_down(catalog, "x")
        other.close()
        catalog.close()

    def test_no_call_but_the_first_snapshot_reads_a_whole_table(
        self, catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
    ) -> None:
        """With 20,000 tasks a scan inside a write transaction would hold up every other writer."""
        add("t", b"v1")
        catalog.snapshot()
        statements: dict[str, object] = {}

        def collect(_c: object, _d: object, statement: str, parameters: object, *_: object) -> None:
            statements[statement] = parameters

        event.listen(Engine, "before_cursor_execute", collect)
        try:
            add("t", b"v2")
            catalog.snapshot()
            catalog.list_tasks(ME, 1)
            catalog.set_traffic(ME, "t", [(digest_of(b"v1"), 1)])
            catalog.rollback(ME, "t")
            catalog.delete_version(ME, "t", digest_of(b"v1"))
            write_down(catalog, "x")
            add("t", b"v3", request_id="once")
            add("t", b"v3", request_id="once")
            catalog.is_answered(registration(ME, "t", digest_of(b"v3"), manifest_json(here), 2, here, True, "once"))
            catalog.tenants.create("acme", quotas=Quotas(max_tasks=9, max_versions_per_task=9, max_stored_bytes=99))
            catalog.tenants.update("acme", weight=2)
            add("t", b"v1", tenant="acme")
            catalog.tenants.list(1)
            catalog.tenants.stored("acme")
            key = catalog.keys.create("acme", api_keys.make()[1], rights={"infer"})
            catalog.keys.create("acme", None, rights={"infer"}, certificate_name="CN=a")
            catalog.keys.note_used({key.id: "2026-11-30"})
            catalog.keys.list("acme", 1)
            catalog.keys.last_used([key.id])
            catalog.grants.add(ME, "t", "acme")
            catalog.grants.list("acme", 1)
            catalog.snapshot()
            catalog.keys.revoke(key.id, tenant="acme")
            catalog.grants.remove(ME, "t", "acme")
            catalog.tenants.delete("acme", force=True)
            catalog.snapshot()
            catalog.delete_task(ME, "t")
            catalog.purge(*catalog.retired()[:1])
        finally:
            event.remove(Engine, "before_cursor_execute", collect)
        plans = {
            statement: [row.detail for row in self.explain(catalog, statement, parameters)]
            for statement, parameters in statements.items()
            if statement.startswith(("SELECT", "UPDATE", "DELETE"))
        }
        assert len(plans) > 15
        for statement, plan in plans.items():
            for step in plan:
                # Some of a table, as another step has found it, is none.
                is_table = "catalog_state" not in step and step != "SCAN files"
                whole = step.startswith("SCAN") and "USING" not in step and is_table
                assert not whole, f"{step}: {statement}"

    def explain(self, catalog: Catalog, statement: str, parameters: Any) -> list[Any]:
        with catalog._database.read() as connection:
            return list(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))

    def test_it_is_durable_by_configuration(self, catalog: Catalog) -> None:
        with catalog._database.read() as connection:
            found = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]
        assert found == ["wal", 2, 1, 5000]


class TestAtOnce:
    def test_threads_lose_no_change(self, catalog: Catalog, add: Add) -> None:
        with ThreadPoolExecutor(8) as threads:
            versions = list(threads.map(lambda i: add(f"t{i % 4}", b"v%d" % i), range(40)))
        assert catalog.revision() == 40
        for i in range(4):
            task = catalog.get_task(ME, f"t{i}")
            assert set(task.versions) == {v.digest for v in versions[i::4]}

    def test_of_two_changes_of_one_etag_one_wins(self, catalog: Catalog, add: Add) -> None:
        versions = [add("t", b"v%d" % i, make_live=False) for i in range(8)]
        etag, start = catalog.get_task(ME, "t").etag, threading.Barrier(8)

        def change(version: VersionRow) -> bool:
            start.wait()
            try:
                catalog.set_traffic(ME, "t", [(version.digest, 1)], etag)
            except Aborted:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(change, versions)) == 1

    def test_registering_and_purging_the_same_bytes_never_loses_them(self, catalog: Catalog, add: Add) -> None:
        digest, stop = digest_of(b"v1"), threading.Event()

        def purge() -> None:
            while not stop.is_set():
                catalog.purge(digest)

        purger = threading.Thread(target=purge)
        purger.start()
        try:
            for _ in range(30):
                try:
                    add("t", b"v1")
                except Unavailable:  # purged between the put and the registration, and said so
                    continue
                assert catalog.blobs.get(digest) == b"v1"
                catalog.delete_task(ME, "t")
        finally:
            stop.set()
            purger.join()

    def test_another_process_may_write_too(self, catalog: Catalog, store: Path, add: Add) -> None:
        add("t", b"v1")
        program = (
            "import pathlib, sys\n"
            "from adamix_server.catalog.store import Catalog\n"
            "catalog = Catalog(pathlib.Path(sys.argv[1]), backbone_fingerprint='a' * 64)\n"
            "from adamix_server.access.entries import Entry\n"
            "for i in range(20): catalog.audit_log.append([Entry.of(i, tenant='default')])\n"
            "catalog.delete_task('default', 't')\n"
        )
        child = subprocess.Popen([sys.executable, "-I", "-c", program, str(store)])
        for i in range(20):
            add(f"u{i}", b"v1")
        assert child.wait(30) == 0
        assert len(catalog.audit_log.page(ME).rows) == 42
        assert catalog.audit_log.verify().fault is None
        assert len(catalog.snapshot().tasks) == 20


def test_the_catalog_loads_neither_torch_nor_grpc() -> None:
    program = (
        "import sys, adamix_server.catalog.recovery\n"
        "print([m for m in ('torch', 'grpc', 'transformers', 'google') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
