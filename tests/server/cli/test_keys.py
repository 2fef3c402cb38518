"""`adamix keys create --store` as a person types it: the secret once on stdout, and what is wrong on stderr."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix_server.access import api_keys
from adamix_server.access.rights import ROLES
from adamix_server.catalog.access import Access
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog
from adamix_server.cli import main


def run(*arguments: object, code: int = 0) -> Any:
    """The result of `adamix keys create …` that ends with this code."""
    result = CliRunner().invoke(main.app, ["keys", "create", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def store(tmp_path: Path) -> Path:
    recover(tmp_path / "store")
    return tmp_path / "store"


def access(store: Path) -> Access:
    catalog = Catalog(store, backbone_fingerprint="a" * 64)
    found = catalog.snapshot().access
    catalog.close()
    return found


def test_the_secret_is_all_that_stdout_has(store: Path) -> None:
    result = run("--store", store, "--role", "operator", "--expires", "90d", "--name", "lost and found")
    key = api_keys.parse(result.stdout.removesuffix("\n"))
    assert key is not None
    row = access(store).keys[key.id]
    assert (row.digest, row.tenant, row.rights, row.display_name) == (
        key.digest,
        "default",
        ROLES["operator"],
        "lost and found",
    )
    assert row.expire_time_us is not None
    assert 89.9 < (row.expire_time_us - row.create_time_us) / 86_400e6 <= 90
    assert key.id in result.stderr
    secret = result.stdout.strip()
    assert secret not in result.stderr
    for directory, _, files in os.walk(store):
        assert not [name for name in files if secret.encode() in Path(directory, name).read_bytes()]


def test_a_document(store: Path) -> None:
    catalog = Catalog(store, backbone_fingerprint="a" * 64)
    catalog.tenants.create("acme")
    catalog.close()
    options = ("--tenant", "acme", "--tasks", "support-*", "--network", "10.0.0.0/8", "--network", "::1")
    document = json.loads(run("--store", store, "--role", "caller", *options, "--json").stdout)
    assert document.keys() == {"id", "secret", "tenant", "role", "expires"}
    key = api_keys.parse(document["secret"])
    assert key is not None
    assert (document["id"], document["tenant"], document["role"], document["expires"]) == (
        key.id,
        "acme",
        "caller",
        None,
    )
    row = access(store).keys[key.id]
    assert (row.task_pattern, row.networks, row.rights) == (
        "support-*",
        ("10.0.0.0/8", "::1/128"),
        ROLES["caller"],
    )


def test_a_store_in_use_is_left_to_its_server(store: Path) -> None:
    with StoreLock(store):
        result = run("--store", store, "--role", "operator", code=1)
    assert result.stdout == ""
    assert "--server" in result.stderr
    assert len(access(store).keys) == 0


def test_no_store_is_made(tmp_path: Path, store: Path) -> None:
    assert "no store" in run("--store", tmp_path / "none", "--role", "operator", code=1).stderr
    assert not (tmp_path / "none").exists()
    (store / CATALOG_FILE).unlink()
    assert "missing" in run("--store", store, "--role", "operator", code=1).stderr
    assert not (store / CATALOG_FILE).exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--role", "root"], 2, "there are caller, publisher, owner, operator"),
        (["--role", "caller", "--tenant", "nobody"], 1, "tenant not found"),
        (["--role", "caller", "--expires", "soon"], 2, "such as 90d"),
        (["--role", "caller", "--expires", "0d"], 2, "such as 90d"),
        (["--role", "caller", "--expires", "-1d"], 2, "such as 90d"),
        (["--role", "caller", "--expires", "999999999d"], 2, "after the year 9999"),
        (["--role", "caller", "--network", "10.0.0.7/8"], 1, "CIDR"),
        (["--role", "caller", "--tasks", "A*"], 1, "task_pattern"),
        (["--role", "caller", "--name", "a\nb"], 1, "display_name"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(store: Path, options: list[str], code: int, words: str) -> None:
    result = run("--store", store, *options, code=code)
    assert result.stdout == ""
    assert words in " ".join(result.stderr.split())
    assert len(access(store).keys) == 0
