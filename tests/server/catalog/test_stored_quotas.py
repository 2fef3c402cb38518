"""Quotas of what is stored: exact to the last one, and what is there already is never refused."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adamix.errors import QuotaExceeded
from adamix_server.access.quotas import Quotas
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import make_manifest_json, registration

Add = Callable[..., VersionRow]
ME, HERE = "default", "a" * 64


def refused(act: Callable[[], object], quota: str, *, limit: int, used: int) -> None:
    with pytest.raises(QuotaExceeded) as caught:
        act()
    error = caught.value
    assert (error.reason, error.subject) == (f"QUOTA_{quota.upper()}", f"tenants/{ME}")
    assert (error.limit, error.used, error.retry_after_s) == (limit, used, None)


def test_so_many_tasks_and_no_more(catalog: Catalog, add: Add) -> None:
    catalog.tenants.update(ME, quotas=Quotas(max_tasks=2))
    add("t", b"v1")
    add("u", b"v1")
    before = catalog.snapshot()
    refused(lambda: add("v", b"v1"), "max_tasks", limit=2, used=2)
    assert catalog.snapshot() is before
    add("t", b"v2")
    add("v", b"v1", tenant="other")
    catalog.delete_task(ME, "u")
    add("v", b"v1")


def test_so_many_versions_of_a_task_and_no_more(catalog: Catalog, add: Add) -> None:
    catalog.tenants.update(ME, quotas=Quotas(max_versions_per_task=2))
    first = add("t", b"v1")
    add("t", b"v2")
    refused(lambda: add("t", b"v3"), "max_versions_per_task", limit=2, used=2)
    add("u", b"v3")
    catalog.delete_version(ME, "t", first.digest)
    add("t", b"v3")


def test_so_many_bytes_and_no_more_and_each_file_counts_once(catalog: Catalog, add: Add) -> None:
    catalog.tenants.update(ME, quotas=Quotas(max_stored_bytes=10))
    add("t", b"12345")
    add("u", b"12345")
    add("t", b"67890")
    refused(lambda: add("t", b"x"), "max_stored_bytes", limit=10, used=10)
    add("v", b"67890")
    catalog.delete_task(ME, "t")
    # One of both files is still another task's.
    refused(lambda: add("t", b"x"), "max_stored_bytes", limit=10, used=10)
    catalog.delete_task(ME, "u")
    add("t", b"abcde")


def test_so_many_pins_and_no_more(catalog: Catalog, add: Add) -> None:
    catalog.tenants.update(ME, quotas=Quotas(pinned_versions=1))
    first, second = add("t", b"v1"), add("t", b"v2")
    catalog.set_pinned(ME, "t", first.digest, True)
    before = catalog.snapshot()
    refused(lambda: catalog.set_pinned(ME, "t", second.digest, True), "pinned_versions", limit=1, used=1)
    assert catalog.set_pinned(ME, "t", first.digest, True).pinned, "what is pinned is pinned"
    assert catalog.snapshot() is before
    catalog.set_pinned(ME, "t", first.digest, False)
    catalog.set_pinned(ME, "t", second.digest, True)


@pytest.mark.parametrize("quota", ["max_tasks", "max_versions_per_task", "max_stored_bytes"])
def test_none_allowed_is_none(catalog: Catalog, add: Add, quota: str) -> None:
    catalog.tenants.update(ME, quotas=Quotas(**{quota: 0}))
    refused(lambda: add("t", b"v1"), quota, limit=0, used=0)
    assert catalog.snapshot().tasks == {}


def test_a_lower_quota_ends_nothing_and_what_is_there_is_registered_again(catalog: Catalog, add: Add) -> None:
    first, second = add("t", b"v1"), add("t", b"v2")
    catalog.set_pinned(ME, "t", first.digest, True)
    nothing = Quotas(max_tasks=0, max_versions_per_task=0, max_stored_bytes=0, pinned_versions=0)
    catalog.tenants.update(ME, quotas=nothing)
    assert add("t", b"v1").live, "and made live again"
    assert add("t", b"v2", request_id="once").digest == second.digest
    assert add("t", b"v2", request_id="once").digest == second.digest
    assert catalog.set_pinned(ME, "t", first.digest, True).pinned
    assert catalog.rollback(ME, "t").live[0].digest == first.digest
    refused(lambda: add("t", b"v3"), "max_versions_per_task", limit=0, used=2)
    refused(lambda: add("u", b"v1"), "max_tasks", limit=0, used=1)
    catalog.delete_version(ME, "t", second.digest)
    refused(lambda: add("t", b"v2"), "max_versions_per_task", limit=0, used=1)


def test_who_has_none_of_its_own_has_the_servers(store: Path, catalog: Catalog, add: Add) -> None:
    add("t", b"v1")
    catalog.tenants.create("acme", quotas=Quotas(max_versions_per_task=5))
    catalog.tenants.create("large", quotas=Quotas(max_tasks=3))
    theirs = Catalog(store, backbone_fingerprint=HERE, default_quotas=Quotas(max_tasks=1))

    def register(tenant: str, task: str) -> None:
        digest = hashlib.sha256(b"v1").hexdigest()
        theirs.register(registration(tenant, task, digest, make_manifest_json(HERE), 2, HERE))

    refused(lambda: register(ME, "u"), "max_tasks", limit=1, used=1)
    register("acme", "t")
    with pytest.raises(QuotaExceeded):
        register("acme", "u")
    for task in "tuv":
        register("large", task)
    theirs.close()


def test_it_is_said_beforehand_and_nothing_is_done(catalog: Catalog, add: Add) -> None:
    known = add("t", b"v1")
    catalog.tenants.update(ME, quotas=Quotas(max_tasks=1))
    before = catalog.snapshot()

    def asked(task: str) -> None:
        catalog.check_room(registration(ME, task, known.digest, make_manifest_json(HERE), 2, HERE))

    asked("t")
    refused(lambda: asked("u"), "max_tasks", limit=1, used=1)
    assert catalog.snapshot() is before


def test_many_at_once_get_no_more_than_there_is(catalog: Catalog, add: Add) -> None:
    catalog.tenants.update(ME, quotas=Quotas(max_tasks=3))

    def tried(number: int) -> bool:
        try:
            add(f"t{number}", b"v1")
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(tried, range(12))) == 3
    assert len(catalog.snapshot().tasks) == 3
