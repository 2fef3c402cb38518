import hashlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.engine import Engine

from adamix.errors import (
    Aborted,
    FailedPrecondition,
    InvalidAdapter,
    InvalidRequest,
    NotFound,
    StoreFull,
    Unavailable,
)
from adamix_server.catalog import changes, database
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.names import check_name
from adamix_server.catalog.paging import read_token
from adamix_server.catalog.rows import Traffic, VersionRow
from adamix_server.catalog.store import Catalog

Add = Callable[..., VersionRow]

ME = "default"


def live(catalog: Catalog, task: str = "t") -> tuple[str, ...]:
    return tuple(version.digest for version in catalog.get_task(ME, task).live)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class TestRegister:
    def test_the_first_version_makes_the_task_and_answers(self, catalog: Catalog, add: Add, here: str) -> None:
        version = add("t", b"v1")
        assert version.state is State.READY
        assert (version.live, version.num_bytes, version.backbone_fingerprint) == (True, 2, here)
        assert version.manifest.head.num_labels == 2
        task = catalog.get_task(ME, "t")
        assert task.traffic == (Traffic(version.digest, 1),)
        assert task.unavailable_reason == ""
        assert task.live == (version,)
        assert task.create_time <= version.create_time <= task.update_time

    def test_the_same_bytes_again_are_ok_and_change_nothing(
        self, catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
    ) -> None:
        first = add("t", b"v1")
        before = catalog.get_task(ME, "t"), catalog.revision(), catalog.audit(ME)
        again, exists = catalog.register(ME, "t", first.digest, manifest_json(here), 2, here)
        assert exists
        assert again == first
        assert (catalog.get_task(ME, "t"), catalog.revision(), catalog.audit(ME)) == before

    def test_bytes_another_task_has_are_new_to_this_one(
        self, catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
    ) -> None:
        digest = add("t", b"v1").digest
        for tenant, task in ((ME, "u"), ("other", "t")):
            assert not catalog.register(tenant, task, digest, manifest_json(here), 2, here)[1]

    def test_a_version_that_stopped_being_live_becomes_live_again(self, catalog: Catalog, add: Add) -> None:
        first, second = add("t", b"v1"), add("t", b"v2")
        assert live(catalog) == (second.digest,)
        assert add("t", b"v1").live
        assert live(catalog) == (first.digest,)
        assert len(catalog.get_task(ME, "t").versions) == 2

    def test_without_make_live_the_old_version_goes_on(self, catalog: Catalog, add: Add) -> None:
        first = add("t", b"v1")
        second = add("t", b"v2", make_live=False)
        assert not second.live
        assert live(catalog) == (first.digest,)
        assert catalog.get_task(ME, "t").version(second.digest) == second

    def test_a_deleted_version_can_come_back(self, catalog: Catalog, add: Add) -> None:
        first = add("t", b"v1")
        add("t", b"v2")
        catalog.delete_version(ME, "t", first.digest)
        add("t", b"v1")
        assert live(catalog) == (first.digest,)
        assert not catalog.purge(first.digest), "the bytes are in service again"
        assert catalog.blobs.get(first.digest) == b"v1"
        assert catalog.retired() == ()

    def test_bytes_that_are_not_stored_are_not_registered(
        self, catalog: Catalog, here: str, manifest_json: Callable[[str], str]
    ) -> None:
        with pytest.raises(Unavailable) as caught:
            catalog.register(ME, "t", digest_of(b"v1"), manifest_json(here), 2, here)
        assert caught.value.reason == "BLOB_MISSING"
        assert catalog.list_tasks(ME).rows == ()

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "bottleneck"}'])
    def test_a_manifest_that_is_none_is_refused(self, catalog: Catalog, here: str, text: str) -> None:
        digest = digest_of(b"v1")
        catalog.blobs.put(b"v1", digest)
        with pytest.raises(InvalidAdapter) as caught:
            catalog.register(ME, "t", digest, text, 2, here)
        assert caught.value.reason == "MANIFEST_INVALID"

    def test_the_fingerprint_must_be_the_manifests(
        self, catalog: Catalog, here: str, elsewhere: str, manifest_json: Callable[[str], str]
    ) -> None:
        with pytest.raises(InvalidAdapter):
            catalog.register(ME, "t", digest_of(b"v1"), manifest_json(here), 2, elsewhere)


