"""From one schema to the next: complete or not at all, the same as a new store, with the old file kept."""

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from adamix.errors import DataLoss, FailedPrecondition, StoreFull
from adamix_server.access.quotas import NO_QUOTAS
from adamix_server.catalog import exchange, schema, upgrade
from adamix_server.catalog.database import Database
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog

STORES = Path(__file__).with_name("old_stores")
ME = "default"


@pytest.fixture(params=[1, 2, 3, 4])
def old_schema(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old_store(store: Path, old_schema: int) -> Path:
    shutil.copytree(STORES / f"schema_{old_schema}", store)
    return store


def content_of(file: Path) -> dict[str, Any]:
    """Everything in a catalog: its numbers, its tables as SQLite was told them, and their rows."""
    with sqlite3.connect(file) as connection:
        numbers = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")]
        told = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(tables)}
    connection.close()
    return {"numbers": numbers, "schema": {name: normal(sql) for name, sql in told.items()}, "rows": rows}


def normal(sql: str | None) -> str | None:
    return None if sql is None else re.sub(r"\s+", " ", sql).replace("( ", "(").replace(" )", ")").strip()


def kept(store: Path) -> list[str]:
    """What lies beside the catalog and was not there with the old one."""
    return sorted(
        path.name for path in store.glob("catalog.db?*") if path.name not in ("catalog.db-wal", "catalog.db-shm")
    )


def test_it_becomes_what_a_new_one_is(old_store: Path, tmp_path: Path) -> None:
    recover(old_store)
    recover(tmp_path / "new")
    found, new = content_of(old_store / CATALOG_FILE), content_of(tmp_path / "new" / CATALOG_FILE)
    assert found["numbers"] == new["numbers"] == [schema.SCHEMA_VERSION, schema.APPLICATION_ID]
    assert found["schema"] == new["schema"]


def test_all_steps_from_nothing_lead_to_what_a_new_one_is(tmp_path: Path) -> None:
    recover(tmp_path / "new")
    path = tmp_path / "steps.db"
    sqlite3.connect(path).close()

    def from_nothing(database: Database, on_new: object) -> None:
        with database.alter() as connection:
            upgrade.migrate(connection, schema.SCHEMA_VERSION)
            connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION_ID}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "_create", from_nothing)
        Database(path).close()
    found, new = content_of(path), content_of(tmp_path / "new" / CATALOG_FILE)
    # Each store has an id of its own, and a first tenant of its own.
    ids = {content["rows"].pop("identity")[0][1] for content in (found, new)}
    assert len(ids) == 2
    for content in (found, new):
        ((tenant, etag, created_us, updated_us, *shares),) = content["rows"].pop("tenants")
        assert (tenant, len(etag), created_us == updated_us, shares) == (ME, 16, True, [1, "interactive", "{}"])
    assert found == new


def test_every_tenant_is_there_as_anybody_and_so_is_the_first_one(old_store: Path, old_schema: int, here: str) -> None:
    with sqlite3.connect(old_store / CATALOG_FILE) as connection:
        known = dict(connection.execute("SELECT tenant, create_time_us FROM tenants"))
    connection.close()
    assert known.keys() == {ME, "other"}
    recover(old_store)
    catalog = Catalog(old_store, backbone_fingerprint=here)
    snapshot = catalog.snapshot()
    catalog.close()
    rows = snapshot.access.tenants
    assert {name: row.create_time_us for name, row in rows.items()} == known
    assert {(row.weight, row.service_class, row.quotas) for row in rows.values()} == {(1, "interactive", NO_QUOTAS)}
    assert len({row.etag for row in rows.values()}) == 2
    assert (len(snapshot.access.keys), len(snapshot.access.grants)) == (0, 0)


def test_one_that_had_no_task_yet_gets_its_first_tenant(store: Path, here: str) -> None:
    shutil.copytree(STORES / "schema_4", store)
    with sqlite3.connect(store / CATALOG_FILE) as connection:
        for table in ("versions", "traffic", "pins", "tasks", "requests", "tenants"):
            connection.execute(f"DELETE FROM {table}")
    connection.close()
    recover(store)
    catalog = Catalog(store, backbone_fingerprint=here)
    assert list(catalog.snapshot().access.tenants) == [ME]
    catalog.close()


