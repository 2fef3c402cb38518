"""The catalog against a model of dicts and lists, under any order of calls, reopenings and recoveries."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from adamix.errors import Aborted, AdamixError, FailedPrecondition, InvalidRequest, NotFound
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import registration

TENANTS = st.sampled_from(["one", "two"])
TASKS = st.sampled_from(["a", "b"])
DATA = st.sampled_from([b"v1", b"v2", b"v3"])
REQUEST_IDS = st.sampled_from(["", "first", "second"])

Name = tuple[str, str]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class CatalogMachine(RuleBasedStateMachine):
    """`versions` holds each task's READY digests, `pointers` the digests made live one after the other.

    `answers` holds what was asked under a tenant's request id, and what was answered.
    """

    def __init__(self, here: str, manifest_json: str, memory: str | None) -> None:
        super().__init__()
        self.here, self.manifest_json = here, manifest_json
        self.store = Path(tempfile.mkdtemp(dir=memory))
        self.catalog = Catalog(self.store, backbone_fingerprint=here)
        self.versions: dict[Name, set[str]] = {}
        self.pointers: dict[Name, list[str]] = {}
        self.retired: set[str] = set()
        self.pins: set[tuple[Name, str]] = set()
        self.answers: dict[tuple[str, str], tuple[object, object]] = {}

    def teardown(self) -> None:
        self.catalog.close()
        shutil.rmtree(self.store)

    @initialize()
    def recovered(self) -> None:
        recover(self.store)
        for tenant in ("one", "two"):
            self.catalog.tenants.create(tenant)

    @rule(tenant=TENANTS, task=TASKS, data=DATA, make_live=st.booleans(), request_id=REQUEST_IDS)
    def register(self, tenant: str, task: str, data: bytes, make_live: bool, request_id: str) -> None:
        name, digest = (tenant, task), digest_of(data)
        asked = (task, digest, make_live)
        self.catalog.blobs.put(data, digest)

        def register() -> tuple[VersionRow, bool]:
            return self.catalog.register(
                registration(tenant, task, digest, self.manifest_json, len(data), self.here, make_live, request_id)
            )

        if (tenant, request_id) in self.answers:
            earlier, answer = self.answers[tenant, request_id]
            before = self.catalog.snapshot()
            if asked == earlier:
                assert register() == answer
            else:
                with pytest.raises(InvalidRequest):
                    register()
            assert self.catalog.snapshot() is before
            return
        version, exists = register()
        if request_id:
            self.answers[tenant, request_id] = asked, (version, exists)
        known = self.versions.setdefault(name, set())
        assert exists == (digest in known)
        known.add(digest)
        pointer = self.pointers.setdefault(name, [])
        if make_live and pointer[-1:] != [digest]:
            pointer.append(digest)
        assert version.live == (pointer[-1:] == [digest])

    @rule(tenant=TENANTS, task=TASKS, data=DATA)
    def set_traffic(self, tenant: str, task: str, data: bytes) -> None:
        name, digest = (tenant, task), digest_of(data)
        with self.expect(NotFound if digest not in self.versions.get(name, ()) else None):
            self.catalog.set_traffic(tenant, task, [(digest, 1)])
            if self.pointers[name][-1:] != [digest]:
                self.pointers[name].append(digest)

    @rule(tenant=TENANTS, task=TASKS)
    def rollback(self, tenant: str, task: str) -> None:
        name = (tenant, task)
        refusal = NotFound if name not in self.versions else FailedPrecondition
        with self.expect(refusal if len(self.pointers.get(name, ())) < 2 else None):
            self.catalog.rollback(tenant, task)
            self.pointers[name].pop()

    @rule(tenant=TENANTS, task=TASKS, data=DATA)
    def delete_version(self, tenant: str, task: str, data: bytes) -> None:
        name, digest = (tenant, task), digest_of(data)
        refusal: type[AdamixError] | None = None
        if digest not in self.versions.get(name, ()):
            refusal = NotFound
        elif self.pointers[name][-1:] == [digest]:
            refusal = FailedPrecondition
        with self.expect(refusal):
            self.catalog.delete_version(tenant, task, digest)
            self.versions[name].remove(digest)
            self.pins.discard((name, digest))
            self.retired.add(digest)
            left = [other for other in self.pointers[name] if other != digest]
            self.pointers[name] = [d for i, d in enumerate(left) if left[i + 1 : i + 2] != [d]]

    @rule(tenant=TENANTS, task=TASKS)
    def delete_task(self, tenant: str, task: str) -> None:
        name = (tenant, task)
        with self.expect(None if name in self.versions else NotFound):
            self.catalog.delete_task(tenant, task)
            self.retired |= self.versions.pop(name)
            self.pins = {pin for pin in self.pins if pin[0] != name}
            del self.pointers[name]

    @rule(tenant=TENANTS, task=TASKS, data=DATA, pinned=st.booleans())
    def pin(self, tenant: str, task: str, data: bytes, pinned: bool) -> None:
        name, digest = (tenant, task), digest_of(data)
        with self.expect(NotFound if digest not in self.versions.get(name, ()) else None):
            assert self.catalog.set_pinned(tenant, task, digest, pinned).pinned == pinned
            (self.pins.add if pinned else self.pins.discard)((name, digest))

    @rule(tenant=TENANTS, task=TASKS)
    def stale_change(self, tenant: str, task: str) -> None:
        with self.expect(Aborted if (tenant, task) in self.versions else NotFound):
            self.catalog.rollback(tenant, task, "stale")

    @rule(data=DATA)
    def purge(self, data: bytes) -> None:
        digest = digest_of(data)
        assert self.catalog.purge(digest) == (digest in self.retired and digest not in self.in_service())
        self.retired.discard(digest)

    @rule()
    def restart(self) -> None:
        self.catalog.close()
        assert recover(self.store).missing == ()
        self.retired.clear()
        assert set(self.catalog.blobs.digests()) == self.in_service()
        self.catalog = Catalog(self.store, backbone_fingerprint=self.here)

    @invariant()
    def agrees_with_the_model(self) -> None:
        snapshot = self.catalog.snapshot()
        assert {name: set(task.versions) for name, task in snapshot.tasks.items()} == self.versions
        for name, task in snapshot.tasks.items():
            assert [version.digest for version in task.live] == self.pointers[name][-1:]
            assert task.unavailable_reason == ("" if self.pointers[name] else "NO_LIVE_VERSION")
            assert self.catalog.get_task(*name) == task
        assert {(name, row.digest) for name, task in snapshot.tasks.items() for row in task.ready if row.pinned} == (
            self.pins
        )
        assert set(self.catalog.pinned()) == {digest for _, digest in self.pins}
        for digest in map(digest_of, (b"v1", b"v2", b"v3")):
            assert set(self.catalog.tasks_with(digest)) == {
                n for n, digests in self.versions.items() if digest in digests
            }
        assert set(self.catalog.retired()) == self.retired
        assert self.in_service() <= set(self.catalog.blobs.digests())
        assert snapshot.revision == self.catalog.revision()

    def in_service(self) -> set[str]:
        return set().union(*self.versions.values())

    @contextlib.contextmanager
    def expect(self, refusal: type[AdamixError] | None):  # type: ignore[no-untyped-def]
        """Runs the block; a refusal must leave the revision and every task as they were."""
        if refusal is None:
            before = self.catalog.revision()
            yield
            assert self.catalog.revision() >= before
            return
        before_snapshot = self.catalog.snapshot()
        with pytest.raises(refusal):
            yield
        assert self.catalog.snapshot() is before_snapshot


def test_any_order_of_calls_agrees_with_the_model(
    here: str, manifest_json: Callable[[str], str], memory: str | None
) -> None:
    class Machine(CatalogMachine):
        def __init__(self) -> None:
            super().__init__(here, manifest_json(here), memory)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
