"""Stores that an older adamix wrote, kept as files: they say what they said on the day they were written."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from adamix_server.catalog import changes
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog

STORES = Path(__file__).with_name("old_stores")
WRITER = runpy.run_path(str(STORES / "write_store.py"))
# Three minutes after the first of them was written to: remembered requests are not too old yet.
SOON_US = WRITER["STARTED_US"] + 180_000_000


@pytest.fixture(params=[1, 2, 3, 4])
def schema(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old_store(store: Path, schema: int) -> Path:
    shutil.copytree(STORES / f"schema_{schema}", store)
    return store


@pytest.fixture
def recorded(old_store: Path) -> Any:
    return json.loads((old_store / "answers.json").read_text(encoding="utf-8"))


def told(answers: Any) -> Any:
    """Without what a page token holds: nobody goes on with one of before an upgrade, which ends every call."""
    for pages in answers["list_versions"].values():
        pages[:] = [[rows, token != ""] for rows, token in pages]
    return answers


def test_it_answers_what_it_answered(
    old_store: Path, recorded: Any, schema: int, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "now_us", lambda: SOON_US)
    with StoreLock(old_store):
        assert recover(old_store).missing == ()
    catalog = Catalog(old_store, backbone_fingerprint=here)
    assert told(json.loads(json.dumps(WRITER["answers"](catalog, schema)))) == told(recorded)
    catalog.close()
