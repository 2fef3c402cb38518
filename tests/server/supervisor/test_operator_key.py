"""The first operator key: made once, for its owner alone, and said nowhere but in its file."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import InvalidConfig, StoreFull
from adamix_server.access import api_keys
from adamix_server.catalog.access import KeyRow
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import StartFrontEnd
from adamix_server.config import AccessSettings, FrontEndSettings
from adamix_server.supervisor import operator_key
from adamix_server.supervisor.operator_key import ensure_operator_key
from adamix_testing.catalogs import make_store
from adamix_testing.credentials import Authority, write_pair
from adamix_testing.stage import stage_of


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path)
    return tmp_path


def rows(store: Path) -> tuple[KeyRow, ...]:
    catalog = Catalog(store, backbone_fingerprint="0" * 64)
    try:
        return catalog.keys.list("default").rows
    finally:
        catalog.close()


def revoke_all(store: Path) -> None:
    catalog = Catalog(store, backbone_fingerprint="0" * 64)
    for row in catalog.keys.list("default").rows:
        catalog.keys.revoke(row.id, tenant=None)
    catalog.close()


def test_one_is_made_where_there_is_none(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    before = os.umask(0)
    try:
        ensure_operator_key(store)
    finally:
        os.umask(before)
    path = store / "operator.key"
    text = path.read_text()
    key = api_keys.parse(text.removesuffix("\n"))
    assert key is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (row,) = rows(store)
    assert (row.id, row.digest, row.tenant, row.rights) == (key.id, key.digest, "default", {"admin"})
    (record,) = caplog.records
    assert getattr(record, "path") == str(path)  # noqa: B009 - an extra field of the record
    assert text.strip() not in str(record.__dict__)
    ensure_operator_key(store)
    assert path.read_text() == text
    assert len(rows(store)) == 1


def test_another_takes_the_place_of_one_that_was_revoked(store: Path) -> None:
    ensure_operator_key(store)
    first = (store / "operator.key").read_text()
    revoke_all(store)
    ensure_operator_key(store)
    assert (store / "operator.key").read_text() != first
    assert len(rows(store)) == 2


def test_a_kill_after_the_file_is_mended_by_the_next_start(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "operator.key.new").write_text("half of o")
    (store / "operator.key").symlink_to(store / "elsewhere")
    (store / "elsewhere").write_text("of somebody")
    ensure_operator_key(store)
    key = api_keys.parse((store / "operator.key").read_text().strip())
    assert key is not None
    assert [row.id for row in rows(store)] == [key.id]
    assert (store / "elsewhere").read_text() == "of somebody"
    assert not (store / "operator.key.new").exists()


@pytest.mark.parametrize("auth", ["none", "keys", "mtls"])
async def test_a_server_makes_one_where_it_asks_for_keys_and_tells_strangers_of_no_service(
    auth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    tls = write_pair(tmp_path, authority.issue(), authority.cert if auth == "mtls" else None)
    settings = FrontEndSettings(access=AccessSettings(auth=(auth,)), tls=tls)
    stage = stage_of(monkeypatch, tmp_path, front_end=settings)
    await stage.until(lambda: bool(stage.children["frontend-0"]))
    start = stage.children["frontend-0"][0].start_frame
    assert isinstance(start, StartFrontEnd)
    assert (start.settings, start.reflection) == (settings, auth == "none")
    assert (tmp_path / "store" / "operator.key").exists() is (auth == "keys")
    stage.supervisor.stop()
    await stage.ended()
    await stage.leave()


async def test_nothing_is_made_or_started_with_a_certificate_that_cannot_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = write_pair(tmp_path, Authority().issue())
    tls.key.write_bytes(b"nonsense")
    stage = stage_of(monkeypatch, tmp_path, front_end=FrontEndSettings(access=AccessSettings(auth=("keys",)), tls=tls))
    with pytest.raises(InvalidConfig, match=r"--tls-key: .* holds no private key"):
        await stage.ended()
    assert not stage.children
    assert not (tmp_path / "store").exists()


def test_no_key_without_its_file(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(operator_key, "_write", full)
    with pytest.raises(StoreFull, match=r"operator\.key cannot be written: No space left on device"):
        ensure_operator_key(store)
    assert rows(store) == ()
