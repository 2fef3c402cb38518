"""Keys in backups: one that has ended does not come back, and one that is in force is not lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adamix_server.access import api_keys
from adamix_server.catalog import keys
from adamix_server.catalog.backup import backup, restore
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.rebuild import rebuild
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.verification import verify

ME, HERE = "default", "a" * 64


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "backup"


@pytest.fixture
def running(store: Path) -> Iterator[Catalog]:
    recover(store)
    catalog = Catalog(store, backbone_fingerprint=HERE)
    yield catalog
    catalog.close()


def make(catalog: Catalog, tenant: str = ME) -> str:
    return catalog.keys.create(tenant, api_keys.make()[1], rights={"infer"}).id


def in_force(store: Path) -> set[str]:
    catalog = Catalog(store, backbone_fingerprint=HERE)
    known = catalog.snapshot().access.keys
    catalog.close()
    return {key_id for key_id, row in known.items() if row.revoke_time_us is None}


def test_they_come_back_with_a_restore_but_for_those_that_have_ended(running: Catalog, store: Path, to: Path) -> None:
    for tenant in ("acme", "anew"):
        running.tenants.create(tenant)
    kept, revoked, gone, of_before = make(running), make(running), make(running, "acme"), make(running, "anew")
    made = backup(store, to)
    assert (made.tenants, made.keys, made.revocations) == (3, 4, 0)
    running.keys.revoke(revoked, tenant=ME)
    for tenant in ("acme", "anew"):
        running.tenants.delete(tenant)
    running.tenants.create("anew")
    make(running)
    running.close()
    restored = restore(store, to)
    assert (restored.keys, restored.revocations) == (1, 3)
    assert in_force(store) == {kept}
    catalog = Catalog(store, backbone_fingerprint=HERE)
    assert catalog.snapshot().access.keys.keys() == {kept, revoked, gone, of_before}
    catalog.close()


def test_one_that_was_revoked_and_then_forgotten_does_not_come_back(
    running: Catalog, store: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked = make(running)
    backup(store, to)
    running.keys.revoke(revoked, tenant=ME)
    monkeypatch.setattr(keys, "MAX_KEYS_PER_TENANT", 1)
    new = make(running)
    assert running.snapshot().access.keys.keys() == {new}
    running.close()
    assert restore(store, to).revocations == 1
    assert in_force(store) == set()


def test_a_key_that_was_made_after_its_tenant_was_made_anew_is_in_force(
    running: Catalog, store: Path, to: Path
) -> None:
    running.tenants.create("acme")
    running.tenants.delete("acme")
    running.tenants.create("acme")
    key = make(running, "acme")
    backup(store, to)
    running.close()
    assert restore(store, to).revocations == 0
    assert in_force(store) == {key}


def test_where_nobody_can_say_what_has_ended_that_is_told(running: Catalog, store: Path, to: Path) -> None:
    key = make(running)
    backup(store, to)
    running.keys.revoke(key, tenant=ME)
    running.close()
    (store / CATALOG_FILE).unlink()
    assert restore(store, to).revocations is None
    assert in_force(store) == {key}


def test_a_catalog_that_was_made_anew_is_no_end_of_the_keys_in_the_backup(
    running: Catalog, store: Path, to: Path
) -> None:
    key = make(running)
    backup(store, to)
    running.close()
    assert rebuild(store).versions == ()
    (store / CATALOG_FILE).unlink()
    recover(store, accept_catalog=True)
    assert in_force(store) == set()
    made = backup(store, to)
    assert made.set_aside
    assert backup(store, to).set_aside == ""
    (to / CATALOG_FILE).write_bytes((to / made.set_aside).read_bytes())
    recover(to, accept_catalog=True)
    assert in_force(to) == {key}


def test_a_revoked_key_and_a_deleted_tenant_are_nothing_that_a_backup_keeps(
    running: Catalog, store: Path, to: Path
) -> None:
    running.tenants.create("acme")
    make(running, "acme")
    revoked = make(running)
    backup(store, to)
    running.keys.revoke(revoked, tenant=ME)
    running.tenants.delete("acme")
    made = backup(store, to)
    assert (made.set_aside, made.tenants, made.keys) == ("", 1, 0)
    running.close()
    found = verify(to)
    assert (found.tenants, found.keys, found.problems) == (1, 0, ())