def test_the_old_file_is_kept_as_it_was(old_store: Path, old_schema: int) -> None:
    before = content_of(old_store / CATALOG_FILE)
    recover(old_store)
    assert kept(old_store) == [f"catalog.db.v{old_schema}"]
    assert content_of(old_store / f"catalog.db.v{old_schema}") == before
    recover(old_store)
    assert kept(old_store) == [f"catalog.db.v{old_schema}"]


def test_what_only_the_log_of_the_old_file_holds_is_kept_too(old_store: Path, old_schema: int) -> None:
    with sqlite3.connect(old_store / CATALOG_FILE) as holding:
        holding.execute("PRAGMA journal_mode = WAL")
        holding.execute("PRAGMA wal_autocheckpoint = 0")
        holding.execute("UPDATE catalog_state SET revision = 999")
        holding.commit()
        assert (old_store / "catalog.db-wal").stat().st_size > 0
        recover(old_store)
    holding.close()
    assert content_of(old_store / f"catalog.db.v{old_schema}")["rows"]["catalog_state"] == [(1, 999)]


def test_a_kept_file_is_never_overwritten(old_store: Path, old_schema: int) -> None:
    other = old_store / f"catalog.db.v{old_schema}"
    other.write_bytes(b"of another day")
    before = content_of(old_store / CATALOG_FILE)
    recover(old_store)
    assert other.read_bytes() == b"of another day"
    assert kept(old_store) == [other.name, f"{other.name}.1"]
    assert content_of(old_store / f"{other.name}.1") == before


def test_only_who_recovers_the_store_migrates_it(old_store: Path, here: str) -> None:
    before = (old_store / CATALOG_FILE).read_bytes()
    with pytest.raises(FailedPrecondition, match=r"written by an older adamix .* start `adamix serve` on it") as caught:
        Catalog(old_store, backbone_fingerprint=here)
    assert caught.value.reason == "STORE_SCHEMA"
    assert "\n" not in caught.value.message
    assert content_of(old_store / CATALOG_FILE)["numbers"][0] < schema.SCHEMA_VERSION
    assert kept(old_store) == []
    assert before[:18] == (old_store / CATALOG_FILE).read_bytes()[:18]


def test_the_other_way_is_refused(old_store: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recover(old_store)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION - 1)
    for open_it in (recover, lambda store: Catalog(store, backbone_fingerprint=here)):
        with pytest.raises(FailedPrecondition, match="newer adamix") as caught:
            open_it(old_store)
        assert caught.value.reason == "STORE_SCHEMA"


def test_a_damaged_one_is_not_migrated(old_store: Path) -> None:
    file = old_store / CATALOG_FILE
    data = bytearray(file.read_bytes())
    for page in range(4096 * 4, len(data), 4096):
        data[page : page + 200] = b"\xff" * 200
    file.write_bytes(data)
    with pytest.raises(DataLoss) as caught:
        recover(old_store)
    assert caught.value.reason == "CATALOG_CORRUPT"
    assert kept(old_store) == []


@pytest.fixture
def limit_of_pages() -> Iterator[Callable[[int], None]]:
    """Lets no database of this process have more pages than that; SQLite says "full" itself."""
    listeners: list[Callable[..., None]] = []

    def limit(pages: int) -> None:
        def begin(connection: Any) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        event.listen(Engine, "begin", begin)
        listeners.append(begin)

    yield limit
    for begin in listeners:
        event.remove(Engine, "begin", begin)


def test_no_room_for_the_change_leaves_the_old_one(
    old_store: Path, here: str, limit_of_pages: Callable[[int], None]
) -> None:
    before = content_of(old_store / CATALOG_FILE)
    limit_of_pages(1)  # SQLite takes that for "no more than there are now"
    with pytest.raises(StoreFull, match="disk is full"):
        recover(old_store)
    assert content_of(old_store / CATALOG_FILE) == before


