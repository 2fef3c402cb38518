"""`adamix store` and `serve --accept-catalog` as a person types them: documents, tables, exit codes."""

import hashlib
import json
import logging
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.recovery import recover
from adamix_server.cli import main
from adamix_server.config import ServerConfig
from adamix_server.supervisor import supervisor
from adamix_server.telemetry import logs
from adamix_testing.own_logs import own_logs

STORES = Path(__file__).parent.parent / "catalog" / "old_stores"
WRITER = runpy.run_path(str(STORES / "write_store.py"))


def run(*arguments: object, code: int = 0) -> Any:
    """The result of `adamix store …` that ends with this code."""
    result = CliRunner().invoke(main.app, ["store", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def store(tmp_path: Path) -> Path:
    shutil.copytree(STORES / "schema_3", tmp_path / "store")
    recover(tmp_path / "store")
    return tmp_path / "store"


def test_a_lost_catalog_comes_back_either_way(store: Path, tmp_path: Path) -> None:
    to = tmp_path / "backup"
    made = json.loads(run("backup", "--store", store, "--to", to, "--json").stdout)
    assert (made["tasks"], made["versions"], made["copied"], made["missing"]) == (8, 11, 7, [])
    assert json.loads(run("verify", "--store", to, "--json").stdout)["ok"] is True
    (store / CATALOG_FILE).unlink()
    found = json.loads(run("verify", "--store", store, "--json", code=1).stdout)
    assert found["ok"] is False
    assert [problem["reason"] for problem in found["problems"]] == ["CATALOG_MISSING"]
    dry = json.loads(run("rebuild", "--store", store, "--dry-run", "--json").stdout)
    assert (len(dry["versions"]), dry["dry_run"]) == (11, True)
    assert not (store / CATALOG_FILE).exists()
    table = run("rebuild", "--store", store).stdout
    assert all(task in table for task in ("reviews", "topic-0", "waiting"))
    run("verify", "--store", store)
    restored = json.loads(run("restore", "--store", store, "--from", to, "--json").stdout)
    assert (restored["versions"], restored["copied"]) == (11, 0)
    assert (store / restored["set_aside"]).exists()
    assert run("verify", "--store", store).stdout == "8 tasks, 11 versions, 7 files, 10,428 bytes: all is well\n"


def test_what_is_wrong_is_said_with_what_to_do(store: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(WRITER["adapter"](0)).hexdigest()
    (store / "blobs" / "sha256" / digest[:2] / digest).unlink()
    (store / "origins" / "default" / "topic-2" / f"{digest}.json").unlink()
    found = json.loads(run("verify", "--store", store, "--json", code=1).stdout)
    reasons = [problem["reason"] for problem in found["problems"]]
    assert reasons == ["BLOB_MISSING"] * 4 + ["ORIGIN_MISSING"]
    assert all(problem["advice"] for problem in found["problems"])
    assert "register the same file" in run("verify", "--store", store, code=1).stdout
    result = run("backup", "--store", store, "--to", tmp_path / "backup", code=1)
    assert digest[:12] in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["backup", "--store", "{store}", "--to", "{store}/inside"], "outside of the store"),
        (["backup", "--store", "{none}", "--to", "{new}"], "no store in that directory"),
        (["backup", "--store", "{store}", "--to", "{file}"], "choose another --to"),
        (["restore", "--store", "{store}", "--from", "{store}"], "another directory"),
        (["restore", "--store", "{store}", "--from", "{none}"], "no whole backup"),
        (["rebuild", "--store", "{none}"], "no store in that directory"),
        (["verify", "--store", "{none}"], "no store in that directory"),
    ],
)
def test_mistakes_are_answered_in_a_line(store: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    places = {"store": store, "none": tmp_path / "none", "new": tmp_path / "new", "file": tmp_path / "file"}
    places["file"].touch()
    result = CliRunner().invoke(main.app, ["store", *(argument.format(**places) for argument in arguments)])
    assert result.exit_code in (1, 2)
    assert says in result.stderr.replace("\n", " ")
    assert result.stdout == ""
    assert not (tmp_path / "none").exists()


def test_a_server_in_the_way_is_named(store: Path, tmp_path: Path) -> None:
    with StoreLock(store):
        run("backup", "--store", store, "--to", tmp_path / "backup")
        run("verify", "--store", store)
        for command in (("restore", "--from", tmp_path / "backup"), ("rebuild",)):
            assert "is using this store" in run(*command, "--store", store, code=1).stderr


def test_serve_hands_on_that_the_catalog_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs: list[ServerConfig] = []
    monkeypatch.setattr(supervisor, "serve", lambda config, _: configs.append(config))
    (tmp_path / "config.json").write_text("{}")
    handlers, writer = list(logging.getLogger().handlers), logs._Process.writer
    for flags in ([], ["--accept-catalog"]):
        with own_logs():
            result = CliRunner().invoke(
                main.app, ["serve", "--backbone", str(tmp_path), "--store", str(tmp_path), *flags]
            )
        assert result.exit_code == 0, result.output
    # Else the tests that follow would log as that server, past what pytest captures.
    assert (logging.getLogger().handlers, logs._Process.writer) == (handlers, writer)
    assert [config.accept_catalog for config in configs] == [False, True]
