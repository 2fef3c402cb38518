"""The one writer of entries and sums: it writes all it is told once, waits for a catalog, and makes nobody wait."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from adamix.errors import InvalidRequest, NotFound, Unavailable
from adamix_server.access import api_keys
from adamix_server.access.entries import Entry
from adamix_server.access.sums import Sums
from adamix_server.catalog import audit, usage
from adamix_server.catalog.audit import AuditLog
from adamix_server.catalog.database import Database
from adamix_server.catalog.keys import note_used
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.usage import UsageLog
from adamix_server.channel.supervisor_frames import Account
from adamix_server.limits.audit import MAX_UNWRITTEN_ENTRIES
from adamix_server.supervisor import journal as journals
from adamix_server.supervisor.journal import Journal

DAY_US = 86_400_000_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    recover(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def database(store: Path) -> Iterator[Database]:
    database = Database(store / "catalog.db", make=False)
    yield database
    database.close()


@pytest.fixture
def log(database: Database) -> AuditLog:
    return AuditLog(database)


@pytest.fixture
def now_us() -> list[int]:
    return [100 * DAY_US]


@pytest.fixture
def journal(store: Path, now_us: list[int]) -> Iterator[Journal]:
    journal = Journal(store, 90, clock_us=lambda: now_us[0])
    yield journal
    journal.close()


def told(number: int = 0, *, usage: list[Sums] | None = None, since_us: int = 100 * DAY_US) -> Account:
    return Account(
        entries=[Entry.of(since_us + i, resource=f"r{i}") for i in range(number)], usage=usage or [], keys={}
    )


def test_what_is_told_is_written_once(journal: Journal, log: AuditLog, database: Database) -> None:
    used = Sums(tenant="default", calls=1, input_tokens=7, rejected={"QUEUE_FULL": 2})
    journal.take(told(2, usage=[used]))
    journal.take(told(1, usage=[used, Sums(tenant="nobody", calls=9)]))
    journal.write()
    journal.write()
    assert [row.resource for row in log.page(None, after_id=0).rows] == ["r1", "r0", "r0"]
    row = UsageLog(database).read("default")
    assert (row.calls, row.input_tokens, row.generated_tokens, row.rejected) == (2, 14, 0, {"QUEUE_FULL": 4})
    journal.take(told(usage=[used]))
    journal.write()
    assert UsageLog(database).read("default").input_tokens == 21


def test_a_key_is_noted_with_the_last_day(journal: Journal, store: Path) -> None:
    catalog = Catalog(store, backbone_fingerprint="a" * 64)
    _, key = api_keys.make()
    catalog.keys.create("default", key, rights=["infer"])
    noted = []
    for day in ("2026-11-29", "2026-11-29", "2026-11-30", "2026-11-28"):
        journal.take(Account(entries=[], usage=[], keys={key.id: day, "gone": day}))
        journal.write()
        noted.append(catalog.keys.last_used([key.id, "gone"]))
    assert noted == [{key.id: day} for day in ("2026-11-29", "2026-11-29", "2026-11-30", "2026-11-30")]
    catalog.close()


def test_nobody_uses_for_a_tenant_that_is_not_there(database: Database) -> None:
    usage = UsageLog(database)
    usage.add([Sums(tenant="nobody", calls=3, rejected={"X": 1})])
    with pytest.raises(NotFound, match="tenant not found"):
        usage.read("nobody")
    with pytest.raises(InvalidRequest):
        usage.read("../x")


def test_a_thread_writes_and_the_last_words_too(
    journal: Journal, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "WRITE_S", 0.01)
    journal.start()
    journal.take(told(1))
    until = time.monotonic() + 10
    while not log.page(None).rows and time.monotonic() < until:
        time.sleep(0.01)
    assert len(log.page(None).rows) == 1
    monkeypatch.setattr(journals, "WRITE_S", 60)
    journal.take(told(2))
    journal.close()
    assert len(log.page(None).rows) == 3


def test_what_cannot_be_written_waits_for_the_catalog(
    journal: Journal, log: AuditLog, store: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    journal.take(told(1))
    journal.write()
    (store / "catalog.db").rename(store / "elsewhere")
    journal.take(told(2, usage=[Sums(tenant="default", calls=3)]))
    journal.write()
    journal.take(told(1, usage=[Sums(tenant="default", calls=4)]))
    journal.write()
    assert [record.message for record in caplog.records if "waits for the catalog" in record.message] != []
    assert len([record for record in caplog.records if "waits for the catalog" in record.message]) == 1
    (store / "elsewhere").rename(store / "catalog.db")
    journal.write()
    assert len(log.page(None).rows) == 4
    assert UsageLog(database).read("default").calls == 7


def test_so_many_entries_wait_for_the_catalog(
    journal: Journal, log: AuditLog, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "catalog.db").rename(store / "elsewhere")
    for _ in range(11):
        journal.take(told(1000))
    journal.write()
    journal.take(told(234))
    (store / "elsewhere").rename(store / "catalog.db")
    journal.write()
    verified = log.verify()
    assert (verified.fault, verified.entries) == (None, MAX_UNWRITTEN_ENTRIES + 1)
    (last,) = log.page(None, after_id=MAX_UNWRITTEN_ENTRIES).rows
    assert last.detail == "1,234 entries were left out: the catalog could not be written"


def test_a_bug_does_not_end_the_writer(
    journal: Journal, log: AuditLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append, failed = audit.append, threading.Event()

    def fail_once(*arguments: object) -> int:
        if not failed.is_set():
            failed.set()
            raise ValueError("a bug")
        return append(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(audit, "append", fail_once)
    monkeypatch.setattr(journals, "WRITE_S", 0.01)
    journal.take(told(1))
    journal.start()
    assert failed.wait(10)
    journal.take(told(2))
    journal.close()
    assert len(log.page(None).rows) == 2
    assert "some of the audit was not written" in caplog.text


def test_entries_go_when_they_are_too_old(
    journal: Journal, log: AuditLog, now_us: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "REMOVED_AT_ONCE", 4)
    journal.take(told(10))
    journal.take(told(1, since_us=150 * DAY_US))
    journal.write()
    assert log.verify().entries == 11
    now_us[0] = 191 * DAY_US
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    seen = []
    for _ in range(4):
        journal.write()
        seen.append(log.verify().entries)
    assert seen == [7, 3, 1, 1]
    assert log.verify().fault is None


def test_what_is_written_is_not_written_again_because_what_is_too_old_cannot_be_removed(
    journal: Journal, log: AuditLog, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> int:
        raise Unavailable("the catalog is busy", reason="STORE_BUSY")

    journal.take(told(2, usage=[Sums(tenant="default", calls=3)]))
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "expire", fail)
        journal.write()
    journal.write()
    assert log.verify().entries == 2
    assert UsageLog(database).read("default").calls == 3


def test_thousands_of_tenants_and_keys_are_written_in_a_few_statements(database: Database) -> None:
    executed: list[str] = []
    sums = [Sums(tenant=f"t{number}", calls=1, rejected={"A": 1, "B": 2}) for number in range(2_000)]
    with database.write() as connection:
        event.listen(connection, "before_cursor_execute", lambda *given: executed.append(given[2]))
        usage.add(connection, sums)
        note_used(connection, {f"{number:012}": "2026-11-30" for number in range(2_000)})
    assert len(executed) == 3


def test_nobody_waits_while_the_catalog_is_locked(journal: Journal, store: Path, log: AuditLog) -> None:
    holding = sqlite3.connect(store / "catalog.db", isolation_level=None)
    holding.execute("BEGIN IMMEDIATE")
    writing = threading.Thread(target=journal.write)
    journal.take(told(1))
    writing.start()
    began = time.monotonic()
    for _ in range(100):
        journal.take(told(1))
    assert time.monotonic() - began < 2
    holding.execute("ROLLBACK")
    holding.close()
    writing.join()
    journal.write()
    assert log.verify().entries == 101