def test_no_room_for_the_copy_leaves_the_old_one(old_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_of(old_store / CATALOG_FILE)
    connect = sqlite3.connect

    def connect_to_little(path: Path | str, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(path, **options)
        if isinstance(path, Path) and path.parent.name == "catalog.db.copying":
            connection.execute("PRAGMA max_page_count = 2")
        return connection

    monkeypatch.setattr(exchange.sqlite3, "connect", connect_to_little)
    with pytest.raises(StoreFull, match="disk is full"):
        recover(old_store)
    monkeypatch.undo()
    assert content_of(old_store / CATALOG_FILE) == before
    assert kept(old_store) == []
    recover(old_store)
    assert len(kept(old_store)) == 1


def test_altering_a_table_keeps_what_refers_to_it(old_store: Path) -> None:
    """SQLite alters by copying and dropping: with foreign keys in force that would end every version and pin."""
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Column, Text

    recover(old_store)
    before = content_of(old_store / CATALOG_FILE)["rows"]
    database = Database(old_store / CATALOG_FILE)
    with database.alter() as connection:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table(
            "tasks", recreate="always", table_kwargs={"sqlite_autoincrement": True}
        ) as tasks:
            tasks.add_column(Column("note", Text))
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    database.close()
    after = content_of(old_store / CATALOG_FILE)["rows"]
    assert after.pop("tasks") == [(*row, None) for row in before.pop("tasks")]
    # SQLite's own book of the last row ids may be in another order.
    assert sorted(after.pop("sqlite_sequence")) == sorted(before.pop("sqlite_sequence"))
    assert after == before


def test_a_change_that_leaves_something_dangling_is_undone(old_store: Path) -> None:
    recover(old_store)
    before = content_of(old_store / CATALOG_FILE)
    database = Database(old_store / CATALOG_FILE)
    with pytest.raises(DataLoss), database.alter() as connection:
        connection.exec_driver_sql("DELETE FROM tasks")
    database.close()
    assert content_of(old_store / CATALOG_FILE) == before


@pytest.mark.parametrize("old_schema", [1], indirect=True)
def test_a_kill_at_any_step_leaves_the_old_one_or_the_new_one(old_store: Path, old_schema: int) -> None:
    """The child dies before its n-th step: of SQLite, of a rename, of a sync."""
    old, file = content_of(old_store / CATALOG_FILE), old_store / CATALOG_FILE
    untouched = old_store.parent / "untouched"
    shutil.copytree(old_store, untouched)
    program = str(Path(__file__).with_name("upgrading_process.py"))
    with subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        died_old = died_new = 0
        for step in range(1, 1000):
            shutil.rmtree(old_store)
            shutil.copytree(untouched, old_store)
            child.stdin.write(f"{step} {old_store}\n")
            child.stdin.flush()
            killed = child.stdout.readline().strip() == "killed"
            version = content_of(file)["numbers"][0]
            assert version in (old_schema, schema.SCHEMA_VERSION)
            if version == old_schema:
                assert content_of(file) == old
                died_old += 1
            else:
                # Nothing changes before the old file is kept.
                assert content_of(old_store / f"catalog.db.v{old_schema}") == old
                died_new += killed
            recover(old_store)
            assert content_of(file)["numbers"][0] == schema.SCHEMA_VERSION
            assert kept(old_store) == [f"catalog.db.v{old_schema}"]
            assert content_of(old_store / f"catalog.db.v{old_schema}") == old
            if not killed:
                break
        child.stdin.close()
    assert died_old > 10
    assert died_new > 0


def test_nothing_of_alembic_is_loaded_where_there_is_nothing_to_do(store: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from adamix_server.catalog.recovery import recover\n"
        "for _ in range(2): recover(pathlib.Path(sys.argv[1]))\n"
        "print([name for name in sys.modules if name.startswith(('alembic', 'mako'))])"
    )
    result = subprocess.run([sys.executable, "-c", program, str(store)], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_the_log_says_what_was_done_and_alembic_says_nothing(
    old_store: Path, old_schema: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recover(old_store)
    (record,) = caplog.records
    told = {name: getattr(record, name) for name in ("from_schema", "to_schema", "kept")}
    assert told == {"from_schema": old_schema, "to_schema": schema.SCHEMA_VERSION, "kept": f"catalog.db.v{old_schema}"}