class TestTraffic:
    def test_rollback_goes_back_as_often_as_there_was_something(self, catalog: Catalog, add: Add) -> None:
        versions = [add("t", data) for data in (b"v1", b"v2", b"v3")]
        for version in reversed(versions[:2]):
            assert [v.digest for v in catalog.rollback(ME, "t").live] == [version.digest]
        before = catalog.get_task(ME, "t"), catalog.revision()
        with pytest.raises(FailedPrecondition) as caught:
            catalog.rollback(ME, "t")
        assert caught.value.reason == "NOTHING_EARLIER"
        assert (catalog.get_task(ME, "t"), catalog.revision()) == before

    def test_a_split_is_set_and_rolled_back(self, catalog: Catalog, add: Add) -> None:
        first, second = add("t", b"v1"), add("t", b"v2", make_live=False)
        task = catalog.set_traffic(ME, "t", [(first.digest, 9), (second.digest, 1)])
        assert set(task.traffic) == {Traffic(first.digest, 9), Traffic(second.digest, 1)}
        assert all(version.live for version in task.live)
        assert catalog.rollback(ME, "t").traffic == (Traffic(first.digest, 1),)

    def test_setting_what_is_set_changes_nothing(self, catalog: Catalog, add: Add) -> None:
        version = add("t", b"v1")
        before = catalog.get_task(ME, "t"), catalog.revision()
        catalog.set_traffic(ME, "t", [(version.digest, 1)])
        assert (catalog.get_task(ME, "t"), catalog.revision()) == before

    def test_only_ready_versions_of_the_task_take_traffic(self, catalog: Catalog, add: Add) -> None:
        mine, gone = add("t", b"v1"), add("t", b"v2", make_live=False)
        theirs = add("u", b"v3")
        catalog.delete_version(ME, "t", gone.digest)
        for digest in (theirs.digest, gone.digest, "0" * 64):
            with pytest.raises(NotFound, match="version not found"):
                catalog.set_traffic(ME, "t", [(mine.digest, 1), (digest, 1)])
        assert live(catalog) == (mine.digest,)


class TestEtag:
    def test_it_changes_with_every_change(self, catalog: Catalog, add: Add) -> None:
        first = add("t", b"v1")
        seen = [catalog.get_task(ME, "t").etag]
        second = add("t", b"v2", make_live=False)
        seen.append(catalog.get_task(ME, "t").etag)
        seen.append(catalog.set_traffic(ME, "t", [(second.digest, 1)]).etag)
        seen.append(catalog.rollback(ME, "t").etag)
        catalog.delete_version(ME, "t", second.digest)
        seen.append(catalog.get_task(ME, "t").etag)
        catalog.delete_task(ME, "t")
        assert add("t", b"v1") == catalog.get_task(ME, "t").version(first.digest)
        seen.append(catalog.get_task(ME, "t").etag)
        assert len(set(seen)) == len(seen)

    def test_a_stale_one_changes_nothing(self, catalog: Catalog, add: Add) -> None:
        first, second = add("t", b"v1"), add("t", b"v2", make_live=False)
        stale = catalog.get_task(ME, "t").etag
        catalog.set_traffic(ME, "t", [(second.digest, 1)])
        before = catalog.get_task(ME, "t"), catalog.revision()
        for change in (
            lambda: catalog.set_traffic(ME, "t", [(first.digest, 1)], stale),
            lambda: catalog.rollback(ME, "t", stale),
            lambda: catalog.delete_version(ME, "t", first.digest, stale),
            lambda: catalog.delete_task(ME, "t", stale),
        ):
            with pytest.raises(Aborted) as caught:
                change()
            assert caught.value.reason == "STALE_ETAG"
        assert (catalog.get_task(ME, "t"), catalog.revision()) == before

    def test_the_fresh_one_is_accepted(self, catalog: Catalog, add: Add) -> None:
        add("t", b"v1")
        add("t", b"v2")
        task = catalog.rollback(ME, "t", catalog.get_task(ME, "t").etag)
        catalog.delete_task(ME, "t", task.etag)


