"""Registrations with a request id: a retry is answered as the first was, and acts no second time."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adamix.errors import InvalidRequest, Unavailable
from adamix_server.catalog import changes, retries
from adamix_server.catalog.rows import Registration, VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import make_manifest_json, registration

Add = Callable[..., VersionRow]
Register = Callable[..., tuple[VersionRow, bool]]

ME, HERE = "default", "a" * 64


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def register(catalog: Catalog, here: str, manifest_json: Callable[[str], str]) -> Register:
    """As the server does it: (task, bytes, request id) -> what `Catalog.register` answers."""

    def register(
        task: str, data: bytes, request_id: str, *, make_live: bool = True, tenant: str = ME
    ) -> tuple[VersionRow, bool]:
        digest = digest_of(data)
        asked = registration(tenant, task, digest, manifest_json(here), len(data), here, make_live, request_id)
        if not catalog.is_answered(asked):
            catalog.blobs.put(data, digest)
        return catalog.register(asked)

    return register


def asked_before(tenant: str, request_id: str) -> Registration:
    """What is asked again: b"v1" for the task t."""
    return registration(tenant, "t", digest_of(b"v1"), make_manifest_json(HERE), 2, HERE, True, request_id)


def test_a_retry_is_answered_alike_whatever_became_of_the_task(catalog: Catalog, register: Register, add: Add) -> None:
    first = register("t", b"v1", "once")
    assert (first[0].live, first[1]) == (True, False)
    changes_since: list[Callable[[], object]] = [
        lambda: add("t", b"v2"),
        lambda: catalog.delete_version(ME, "t", digest_of(b"v1")),
        lambda: catalog.purge(digest_of(b"v1")),
        lambda: catalog.delete_task(ME, "t"),
    ]
    for change in (lambda: None, *changes_since):
        change()
        before = catalog.snapshot(), catalog.audit_log.page(ME).rows, set(catalog.blobs.digests())
        assert register("t", b"v1", "once") == first
        assert (catalog.snapshot(), catalog.audit_log.page(ME).rows, set(catalog.blobs.digests())) == before


def test_what_the_first_answer_was_does_not_matter(catalog: Catalog, register: Register, add: Add) -> None:
    add("t", b"v1")
    first = register("t", b"v1", "known", make_live=False)
    assert (first[0].live, first[1]) == (True, True)
    waiting = register("t", b"v2", "waiting", make_live=False)
    assert (waiting[0].live, waiting[1]) == (False, False)
    catalog.set_pinned(ME, "t", digest_of(b"v2"), True)
    pinned = register("t", b"v2", "pinned", make_live=False)
    assert (pinned[0].pinned, pinned[1]) == (True, True)
    catalog.set_pinned(ME, "t", digest_of(b"v2"), False)
    catalog.set_traffic(ME, "t", [(digest_of(b"v2"), 1)])
    assert register("t", b"v1", "known", make_live=False) == first
    assert register("t", b"v2", "waiting", make_live=False) == waiting
    assert register("t", b"v2", "pinned", make_live=False) == pinned


def test_an_id_stands_for_one_request(catalog: Catalog, register: Register) -> None:
    register("t", b"v1", "once")
    before = catalog.snapshot(), set(catalog.blobs.digests())
    for task, data, make_live in (("u", b"v1", True), ("t", b"v2", True), ("t", b"v1", False)):
        with pytest.raises(InvalidRequest) as caught:
            register(task, data, "once", make_live=make_live)
        assert (caught.value.reason, caught.value.field) == ("REQUEST_ID_REUSED", "header.request_id")
    assert (catalog.snapshot(), set(catalog.blobs.digests())) == before


def test_tenants_share_no_ids(catalog: Catalog, register: Register) -> None:
    register("t", b"v1", "once")
    catalog.tenants.create("other")
    version, exists = register("t", b"v2", "once", tenant="other")
    assert (version.tenant, version.digest, exists) == ("other", digest_of(b"v2"), False)


def test_a_failure_is_not_remembered(
    catalog: Catalog, register: Register, here: str, manifest_json: Callable[[str], str]
) -> None:
    with pytest.raises(Unavailable):
        catalog.register(registration(ME, "t", digest_of(b"v1"), manifest_json(here), 2, here, True, "once"))
    assert not register("t", b"v1", "once")[1]
    assert catalog.get_task(ME, "t").live[0].digest == digest_of(b"v1")


def test_the_answer_and_the_action_are_one_transaction(
    catalog: Catalog, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(retries, "remember", fail)
    with pytest.raises(KeyboardInterrupt):
        register("t", b"v1", "once")
    monkeypatch.undo()
    assert catalog.snapshot().tasks == {}
    assert not register("t", b"v1", "once")[1]


def test_answers_survive_a_restart(
    catalog: Catalog, register: Register, store: Path, here: str, manifest_json: Callable[[str], str]
) -> None:
    first = register("t", b"v1", "once")
    other = Catalog(store, backbone_fingerprint=here)
    again = other.register(registration(ME, "t", digest_of(b"v1"), manifest_json(here), 2, here, True, "once"))
    other.close()
    assert again == first


def test_of_retries_at_once_one_acts(catalog: Catalog, register: Register) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: register("t", b"v1", "once"), range(16)))
    assert answers == [answers[0]] * 16
    assert not answers[0][1]
    assert catalog.revision() == 1


def test_an_answer_is_kept_for_a_day(catalog: Catalog, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    start_us = changes.now_us()
    now_us = start_us
    monkeypatch.setattr(changes, "now_us", lambda: now_us)
    register("t", b"v1", "once")
    now_us = start_us + 24 * 3600 * 1_000_000
    assert catalog.is_answered(asked_before(ME, "once"))
    now_us += 1
    assert not catalog.is_answered(asked_before(ME, "once"))
    # The id is free again.
    assert register("u", b"v2", "once")[0].task == "u"


def test_only_so_many_answers_of_a_tenant_are_kept(
    catalog: Catalog, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MAX_REQUEST_IDS_PER_TENANT", 3)
    catalog.tenants.create("other")
    register("t", b"v1", "r0", tenant="other")
    for i in range(5):
        register("t", b"v1", f"r{i}")
    kept = [catalog.is_answered(asked_before(ME, f"r{i}")) for i in range(5)]
    assert kept == [False, False, True, True, True]
    assert catalog.is_answered(asked_before("other", "r0"))


@pytest.mark.parametrize("request_id", ["a b", "a/b", "a\n", "é", "a" * 65, "\0"])
def test_malformed_ids_are_refused(register: Register, request_id: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        register("t", b"v1", request_id)
    assert caught.value.reason == "REQUEST_ID_INVALID"
