"""Tenants: made, changed and ended in one transaction each, and nothing of one that is gone comes back."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.errors import Aborted, FailedPrecondition, InvalidRequest, NotFound
from adamix_server.access import api_keys
from adamix_server.access.quotas import Quotas
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.origins import ORIGINS_DIRECTORY, Origins
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import registration

Add = Callable[..., VersionRow]
ME = "default"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_new_store_has_the_first_tenant_and_no_other(catalog: Catalog) -> None:
    (row,) = catalog.tenants.list().rows
    assert (row.tenant, row.weight, row.service_class, row.quotas) == (ME, 1, "interactive", Quotas())
    assert catalog.snapshot().access.tenants == {ME: row}
    assert catalog.revision() == 0


def test_one_is_made_changed_and_read_alike_everywhere(catalog: Catalog) -> None:
    made = catalog.tenants.create("acme", weight=3, service_class="batch", quotas=Quotas(max_tasks=0))
    assert catalog.tenants.get("acme") == made == catalog.snapshot().access.tenants["acme"]
    changed = catalog.tenants.update("acme", weight=1_000, quotas=Quotas(queued_tokens=7))
    assert (changed.weight, changed.service_class, changed.quotas) == (1_000, "batch", Quotas(queued_tokens=7))
    assert changed.etag != made.etag
    assert changed.update_time_us > made.update_time_us
    assert changed.create_time_us == made.create_time_us
    assert catalog.tenants.get("acme") == changed == catalog.snapshot().access.tenants["acme"]
    actions = [(row.action, row.detail) for row in catalog.audit_log.page("acme").rows]
    assert actions == [
        ("update_tenant", 'weight=1000 service_class=batch quotas={"queued_tokens":7}'),
        ("create_tenant", ""),
    ]


def test_a_change_that_changes_nothing_is_none(catalog: Catalog) -> None:
    row = catalog.tenants.create("acme", weight=3)
    before = catalog.snapshot()
    assert catalog.tenants.update("acme") == row
    assert catalog.tenants.update("acme", weight=3, service_class="interactive", quotas=Quotas()) == row
    assert catalog.snapshot() is before


def test_a_stale_etag_changes_nothing(catalog: Catalog) -> None:
    stale = catalog.tenants.create("acme").etag
    etag = catalog.tenants.update("acme", weight=2, etag=stale).etag
    before = catalog.snapshot()
    for change in (
        lambda: catalog.tenants.update("acme", weight=5, etag=stale),
        lambda: catalog.tenants.delete("acme", etag=stale),
    ):
        with pytest.raises(Aborted) as caught:
            change()
        assert caught.value.reason == "STALE_ETAG"
    assert catalog.snapshot() is before
    catalog.tenants.delete("acme", etag=etag)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"tenant": "Acme"}, "ID_INVALID"),
        ({"tenant": ""}, "ID_INVALID"),
        ({"tenant": "a/b"}, "ID_INVALID"),
        ({"tenant": "a" * 64}, "ID_INVALID"),
        ({"weight": 0}, "WEIGHT_INVALID"),
        ({"weight": -1}, "WEIGHT_INVALID"),
        ({"weight": 1_001}, "WEIGHT_INVALID"),
        ({"service_class": "fast"}, "SERVICE_CLASS_INVALID"),
        ({"quotas": Quotas(max_tasks=-1)}, "QUOTA_INVALID"),
        ({"quotas": Quotas(max_tasks=(1 << 62) + 1)}, "QUOTA_INVALID"),
        ({"quotas": Quotas(burst_s=0)}, "QUOTA_INVALID"),
    ],
)
def test_what_no_tenant_can_be_is_refused(catalog: Catalog, arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        catalog.tenants.create(**{"tenant": "acme"} | arguments)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    if "tenant" not in arguments:
        with pytest.raises(InvalidRequest) as caught:
            catalog.tenants.update(ME, **arguments)  # type: ignore[arg-type]
        assert caught.value.reason == reason
    assert catalog.revision() == 0


def test_one_that_is_there_is_not_made_again(catalog: Catalog) -> None:
    for tenant in (ME, "acme"):
        if tenant != ME:
            catalog.tenants.create(tenant)
        with pytest.raises(FailedPrecondition) as caught:
            catalog.tenants.create(tenant)
        assert caught.value.reason == "TENANT_EXISTS"


def test_one_that_is_not_there_is_not_found_anywhere(catalog: Catalog, add: Add) -> None:
    add("t", b"v1")
    missing: list[Callable[[], object]] = [
        lambda: catalog.tenants.get("acme"),
        lambda: catalog.tenants.update("acme", weight=2),
        lambda: catalog.tenants.delete("acme"),
        lambda: catalog.tenants.stored("acme"),
        lambda: catalog.keys.create("acme", api_keys.make()[1], rights={"infer"}),
        lambda: catalog.grants.add(ME, "t", "acme"),
    ]
    before = catalog.snapshot()
    for ask in missing:
        with pytest.raises(NotFound, match=r"^tenant not found$") as caught:
            ask()
        assert caught.value.reason == "TENANT_NOT_FOUND"
    assert catalog.snapshot() is before


def test_registering_for_one_that_is_not_there_makes_none(
    catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
) -> None:
    digest = add("t", b"v1").digest
    before = catalog.snapshot()
    with pytest.raises(NotFound) as caught:
        catalog.register(registration("acme", "t", digest, manifest_json(here), 2, here))
    assert caught.value.reason == "TENANT_NOT_FOUND"
    assert catalog.snapshot() is before


def test_one_with_tasks_goes_only_by_force_and_with_everything(catalog: Catalog, add: Add, store: Path) -> None:
    version = add("t", b"v1", tenant="acme", request_id="once")
    add("u", b"v1")
    catalog.set_pinned("acme", "t", version.digest, True)
    _, key = api_keys.make()
    catalog.keys.create("acme", key, rights={"infer"})
    catalog.tenants.create("other")
    catalog.grants.add("acme", "t", "other")
    catalog.grants.add(ME, "u", "acme")
    with pytest.raises(FailedPrecondition) as caught:
        catalog.tenants.delete("acme")
    assert caught.value.reason == "TENANT_NOT_EMPTY"
    catalog.tenants.delete("acme", force=True)
    snapshot = catalog.snapshot()
    assert snapshot.tasks.keys() == {(ME, "u")}
    assert (snapshot.access.tenants.keys(), len(snapshot.access.keys), len(snapshot.access.grants)) == (
        {ME, "other"},
        0,
        0,
    )
    assert {tenant for tenant, _, _ in set(Origins(store / ORIGINS_DIRECTORY).keys())} == {ME}
    assert catalog.retired() == (version.digest,)
    assert catalog.pinned() == ()
    assert catalog.audit_log.page("acme").rows[0].detail == "tasks=1 versions=1"


def test_one_made_anew_begins_with_nothing(
    catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
) -> None:
    version = add("t", b"v1", tenant="acme", request_id="once")
    add("u", b"v1")
    _, key = api_keys.make()
    catalog.keys.create("acme", key, rights={"infer"})
    catalog.grants.add(ME, "u", "acme")
    catalog.keys.note_used({key.id: "2026-11-30"})
    old = catalog.snapshot()
    catalog.tenants.delete("acme", force=True)
    row = catalog.tenants.create("acme")
    assert row.etag != old.access.tenants["acme"].etag
    snapshot = catalog.snapshot()
    assert ("acme", "t") not in snapshot.tasks
    assert key.id not in snapshot.access.keys
    assert snapshot.access.grants == set()
    assert catalog.keys.list("acme").rows == ()
    assert catalog.grants.list("acme").rows == ()
    assert catalog.keys.last_used([key.id]) == {}
    asked = registration("acme", "t", version.digest, manifest_json(here), 2, here, True, "once")
    assert not catalog.is_answered(asked), "nor is it given the answers of before"


def test_the_first_one_stays(catalog: Catalog) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        catalog.tenants.delete(ME, force=True)
    assert caught.value.reason == "TENANT_REQUIRED"


def test_what_a_deletion_left_behind_does_not_come_back(catalog: Catalog, add: Add, store: Path) -> None:
    """As if it was cut short right after it was durable."""
    version = add("t", b"v1", tenant="acme")
    origins = Origins(store / ORIGINS_DIRECTORY)
    origin = origins.read(("acme", "t", version.digest))
    assert origin is not None
    catalog.tenants.delete("acme", force=True)
    origins.put(origin)
    catalog.close()
    recover(store)
    assert list(origins.keys()) == []


def test_a_quota_of_a_newer_adamix_costs_nobody_the_others(catalog: Catalog, store: Path) -> None:
    catalog.tenants.create("acme", quotas=Quotas(max_tasks=3))
    with sqlite3.connect(store / CATALOG_FILE) as connection:
        connection.execute("UPDATE tenants SET quotas = '{\"max_tasks\":3,\"of_tomorrow\":1}' WHERE tenant = 'acme'")
    connection.close()
    assert catalog.snapshot().access.tenants["acme"].quotas == Quotas(max_tasks=3)


def test_a_page(catalog: Catalog) -> None:
    names = [ME, *(f"t{number}" for number in range(5))]
    for name in names[1:]:
        catalog.tenants.create(name)
    found, token = [], ""
    while not found or token:
        page = catalog.tenants.list(2, token)
        found.append([row.tenant for row in page.rows])
        token = page.next_page_token
    assert found == [names[:2], names[2:4], names[4:]]
    with pytest.raises(InvalidRequest):
        catalog.tenants.list(2, "x")


def test_what_one_has_in_the_store_is_counted(catalog: Catalog, add: Add) -> None:
    for task, data in (("t", b"v1"), ("u", b"v1"), ("u", b"other")):
        add(task, data, tenant="acme")
    add("t", b"of somebody else")
    stored = catalog.tenants.stored("acme")
    assert (stored.tasks, stored.versions, stored.num_bytes) == (2, 3, len(b"v1") + len(b"other"))
    catalog.delete_task("acme", "u")
    assert catalog.tenants.stored("acme").num_bytes == len(b"v1")