class TestDelete:
    def test_a_live_version_is_refused(self, catalog: Catalog, add: Add) -> None:
        version = add("t", b"v1")
        with pytest.raises(FailedPrecondition) as caught:
            catalog.delete_version(ME, "t", version.digest)
        assert caught.value.reason == "VERSION_LIVE"
        assert live(catalog) == (version.digest,)

    def test_a_deleted_version_is_not_rolled_back_to(self, catalog: Catalog, add: Add) -> None:
        first, second, third = (add("t", data) for data in (b"v1", b"v2", b"v3"))
        catalog.delete_version(ME, "t", second.digest)
        assert [v.digest for v in catalog.rollback(ME, "t").live] == [first.digest]
        assert [v.digest for v in catalog.list_versions(ME, "t").rows] == [third.digest, first.digest]

    def test_bytes_stay_until_purged(self, catalog: Catalog, add: Add) -> None:
        version = add("t", b"v1")
        catalog.delete_task(ME, "t")
        with pytest.raises(NotFound, match="task not found"):
            catalog.get_task(ME, "t")
        assert catalog.blobs.get(version.digest) == b"v1"
        assert catalog.retired() == (version.digest,)
        assert catalog.purge(version.digest)
        assert not catalog.blobs.exists(version.digest)
        assert catalog.retired() == ()
        assert not catalog.purge(version.digest)

    def test_bytes_another_task_serves_are_not_purged(self, catalog: Catalog, add: Add) -> None:
        digest = add("t", b"v1").digest
        add("t", b"v1", tenant="other")
        catalog.delete_task(ME, "t")
        assert not catalog.purge(digest)
        assert catalog.blobs.get(digest) == b"v1"

    def test_bytes_in_service_are_not_purged(self, catalog: Catalog, add: Add) -> None:
        digest = add("t", b"v1").digest
        assert not catalog.purge(digest)
        assert catalog.blobs.get(digest) == b"v1"

    def test_a_purge_cut_short_is_finished_by_the_next(
        self, catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = add("t", b"v1").digest
        catalog.delete_task(ME, "t")
        remove = catalog.blobs.delete

        def remove_and_die(digest: str) -> None:
            remove(digest)
            raise KeyboardInterrupt

        monkeypatch.setattr(catalog.blobs, "delete", remove_and_die)
        with pytest.raises(KeyboardInterrupt):
            catalog.purge(digest)
        monkeypatch.undo()
        assert catalog.retired() == (digest,)
        assert catalog.purge(digest)


class TestAnotherBackbone:
    @pytest.fixture
    def moved(self, catalog: Catalog, store: Path, add: Add, elsewhere: str) -> Catalog:
        """The store, opened by a server with another backbone than the one its tasks were registered on."""
        add("t", b"v1")
        return Catalog(store, backbone_fingerprint=elsewhere)

    def test_tasks_without_a_version_for_it_say_so_and_are_listed(self, moved: Catalog) -> None:
        (task,) = moved.list_tasks(ME).rows
        assert (task.unavailable_reason, task.traffic, len(task.versions)) == ("BACKBONE_CHANGED", (), 1)
        assert moved.snapshot().task(ME, "t") == task

    def test_each_backbone_has_its_own_pointer(
        self, catalog: Catalog, moved: Catalog, add: Add, elsewhere: str
    ) -> None:
        old = live(catalog)
        new = add("t", b"v2", backbone=elsewhere)
        assert not new.live, "not on the backbone of the catalog that answered"
        assert live(moved) == (new.digest,)
        assert live(catalog) == old

    def test_a_version_of_another_backbone_takes_no_traffic(self, moved: Catalog, add: Add) -> None:
        with pytest.raises(FailedPrecondition) as caught:
            moved.set_traffic(ME, "t", [(digest_of(b"v1"), 1)])
        assert caught.value.reason == "BACKBONE_CHANGED"

    def test_its_old_versions_can_be_deleted(self, catalog: Catalog, moved: Catalog, add: Add) -> None:
        second = add("t", b"v2")
        moved.delete_version(ME, "t", second.digest)
        task = catalog.get_task(ME, "t")
        assert (task.unavailable_reason, task.traffic) == ("NO_LIVE_VERSION", ()), "v1 must not come back by itself"


def test_a_task_nobody_made_live_says_so(catalog: Catalog, add: Add) -> None:
    add("t", b"v1", make_live=False)
    assert catalog.get_task(ME, "t").unavailable_reason == "NO_LIVE_VERSION"


def test_what_is_not_there_and_what_is_anothers_look_the_same(catalog: Catalog, add: Add) -> None:
    version = add("t", b"v1", tenant="other")
    answers = set()
    for task in ("t", "absent"):
        for call in (
            lambda task=task: catalog.get_task(ME, task),
            lambda task=task: catalog.list_versions(ME, task),
            lambda task=task: catalog.rollback(ME, task),
            lambda task=task: catalog.delete_task(ME, task),
            lambda task=task: catalog.delete_version(ME, task, version.digest),
            lambda task=task: catalog.set_traffic(ME, task, [(version.digest, 1)]),
            lambda task=task: catalog.snapshot().task(ME, task),
        ):
            with pytest.raises(NotFound) as caught:
                call()
            answers.add((caught.value.message, caught.value.reason))
    assert answers == {("task not found", "NOT_FOUND")}


@pytest.mark.parametrize(
    "name", ["", "T", "-a", "a-", ".a", "a..b", "../x", "a/b", "a\\b", "a\0", "a\n", "%2e%2e", "a" * 64, "аdmin", "a b"]
)
def test_malformed_ids_are_refused_everywhere(
    catalog: Catalog, here: str, manifest_json: Callable[[str], str], name: str
) -> None:
    digest = digest_of(b"v1")
    catalog.blobs.put(b"v1", digest)
    for call in (
        lambda: catalog.register(ME, name, digest, manifest_json(here), 2, here),
        lambda: catalog.register(name, "t", digest, manifest_json(here), 2, here),
        lambda: catalog.get_task(ME, name),
        lambda: catalog.list_tasks(name),
        lambda: catalog.list_versions(ME, name),
        lambda: catalog.rollback(name, "t"),
        lambda: catalog.delete_task(ME, name),
        lambda: catalog.record_failure(ME, name, "TRUNCATED"),
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
        assert catalog.snapshot().task(ME, "t").version(first.digest).manifest == first.manifest
        with pytest.raises(NotFound, match="version not found"):
            catalog.snapshot().task(ME, "t").version("0" * 64)


class TestAudit:
    def test_every_change_is_written_down(self, catalog: Catalog, add: Add) -> None:
        first = add("t", b"v1")
        add("t", b"v2")
        catalog.rollback(ME, "t")
        catalog.record_failure(ME, "t", "NON_FINITE")
        catalog.delete_task(ME, "t")
        rows = catalog.audit(ME)
        assert [row.action for row in rows] == ["delete_task", "fail", "rollback", "register", "register"]
        assert [row.revision for row in rows] == [4, 3, 3, 2, 1]
        assert (rows[-1].digest, rows[-1].detail) == (first.digest, "live")
        assert rows[1].detail == "NON_FINITE"
        assert catalog.audit("other") == ()

    def test_refusals_serve_nothing_and_do_not_pile_up(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(changes, "MAX_FAILURES_PER_TENANT", 3)
        catalog.record_failure("other", "t", "x")
        for i in range(6):
            catalog.record_failure(ME, "t", f"{i}" * 10_000)
        assert [row.detail for row in catalog.audit(ME)] == [f"{i}" * 512 for i in (5, 4, 3)]
        assert len(catalog.audit("other")) == 1
        assert catalog.revision() == 0
        assert catalog.list_tasks(ME).rows == ()


class TestTrouble:
    def test_an_error_in_the_middle_undoes_all_of_it(
        self, catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add("t", b"v1")
        before = catalog.get_task(ME, "t"), catalog.revision(), catalog.audit(ME), catalog.snapshot()

        def fail(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(changes, "record", fail)
        for change in (lambda: add("t", b"v2"), lambda: add("new", b"v3"), lambda: catalog.delete_task(ME, "t")):
            with pytest.raises(KeyboardInterrupt):
                change()
        after = catalog.get_task(ME, "t"), catalog.revision(), catalog.audit(ME), catalog.snapshot()
        assert after == before
        assert catalog.list_tasks(ME).rows == before[:1]

    def test_a_full_disk_is_said_and_changes_nothing(self, catalog: Catalog, add: Add, store: Path, here: str) -> None:
        add("t", b"v1")

        def shrink(connection: sqlite3.Connection, _: object) -> None:
            connection.execute("PRAGMA max_page_count = 1")

        event.listen(Engine, "connect", shrink)
        try:
            full = Catalog(store, backbone_fingerprint=here)
            full.revision()
        finally:
            event.remove(Engine, "connect", shrink)

        def fill() -> None:
            for _ in range(1000):
                full.record_failure(ME, "t", "x" * 500)

        with pytest.raises(StoreFull):
            fill()
        assert full.get_task(ME, "t") == catalog.get_task(ME, "t")
        full.close()

    def test_a_locked_catalog_asks_to_try_again(self, store: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database, "_BUSY_TIMEOUT_MS", 10)
        catalog = Catalog(store, backbone_fingerprint=here)
        other = sqlite3.connect(store / "catalog.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            catalog.record_failure(ME, "t", "x")
        assert (caught.value.reason, caught.value.retry_after_s) == ("CATALOG_BUSY", 1.0)
        assert catalog.list_tasks(ME).rows == (), "readers are not held up"
        other.execute("ROLLBACK")
        catalog.record_failure(ME, "t", "x")
        other.close()
        catalog.close()

    def test_lookups_of_a_large_catalog_read_no_whole_table(self, catalog: Catalog) -> None:
        tables = (
            "SELECT digest FROM versions WHERE state = 'RETIRED'",
            "SELECT * FROM versions WHERE task_id = 1 AND state = 'READY'",
            "SELECT id FROM tasks WHERE tenant = 'a' AND task > 'b' ORDER BY task LIMIT 2",
            "SELECT tenant, task FROM audit WHERE revision > 7",
            "DELETE FROM tasks WHERE id = 1",
        )
        with catalog._database.read() as connection:
            for statement in tables:
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}"):
                    assert row.detail.startswith("SEARCH") or "USING COVERING INDEX" in row.detail, statement

    def test_it_is_durable_by_configuration(self, catalog: Catalog) -> None:
        with catalog._database.read() as connection:
            found = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]
        assert found == ["wal", 2, 1, 5000]


class TestAtOnce:
    def test_threads_lose_no_change(self, catalog: Catalog, add: Add) -> None:
        with ThreadPoolExecutor(8) as threads:
            versions = list(threads.map(lambda i: add(f"t{i % 4}", b"v%d" % i), range(40)))
        assert catalog.revision() == 40
        for i in range(4):
            task = catalog.get_task(ME, f"t{i}")
            assert set(task.versions) == {v.digest for v in versions[i::4]}

    def test_of_two_changes_of_one_etag_one_wins(self, catalog: Catalog, add: Add) -> None:
        versions = [add("t", b"v%d" % i, make_live=False) for i in range(8)]
        etag, start = catalog.get_task(ME, "t").etag, threading.Barrier(8)

        def change(version: VersionRow) -> bool:
            start.wait()
            try:
                catalog.set_traffic(ME, "t", [(version.digest, 1)], etag)
            except Aborted:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(change, versions)) == 1

    def test_registering_and_purging_the_same_bytes_never_loses_them(self, catalog: Catalog, add: Add) -> None:
        digest, stop = digest_of(b"v1"), threading.Event()

        def purge() -> None:
            while not stop.is_set():
                catalog.purge(digest)

        purger = threading.Thread(target=purge)
        purger.start()
        try:
            for _ in range(30):
                try:
                    add("t", b"v1")
                except Unavailable:  # purged between the put and the registration, and said so
                    continue
                assert catalog.blobs.get(digest) == b"v1"
                catalog.delete_task(ME, "t")
        finally:
            stop.set()
            purger.join()

    def test_another_process_may_write_too(self, catalog: Catalog, store: Path, add: Add) -> None:
        add("t", b"v1")
        program = (
            "import pathlib, sys\n"
            "from adamix_server.catalog.store import Catalog\n"
            "catalog = Catalog(pathlib.Path(sys.argv[1]), backbone_fingerprint='a' * 64)\n"
            "for i in range(20): catalog.record_failure('default', 't', 'x')\n"
            "catalog.delete_task('default', 't')\n"
        )
        child = subprocess.Popen([sys.executable, "-I", "-c", program, str(store)])
        for i in range(20):
            add(f"u{i}", b"v1")
        assert child.wait(30) == 0
        assert len(catalog.audit(ME)) == 42
        assert len(catalog.snapshot().tasks) == 20


def test_the_catalog_loads_neither_torch_nor_grpc() -> None:
    program = (
        "import sys, adamix_server.catalog.recovery\n"
        "print([m for m in ('torch', 'grpc', 'transformers', 'google') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
