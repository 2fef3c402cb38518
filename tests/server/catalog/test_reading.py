"""What the catalog answers: names, pages, snapshots, the audit."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import FailedPrecondition, InvalidRequest, NotFound
from adamix_server.access import api_keys
from adamix_server.access.principal import Actor
from adamix_server.catalog.paging import read_token
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_server.names import check_name
from adamix_testing.catalogs import registration

Add = Callable[..., VersionRow]

ME = "default"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "name", ["", "T", "-a", "a-", ".a", "a..b", "../x", "a/b", "a\\b", "a\0", "a\n", "%2e%2e", "a" * 64, "аdmin", "a b"]
)
def test_malformed_ids_are_refused_everywhere(
    catalog: Catalog, here: str, manifest_json: Callable[[str], str], name: str
) -> None:
    digest = digest_of(b"v1")
    catalog.blobs.put(b"v1", digest)
    for call in (
        lambda: catalog.register(registration(ME, name, digest, manifest_json(here), 2, here)),
        lambda: catalog.register(registration(name, "t", digest, manifest_json(here), 2, here)),
        lambda: catalog.get_task(ME, name),
        lambda: catalog.list_tasks(name),
        lambda: catalog.list_versions(ME, name),
        lambda: catalog.rollback(name, "t"),
        lambda: catalog.delete_task(ME, name),
    ):
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert caught.value.field in ("tenant", "task")


@given(st.text(max_size=70))
def test_what_passes_as_an_id_is_a_safe_file_name(name: str) -> None:
    try:
        check_name(name, "task")
    except InvalidRequest:
        return
    assert Path("/root", name).resolve().parent == Path("/root")
    assert name.isascii()
    assert name == name.lower()
    assert 1 <= len(name) <= 63


class TestPaging:
    def test_pages_hold_every_task_once_even_while_others_come_and_go(self, catalog: Catalog, add: Add) -> None:
        for i in range(0, 20, 2):
            add(f"t{i:02}", b"v1")
        add("t00", b"v1", tenant="other")
        seen: list[str] = []
        token = ""
        while True:
            page = catalog.list_tasks(ME, 3, token)
            seen += [task.task for task in page.rows]
            if not (token := page.next_page_token):
                break
            add(f"t{len(seen):02}", b"v1")
            if len(seen) == 3:
                catalog.delete_task(ME, seen[-1])
        assert len(seen) == len(set(seen))
        assert set(seen) >= {f"t{i:02}" for i in range(0, 20, 2)}

    def test_versions_come_newest_first_and_new_ones_do_not_shift_pages(self, catalog: Catalog, add: Add) -> None:
        digests = [add("t", b"v%d" % i).digest for i in range(5)]
        first = catalog.list_versions(ME, "t", 2)
        add("t", b"newer")
        second = catalog.list_versions(ME, "t", 2, first.next_page_token)
        third = catalog.list_versions(ME, "t", 2, second.next_page_token)
        assert third.next_page_token == ""
        rows = first.rows + second.rows + third.rows
        assert [version.digest for version in rows] == digests[::-1]

    def test_the_size_has_a_default_and_a_maximum(self, catalog: Catalog, add: Add) -> None:
        for i in range(101):
            add(f"t{i}", b"v1")
        assert len(catalog.list_tasks(ME).rows) == 100
        assert len(catalog.list_tasks(ME, 10**9).rows) == 101
        with pytest.raises(InvalidRequest):
            catalog.list_tasks(ME, -1)

    def test_a_token_of_anything_else_is_refused(self, catalog: Catalog, add: Add) -> None:
        add("t", b"v1")
        add("t", b"v2")
        add("u", b"v1")
        tasks, versions = catalog.list_tasks(ME, 1).next_page_token, catalog.list_versions(ME, "t", 1).next_page_token
        assert tasks
        assert versions
        for call in (
            lambda: catalog.list_tasks(ME, 1, versions),
            lambda: catalog.list_tasks("other", 1, tasks),
            lambda: catalog.list_versions(ME, "u", 1, versions),
            lambda: catalog.list_versions(ME, "t", 1, tasks),
        ):
            with pytest.raises(InvalidRequest) as caught:
                call()
            assert caught.value.field == "page_token"

    @given(st.text(max_size=40) | st.sampled_from(["WzFd", "e30", "bnVsbA", "W" * 5000, "Ww" * 500, "é"]))
    def test_no_token_breaks_the_list(self, token: str) -> None:
        if token:
            with pytest.raises(InvalidRequest):
                read_token(token, ("tasks", ME), str)

    @pytest.mark.parametrize("key", ["\\ud800", "\\udfffx"])
    def test_a_token_with_half_a_character_is_refused(self, catalog: Catalog, add: Add, key: str) -> None:
        add("t", b"v1")
        token = base64.urlsafe_b64encode(f'["tasks","{ME}","{key}"]'.encode()).decode().rstrip("=")
        with pytest.raises(InvalidRequest, match="page_token"):
            catalog.list_tasks(ME, 1, token)


class TestSnapshot:
    def test_it_follows_every_change_as_a_fresh_reader_sees_it(
        self, catalog: Catalog, add: Add, store: Path, here: str
    ) -> None:
        follower = Catalog(store, backbone_fingerprint=here)

        def check() -> None:
            fresh = Catalog(store, backbone_fingerprint=here)
            assert follower.snapshot() == fresh.snapshot()
            assert follower.snapshot() is follower.snapshot()
            assert follower.snapshot().revision == follower.revision() == catalog.revision()
            fresh.close()

        check()
        first = add("t", b"v1")
        add("u", b"v1", tenant="other")
        check()
        add("t", b"v2")
        check()
        catalog.rollback(ME, "t")
        assert [v.digest for v in follower.snapshot().task(ME, "t").live] == [first.digest]
        check()
        catalog.delete_task(ME, "t")
        add("t", b"v3")
        check()
        catalog.delete_task("other", "u")
        check()
        follower.close()

    def test_an_older_one_stays_as_it_was(self, catalog: Catalog, add: Add) -> None:
        first = add("t", b"v1")
        old = catalog.snapshot()
        add("t", b"v2")
        add("u", b"v1")
        catalog.snapshot()
        assert [v.digest for v in old.task(ME, "t").live] == [first.digest]
        assert set(old.tasks) == {(ME, "t")}

    def test_unchanged_tasks_are_not_read_again(self, catalog: Catalog, add: Add) -> None:
        add("t", b"v1")
        add("u", b"v1")
        before = catalog.snapshot()
        add("u", b"v2")
        assert catalog.snapshot().tasks[ME, "t"] is before.tasks[ME, "t"]

    def test_a_version_that_is_not_live_can_be_asked_for(self, catalog: Catalog, add: Add) -> None:
        first = add("t", b"v1")
        add("t", b"v2")
        assert catalog.snapshot().task(ME, "t").version(first.digest) == catalog.get_task(ME, "t").version(first.digest)
        with pytest.raises(NotFound, match="version not found"):
            catalog.snapshot().task(ME, "t").version("0" * 64)


class TestAudit:
    def test_every_change_is_written_down(self, catalog: Catalog, add: Add) -> None:
        by = Actor("keys/k1", "ipv4:10.0.0.7:5", "adamix.v1.AdapterService/Rollback", entries=[])
        first = add("t", b"v1")
        add("t", b"v2")
        catalog.rollback(ME, "t", by=by)
        catalog.delete_task(ME, "t")
        rows = catalog.audit_log.page(ME).rows
        assert [row.action for row in rows] == ["delete_task", "rollback", "register", "register"]
        assert [row.revision for row in rows] == [4, 3, 2, 1]
        assert {row.resource for row in rows} == {"tenants/default/tasks/t"}
        assert (rows[-1].digest, rows[-1].detail, rows[-1].code) == (first.digest, "live", "OK")
        assert (rows[1].principal, rows[1].peer, rows[1].method) == (by.principal, by.peer, by.method)
        assert by.entries == [rows[1].id]
        assert catalog.audit_log.page("other").rows == ()

    def test_what_is_undone_leaves_no_entry(self, catalog: Catalog, add: Add) -> None:
        by = Actor("keys/k1", entries=[])
        version = add("t", b"v1")
        with pytest.raises(FailedPrecondition, match="live"):
            catalog.delete_version(ME, "t", version.digest, by=by)
        assert (by.entries, len(catalog.audit_log.page(ME).rows)) == ([], 1)

    def test_tenants_keys_and_grants_have_names(self, catalog: Catalog, add: Add) -> None:
        catalog.tenants.create("acme")
        _, key = api_keys.make()
        catalog.keys.create("acme", key, rights=["infer"])
        add("t", b"v1")
        catalog.grants.add(ME, "t", "acme")
        catalog.keys.revoke(key.id, tenant="acme")
        told = [(row.tenant, row.action, row.resource, row.detail) for row in catalog.audit_log.page(None).rows[::-1]]
        assert told == [
            ("acme", "create_tenant", "tenants/acme", ""),
            ("acme", "create_key", f"tenants/acme/keys/{key.id}", ""),
            (ME, "register", "tenants/default/tasks/t", "live"),
            (ME, "add_grant", "tenants/default/tasks/t", "acme"),
            ("acme", "revoke_key", f"tenants/acme/keys/{key.id}", ""),
        ]
