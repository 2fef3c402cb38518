"""Keys: what they may be, how they end, and what is told of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from adamix.errors import FailedPrecondition, InvalidRequest, NotFound, Overloaded
from adamix_server.access import api_keys
from adamix_server.access.api_keys import ApiKey
from adamix_server.access.rights import ROLES
from adamix_server.catalog import changes, keys, schema
from adamix_server.catalog.access import KeyRow
from adamix_server.catalog.database import Database
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.store import Catalog
from adamix_server.limits.tenants import (
    MAX_CERTIFICATE_NAME_CHARS,
    MAX_DISPLAY_NAME_CHARS,
    MAX_KEY_NETWORKS,
    MAX_KEYS_PER_TENANT,
    MAX_TASK_PATTERN_CHARS,
)

Make = Callable[..., KeyRow]
ME = "default"
DAY_US = 86_400 * 1_000_000


@pytest.fixture
def make(catalog: Catalog) -> Make:
    """A new key: make(tenant, rights={…}, …)."""

    def make(tenant: str = ME, key: ApiKey | None = None, **arguments: Any) -> KeyRow:
        if "certificate_name" not in arguments:
            key = key or api_keys.make()[1]
        return catalog.keys.create(tenant, key, **{"rights": {"infer"}} | arguments)

    return make


def refused(act: Callable[[], object], reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        act()
    assert caught.value.reason == reason


def test_one_is_told_alike_everywhere(catalog: Catalog, make: Make) -> None:
    _, key = api_keys.make()
    expire_time_us = changes.now_us() + DAY_US
    row = make(
        key=key,
        rights=ROLES["owner"],
        task_pattern="support-*",
        networks=("10.0.0.0/8", "2001:db8::/32", "192.0.2.7", "10.0.0.0/8"),
        display_name="Größe & <b>",
        expire_time_us=expire_time_us,
    )
    assert (row.id, row.digest, row.tenant, row.rights) == (key.id, key.digest, ME, ROLES["owner"])
    assert (row.task_pattern, row.display_name, row.expire_time_us) == ("support-*", "Größe & <b>", expire_time_us)
    assert row.networks == ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32")
    assert (row.revoke_time_us, row.certificate_name) == (None, "")
    assert catalog.keys.get(key.id) == row == catalog.snapshot().access.keys[key.id]
    assert catalog.keys.list(ME).rows == (row,)
    entries = catalog.audit_log.page(ME).rows
    assert [(entry.action, entry.resource) for entry in entries] == [("create_key", f"tenants/{ME}/keys/{key.id}")]


def test_a_revoked_one_stays_revoked_and_is_told(catalog: Catalog, make: Make) -> None:
    row = make()
    before = catalog.snapshot()
    revoked = catalog.keys.revoke(row.id, tenant=ME)
    assert revoked.revoke_time_us is not None
    assert before.access.keys[row.id].revoke_time_us is None, "a snapshot does not change"
    snapshot = catalog.snapshot()
    assert snapshot.access.keys[row.id] == revoked == catalog.keys.get(row.id)
    assert catalog.keys.revoke(row.id, tenant=None) == revoked
    assert catalog.snapshot() is snapshot
    with pytest.raises(FailedPrecondition) as caught:
        make(key=ApiKey(row.id, "0" * 64))
    assert caught.value.reason == "KEY_EXISTS"


def test_another_tenants_key_is_not_found_as_one_that_is_not_there(catalog: Catalog, make: Make) -> None:
    catalog.tenants.create("acme")
    row = make("acme")
    messages = set()
    for key_id, tenant in ((row.id, ME), ("a" * 12, ME), ("a" * 12, None), ("", None), ("x" * 1_000, None)):
        with pytest.raises(NotFound) as caught:
            catalog.keys.revoke(key_id, tenant=tenant)
        messages.add((caught.value.message, caught.value.reason))
    assert messages == {("key not found", "NOT_FOUND")}
    assert catalog.keys.get(row.id).revoke_time_us is None
    assert catalog.keys.revoke(row.id, tenant=None).revoke_time_us is not None


def test_the_last_made_come_first_in_pages(catalog: Catalog, make: Make) -> None:
    catalog.tenants.create("acme")
    rows = [make(display_name=str(number)) for number in range(5)]
    make("acme")
    found, token = [], ""
    while not found or token:
        page = catalog.keys.list(ME, 2, token)
        found.append([row.display_name for row in page.rows])
        token = page.next_page_token
    assert found == [["4", "3"], ["2", "1"], ["0"]]
    token = catalog.keys.list(ME, 2).next_page_token
    catalog.keys.revoke(rows[0].id, tenant=ME)
    assert len(catalog.keys.list(ME, 10, token).rows) == 3
    with pytest.raises(InvalidRequest):
        catalog.keys.list("acme", 2, token)


def test_rights_are_some_of_those_there_are(make: Make) -> None:
    refused(lambda: make(rights=set()), "RIGHTS_EMPTY")
    refused(lambda: make(rights={"infer", "root"}), "RIGHT_UNKNOWN")


@pytest.mark.parametrize(
    "pattern", ["a" * (MAX_TASK_PATTERN_CHARS + 1), "A*", "a/b", "a b", "*\n", "ä", "\0", "(a+)+$"]
)
def test_a_task_pattern(make: Make, pattern: str) -> None:
    refused(lambda: make(task_pattern=pattern), "TASK_PATTERN_INVALID")
    for valid in ("*" * MAX_TASK_PATTERN_CHARS, "support-[!a-c]?.*", "[", "", "[z-a]"):
        assert make(task_pattern=valid).task_pattern == valid


@pytest.mark.parametrize(
    "network",
    ["", "10.0.0.7/8", "10.0.0.0/33", "10.0.0", "::1/129", "fe80::1%eth0/64", "localhost", "1" * 10_000, "0/0", "1 2"],
)
def test_networks_of_a_key(make: Make, network: str) -> None:
    refused(lambda: make(networks=("10.0.0.0/8", network)), "NETWORK_INVALID")
    some = tuple(f"10.{number}.0.0/16" for number in range(MAX_KEY_NETWORKS))
    assert make(networks=some).networks == some
    refused(lambda: make(networks=(*some, "11.0.0.0/8")), "NETWORK_INVALID")


@pytest.mark.parametrize("name", ["\n", "\x1b[31m", "\ud800", "\u202e", "x" * (MAX_DISPLAY_NAME_CHARS + 1)])
def test_a_display_name(make: Make, name: str) -> None:
    refused(lambda: make(display_name=name), "DISPLAY_NAME_INVALID")
    assert make(display_name="x" * MAX_DISPLAY_NAME_CHARS)


@pytest.mark.parametrize("name", ["\0", "CN=a\n", "x" * (MAX_CERTIFICATE_NAME_CHARS + 1)])
def test_a_certificate_name(make: Make, name: str) -> None:
    refused(lambda: make(certificate_name=name), "CERTIFICATE_NAME_INVALID")
    row = make(certificate_name="x" * MAX_CERTIFICATE_NAME_CHARS)
    assert (row.digest, api_keys.is_id(row.id)) == ("", True)


def test_a_certificate_has_one_key_at_a_time(catalog: Catalog, make: Make) -> None:
    name = "spiffe://example.org/tenant/acme"
    first = make(certificate_name=name)
    with pytest.raises(FailedPrecondition) as caught:
        make(certificate_name=name)
    assert caught.value.reason == "CERTIFICATE_TAKEN"
    assert catalog.snapshot().access.certificates == {name: first.id}
    catalog.keys.revoke(first.id, tenant=ME)
    assert catalog.snapshot().access.certificates == {}
    second = make(certificate_name=name)
    assert catalog.snapshot().access.certificates == {name: second.id}
    refused(lambda: catalog.keys.create(ME, None, rights={"infer"}), "KEY_OR_CERTIFICATE")
    both = api_keys.make()[1]
    refused(lambda: catalog.keys.create(ME, both, rights={"infer"}, certificate_name="x"), "KEY_OR_CERTIFICATE")


@pytest.mark.parametrize(
    "key", [ApiKey("", "0" * 64), ApiKey("A" * 12, "0" * 64), ApiKey("a" * 12, ""), ApiKey("a" * 12, "x" * 64)]
)
def test_what_no_key_is_made_of(catalog: Catalog, key: ApiKey) -> None:
    with pytest.raises(InvalidRequest):
        catalog.keys.create(ME, key, rights={"infer"})


def test_it_ends_in_the_future_and_within_what_a_date_can_say(make: Make) -> None:
    now = int(time.time() * 1e6)
    for wrong in (now - 1, 0, -1, -(1 << 63), 253_402_300_800 * 1_000_000, 1 << 62, 1 << 70):
        refused(lambda wrong=wrong: make(expire_time_us=wrong), "EXPIRE_TIME_INVALID")
    assert make(expire_time_us=253_402_300_799 * 1_000_000).expire_time_us


def test_so_many_keys_a_tenant_has(catalog: Catalog, make: Make, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(expire_time_us=changes.now_us() + DAY_US)
    columns = {"tenant": ME, "digest": "", "rights": "infer", "create_time_us": 1}
    columns |= dict.fromkeys(("task_pattern", "networks", "display_name", "certificate_name"), "")
    rest = [{"key_id": f"{number:012}", **columns} for number in range(MAX_KEYS_PER_TENANT - 2)]
    database = Database(store / CATALOG_FILE)
    with database.write() as connection:
        connection.execute(insert(schema.keys), rest)
    database.close()
    second = make()
    before = catalog.snapshot()
    with pytest.raises(Overloaded) as caught:
        make()
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_KEYS", None)
    assert catalog.snapshot() is before
    catalog.keys.revoke(second.id, tenant=ME)
    later = changes.now_us() + 2 * DAY_US
    monkeypatch.setattr(changes, "now_us", lambda: later)
    # By now both have ended, that one first.
    for known in ({first.id}, set()):
        new = make()
        assert catalog.snapshot().access.keys.keys() & {first.id, second.id, new.id} == {*known, new.id}
    with pytest.raises(Overloaded):
        make()


def test_one_that_stood_for_a_certificate_is_not_forgotten_for_another(
    catalog: Catalog, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS_PER_TENANT", 3)
    of_certificates = [make(certificate_name=f"spiffe://example.org/{name}") for name in "ab"]
    other = make()
    for row in (*of_certificates, other):
        catalog.keys.revoke(row.id, tenant=ME)
    new = make()
    assert catalog.snapshot().access.keys.keys() == {new.id, *(row.id for row in of_certificates)}
    with pytest.raises(Overloaded):
        make()


def test_an_operator_is_who_may_do_everything_with_a_key_in_force(
    catalog: Catalog, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(rights=ROLES["owner"])
    make(rights=ROLES["operator"], certificate_name="CN=root")
    assert not catalog.keys.has_operator()
    row = make(rights=ROLES["operator"])
    assert catalog.keys.has_operator()
    catalog.keys.revoke(row.id, tenant=ME)
    assert not catalog.keys.has_operator()
    make(rights=ROLES["operator"], expire_time_us=changes.now_us() + DAY_US)
    assert catalog.keys.has_operator()
    later = changes.now_us() + DAY_US + 1
    monkeypatch.setattr(changes, "now_us", lambda: later)
    assert not catalog.keys.has_operator()


def test_the_last_day_of_use_is_noted_outside_of_revisions(catalog: Catalog, make: Make) -> None:
    first, second, third = make(), make(), make()
    before = catalog.snapshot()
    catalog.keys.note_used({first.id: "2026-11-30", second.id: "2026-11-29", "a" * 12: "2026-11-30"})
    catalog.keys.note_used({first.id: "2026-11-28", second.id: "2026-12-01"})
    catalog.keys.note_used({})
    used = catalog.keys.last_used([first.id, second.id, third.id, "a" * 12])
    assert used == {first.id: "2026-11-30", second.id: "2026-12-01"}
    assert catalog.snapshot() is before
    with pytest.raises(InvalidRequest):
        catalog.keys.note_used({first.id: "today"})


def test_no_secret_is_in_the_store(catalog: Catalog, store: Path) -> None:
    secret, key = api_keys.make()
    catalog.keys.create(ME, key, rights={"infer"})
    catalog.keys.revoke(key.id, tenant=ME)
    for file in store.glob("catalog.db*"):
        assert secret.encode() not in file.read_bytes()
        assert secret.rpartition("_")[2].encode() not in file.read_bytes()
