"""Tasks, versions and traffic: what each mutation does and what it refuses."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.errors import Aborted, FailedPrecondition, InvalidAdapter, NotFound, Unavailable
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.rows import Traffic, VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import registration

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
        assert version.head.num_labels == 2
        task = catalog.get_task(ME, "t")
        assert task.traffic == (Traffic(version.digest, 1),)
        assert task.unavailable_reason == ""
        assert task.live == (version,)
        assert task.create_time <= version.create_time <= task.update_time

    def test_the_same_bytes_again_are_ok_and_change_nothing(
        self, catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
    ) -> None:
        first = add("t", b"v1")
        before = catalog.get_task(ME, "t"), catalog.revision(), catalog.audit_log.page(ME).rows
        again, exists = catalog.register(registration(ME, "t", first.digest, manifest_json(here), 2, here))
        assert exists
        assert again == first
        assert (catalog.get_task(ME, "t"), catalog.revision(), catalog.audit_log.page(ME).rows) == before

    def test_bytes_another_task_has_are_new_to_this_one(
        self, catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
    ) -> None:
        digest = add("t", b"v1").digest
        catalog.tenants.create("other")
        for tenant, task in ((ME, "u"), ("other", "t")):
            assert not catalog.register(registration(tenant, task, digest, manifest_json(here), 2, here))[1]

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
            catalog.register(registration(ME, "t", digest_of(b"v1"), manifest_json(here), 2, here))
        assert caught.value.reason == "BLOB_MISSING"
        assert catalog.list_tasks(ME).rows == ()

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "bottleneck"}'])
    def test_a_manifest_that_is_none_is_refused(self, catalog: Catalog, here: str, text: str) -> None:
        digest = digest_of(b"v1")
        catalog.blobs.put(b"v1", digest)
        with pytest.raises(InvalidAdapter) as caught:
            catalog.register(registration(ME, "t", digest, text, 2, here))
        assert caught.value.reason == "MANIFEST_INVALID"

    def test_the_fingerprint_must_be_the_manifests(
        self, catalog: Catalog, here: str, elsewhere: str, manifest_json: Callable[[str], str]
    ) -> None:
        with pytest.raises(InvalidAdapter):
            catalog.register(registration(ME, "t", digest_of(b"v1"), manifest_json(here), 2, elsewhere))


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

    def test_versions_that_answer_differently_cannot_share(self, catalog: Catalog, add: Add) -> None:
        two, three = add("t", b"v1"), add("t", b"v2", make_live=False, labels=3)
        before = catalog.get_task(ME, "t"), catalog.revision()
        with pytest.raises(FailedPrecondition) as caught:
            catalog.set_traffic(ME, "t", [(two.digest, 1), (three.digest, 1)])
        assert caught.value.reason == "HEADS_DIFFER"
        assert (catalog.get_task(ME, "t"), catalog.revision()) == before
        assert catalog.set_traffic(ME, "t", [(three.digest, 1)]).live[0].head.num_labels == 3

    def test_a_split_answers_by_weight(self, catalog: Catalog, add: Add) -> None:
        weights = {
            add("t", data, make_live=False).digest: weight for data, weight in ((b"v1", 1), (b"v2", 6), (b"v3", 3))
        }
        task = catalog.set_traffic(ME, "t", weights.items())
        # Ten evenly spaced draws meet every version exactly as often as its weight says.
        picked = [task.pick(lambda i=i: i / 10).digest for i in range(10)]  # type: ignore[misc]
        assert {digest: picked.count(digest) for digest in weights} == weights
        assert task.pick(lambda: 1 - 2**-53).digest == max(weights), "the last of them by digest"
        assert task.heaviest.digest == digest_of(b"v2")

    def test_a_single_version_needs_no_draw(self, catalog: Catalog, add: Add) -> None:
        version = add("t", b"v1")

        def draw() -> float:
            raise AssertionError

        assert catalog.get_task(ME, "t").pick(draw) == version

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
