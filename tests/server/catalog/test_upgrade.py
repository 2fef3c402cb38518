"""Stores that an older adamix wrote: they open, they keep what they hold, and they can do what is new."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.errors import FailedPrecondition
from adamix_server.catalog import schema
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog

# Schema 1, as SQLite was told it. Not made from today's tables: those stores do not change with them.
SCHEMA_1 = """
CREATE TABLE catalog_state (id INTEGER NOT NULL CHECK (id = 1), revision BIGINT NOT NULL, PRIMARY KEY (id));
CREATE TABLE tenants (tenant VARCHAR(63) NOT NULL, create_time_us BIGINT NOT NULL, PRIMARY KEY (tenant));
CREATE TABLE audit (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, time_us BIGINT NOT NULL, revision BIGINT NOT NULL,
    tenant VARCHAR(63) NOT NULL, task VARCHAR(63) NOT NULL, action VARCHAR(16) NOT NULL, digest VARCHAR(64),
    detail TEXT NOT NULL
);
CREATE INDEX ix_audit_revision ON audit (revision);
CREATE INDEX audit_of_tenant ON audit (tenant, action, id);
CREATE TABLE tasks (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, tenant VARCHAR(63) NOT NULL, task VARCHAR(63) NOT NULL,
    etag VARCHAR(16) NOT NULL, create_time_us BIGINT NOT NULL, update_time_us BIGINT NOT NULL,
    UNIQUE (tenant, task), FOREIGN KEY(tenant) REFERENCES tenants (tenant)
);
CREATE TABLE versions (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, task_id INTEGER, digest VARCHAR(64) NOT NULL,
    state VARCHAR(10) NOT NULL, create_time_us BIGINT NOT NULL, num_bytes BIGINT NOT NULL,
    backbone_fingerprint VARCHAR(64) NOT NULL, manifest_json TEXT NOT NULL,
    CHECK (state = 'RETIRED' OR (state = 'READY' AND task_id IS NOT NULL)),
    FOREIGN KEY(task_id) REFERENCES tasks (id) ON DELETE SET NULL
);
CREATE INDEX retired_versions ON versions (digest) WHERE state = 'RETIRED';
CREATE INDEX versions_of_task ON versions (task_id);
CREATE UNIQUE INDEX one_ready_version ON versions (task_id, digest) WHERE state = 'READY';
CREATE INDEX versions_of_blob ON versions (digest);
CREATE TABLE traffic (
    task_id INTEGER NOT NULL, backbone_fingerprint VARCHAR(64) NOT NULL, current TEXT NOT NULL, earlier TEXT NOT NULL,
    PRIMARY KEY (task_id, backbone_fingerprint), FOREIGN KEY(task_id) REFERENCES tasks (id) ON DELETE CASCADE
);
PRAGMA application_id = 1094995288;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""

ME = "default"
DATA = b"v1"
DIGEST = hashlib.sha256(DATA).hexdigest()


def schema_of(store: Path) -> tuple[int, set[str]]:
    """(version, every table and index) of a store's catalog."""
    connection = sqlite3.connect(store / "catalog.db")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    return version, names


@pytest.fixture
def old_store(store: Path, here: str, manifest_json: Callable[[str], str]) -> Path:
    """A store of schema 1 with one task, one version, and its bytes."""
    store.mkdir()
    connection = sqlite3.connect(store / "catalog.db")
    connection.executescript(SCHEMA_1)
    with connection:
        connection.execute("INSERT INTO catalog_state VALUES (1, 7)")
        connection.execute("INSERT INTO tenants VALUES (?, 1)", [ME])
        connection.execute("INSERT INTO tasks VALUES (1, ?, 't', 'abcdef', 2, 3)", [ME])
        connection.execute(
            "INSERT INTO versions VALUES (1, 1, ?, 'READY', 4, 2, ?, ?)", [DIGEST, here, manifest_json(here)]
        )
        connection.execute("INSERT INTO traffic VALUES (1, ?, ?, '[]')", [here, f'[["{DIGEST}",1]]'])
        connection.execute("INSERT INTO audit VALUES (1, 4, 7, ?, 't', 'register', ?, 'live')", [ME, DIGEST])
    connection.close()
    blob = store / "blobs" / "sha256" / DIGEST[:2] / DIGEST
    blob.parent.mkdir(parents=True)
    blob.write_bytes(DATA)
    return store


def test_it_serves_what_it_held_and_learns_what_is_new(
    old_store: Path, here: str, manifest_json: Callable[[str], str]
) -> None:
    assert recover(old_store).missing == ()
    catalog = Catalog(old_store, backbone_fingerprint=here)
    task = catalog.snapshot().task(ME, "t")
    assert ([version.digest for version in task.live], task.etag, catalog.revision()) == ([DIGEST], "abcdef", 7)
    assert catalog.blobs.get(DIGEST) == DATA
    for _ in range(2):
        assert catalog.register(ME, "t", DIGEST, manifest_json(here), 2, here, True, "once") == (task.live[0], True)
    assert catalog.is_answered(ME, "t", DIGEST, True, "once")
    catalog.close()


def test_it_becomes_what_a_new_one_is(old_store: Path, here: str, tmp_path: Path) -> None:
    Catalog(old_store, backbone_fingerprint=here).close()
    Catalog(tmp_path / "new", backbone_fingerprint=here).close()
    assert schema_of(old_store) == schema_of(tmp_path / "new")
    assert schema_of(old_store)[0] == schema.SCHEMA_VERSION


def test_cut_short_it_is_still_what_it_was(old_store: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema_of(old_store)
    create_all = schema.metadata.create_all

    def create_and_die(*args: object) -> None:
        create_all(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(schema.metadata, "create_all", create_and_die)
    with pytest.raises(KeyboardInterrupt):
        Catalog(old_store, backbone_fingerprint=here)
    assert schema_of(old_store) == before
    monkeypatch.undo()
    Catalog(old_store, backbone_fingerprint=here).close()
    assert schema_of(old_store)[0] == schema.SCHEMA_VERSION


def test_the_other_way_is_refused(old_store: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Catalog(old_store, backbone_fingerprint=here).close()
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 1)
    with pytest.raises(FailedPrecondition, match="newer adamix") as caught:
        Catalog(old_store, backbone_fingerprint=here)
    assert caught.value.reason == "STORE_SCHEMA"
