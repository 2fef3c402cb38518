"""`adamix audit` as a person types it, on a store that a server may use."""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from typer.testing import CliRunner

from adamix.errors import InvalidConfig
from adamix_protos.v1 import admin_pb2
from adamix_server.access.entries import Entry
from adamix_server.catalog.audit import AuditLog, EntryRow
from adamix_server.catalog.database import Database
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.recovery import recover
from adamix_server.cli import audit as commands
from adamix_server.cli import main

HOUR_US = 3_600_000_000


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main.app, ["audit", *map(str, arguments)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def store(tmp_path: Path) -> Path:
    recover(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def log(store: Path) -> Iterator[AuditLog]:
    database = Database(store / CATALOG_FILE, make=False)
    log = AuditLog(database)
    now_us = time.time_ns() // 1_000
    log.append(
        [
            Entry.of(now_us - 3 * HOUR_US, tenant="acme", principal="keys/k1", method="s.Service/Old", resource="r"),
            Entry.of(
                now_us - HOUR_US // 2, tenant="acme", principal="keys/k1", method="s.Service/GetTask", resource="[r]"
            ),
            Entry.of(now_us, tenant="other", peer="ipv4:10.0.0.7:5", method="M", code="NOT_FOUND", reason="NOT_FOUND"),
        ]
    )
    yield log
    database.close()


def listed(*arguments: object) -> list[str]:
    return [entry["method"] for entry in json.loads(run(*arguments, "--json").stdout)["entries"]]


def test_entries_are_listed_the_newest_last(log: AuditLog, store: Path) -> None:
    assert listed("--store", store) == ["s.Service/Old", "s.Service/GetTask", "M"]
    assert listed("--store", store, "--tenant", "acme") == ["s.Service/Old", "s.Service/GetTask"]
    assert listed("--store", store, "--since", "1h") == ["s.Service/GetTask", "M"]
    assert listed("--store", store, "--limit", 1) == ["M"]
    table = run("--store", store).stdout
    for told in ("GetTask", "[r]", "keys/k1", "ipv4:10.0.0.7:5", "NOT_FOUND NOT_FOUND"):
        assert told in table


def test_more_than_a_page_is_listed(log: AuditLog, store: Path) -> None:
    log.append(Entry.of(10**15 + i, method=str(i)) for i in range(2500))
    assert len(listed("--store", store, "--limit", 10_000)) == 2503


def test_verify_says_whether_it_is_as_it_was_written(log: AuditLog, store: Path) -> None:
    whole = run("--store", store, "--verify").stdout
    assert whole.startswith("3 entries: the chain is whole, up to 3:")
    known = whole.split()[-1]
    assert json.loads(run("--store", store, "--verify", "--known", known, "--json").stdout)["ok"] is True
    run("--store", store, "--verify", "--known", f"3:{'0' * 64}", code=1)
    with sqlite3.connect(store / CATALOG_FILE) as connection:
        connection.execute("UPDATE audit SET principal = 'keys/other' WHERE id = 2")
    connection.close()
    broken = run("--store", store, "--verify", "--json", code=1)
    assert json.loads(broken.stdout)["fault"] == {"id": 2, "how": "changed"}
    assert "entry 2 was changed" in run("--store", store, "--verify", code=1).stderr


def test_the_store_is_left_as_it_is(store: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    run("--store", store)
    run("--store", store, "--verify")
    # SQLite may have put an empty log beside it.
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in store.iterdir()}.items()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--since", "yesterday"),
        ("--since", "-1h"),
        ("--verify", "--known", "7"),
        ("--limit", "0"),
    ],
)
def test_wrong_usage_is_said(store: Path, wrong: tuple[str, ...]) -> None:
    assert run("--store", store, *wrong, code=2).stdout == ""


def test_no_store_is_said(tmp_path: Path) -> None:
    assert "there is no store" in run("--store", tmp_path / "none", code=1).stderr


def test_a_time_is_an_age_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 100 * HOUR_US * 1_000)
    assert commands.read_since("") == 0
    assert commands.read_since("90m") == 100 * HOUR_US - 90 * 60_000_000
    assert commands.read_since("7d") == 0
    assert commands.read_since("1970-01-02T00:00:00+00:00") == 24 * HOUR_US
    with pytest.raises(InvalidConfig):
        commands.read_since("999999-01-01")


@pytest.mark.parametrize("time_us", [1_796_000_084_000_000, 1_796_000_084_120_000, 1_796_000_084_000_007])
def test_an_entry_is_written_as_its_message_is(time_us: int) -> None:
    texts = {name: f"{name}é" for name in ("principal", "peer", "method", "resource", "digest", "code", "reason")}
    row = EntryRow(id=7, time_us=time_us, tenant="acme", detail="", action="", revision=3, hash="f" * 64, **texts)
    message = admin_pb2.AuditEntry(id=7, hash=row.hash, tenant="acme", revision=3, **texts)
    message.time.FromMicroseconds(time_us)
    expected = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert commands.to_json(row) == expected
