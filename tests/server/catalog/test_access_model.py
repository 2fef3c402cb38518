"""Tenants, keys and grants against a model of sets, under any order of changes.

And snapshots that follow the change log against those that read everything.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from adamix.errors import AdamixError, FailedPrecondition, InvalidRequest, NotFound, QuotaExceeded
from adamix_server.access import api_keys
from adamix_server.access.quotas import Quotas
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.snapshots import Snapshots
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import make_manifest_json, registration

ME, HERE = "default", "a" * 64
TENANTS = st.sampled_from(["default", "one", "two"])
TASKS = st.sampled_from(["a", "b"])
DATA = st.sampled_from([b"1", b"22", b"333"])
LIMITS = st.none() | st.integers(0, 4)


class AccessMachine(RuleBasedStateMachine):
    """`files` holds the data of each task's versions; `keys` whether each is in force, with its tenant."""

    def __init__(self, memory: str | None) -> None:
        super().__init__()
        self.store = Path(tempfile.mkdtemp(dir=memory))
        self.catalog = Catalog(self.store, backbone_fingerprint=HERE)
        self.tenants: dict[str, tuple[int, Quotas]] = {ME: (1, Quotas())}
        self.files: dict[tuple[str, str], set[bytes]] = {}
        self.pins: set[tuple[str, str, bytes]] = set()
        self.keys: dict[str, tuple[str, bool]] = {}
        self.grants: set[tuple[str, str, str]] = set()

    def teardown(self) -> None:
        self.catalog.close()
        shutil.rmtree(self.store)

    @initialize()
    def recovered(self) -> None:
        recover(self.store)

    @rule(tenant=TENANTS, weight=st.integers(1, 3))
    def create(self, tenant: str, weight: int) -> None:
        if self.done(FailedPrecondition if tenant in self.tenants else None, "tenants.create", tenant, weight=weight):
            self.tenants[tenant] = weight, Quotas()

    @rule(tenant=TENANTS, weight=st.integers(1, 3), tasks=LIMITS, versions=LIMITS, size=LIMITS, pins=LIMITS)
    def update(
        self, tenant: str, weight: int, tasks: int | None, versions: int | None, size: int | None, pins: int | None
    ) -> None:
        quotas = Quotas(max_tasks=tasks, max_versions_per_task=versions, max_stored_bytes=size, pinned_versions=pins)
        refusal = None if tenant in self.tenants else NotFound
        if self.done(refusal, "tenants.update", tenant, weight=weight, quotas=quotas):
            self.tenants[tenant] = weight, quotas

    @rule(tenant=TENANTS, force=st.booleans())
    def delete(self, tenant: str, force: bool) -> None:
        has_tasks = any(owner == tenant for owner, _ in self.files)
        refusal = FailedPrecondition if tenant == ME or (has_tasks and not force) else None
        if self.done(refusal if tenant in self.tenants else NotFound, "tenants.delete", tenant, force=force):
            del self.tenants[tenant]
            self.files = {name: data for name, data in self.files.items() if name[0] != tenant}
            self.pins = {pin for pin in self.pins if pin[0] != tenant}
            self.keys = {key: value for key, value in self.keys.items() if value[0] != tenant}
            self.grants = {grant for grant in self.grants if tenant not in (grant[0], grant[2])}

    @rule(tenant=TENANTS)
    def create_key(self, tenant: str) -> None:
        _, key = api_keys.make()
        refusal = None if tenant in self.tenants else NotFound
        if self.done(refusal, "keys.create", tenant, key, rights={"infer"}):
            self.keys[key.id] = tenant, True

    @rule(tenant=TENANTS, draw=st.data())
    def revoke_key(self, tenant: str, draw: st.DataObject) -> None:
        key_id = draw.draw(st.sampled_from([*self.keys, "a" * 12]))
        owner = self.keys.get(key_id, ("", False))[0]
        if self.done(None if owner == tenant else NotFound, "keys.revoke", key_id, tenant=tenant):
            self.keys[key_id] = tenant, False

    @rule(owner=TENANTS, task=TASKS, tenant=TENANTS)
    def add_grant(self, owner: str, task: str, tenant: str) -> None:
        refusal: type[AdamixError] | None = None
        if (owner, task) not in self.files or tenant not in self.tenants:
            refusal = NotFound
        elif owner == tenant:
            refusal = InvalidRequest
        if self.done(refusal, "grants.add", owner, task, tenant):
            self.grants.add((owner, task, tenant))

    @rule(owner=TENANTS, task=TASKS, tenant=TENANTS)
    def remove_grant(self, owner: str, task: str, tenant: str) -> None:
        grant = (owner, task, tenant)
        if self.done(None if grant in self.grants else NotFound, "grants.remove", *grant):
            self.grants.remove(grant)

    @rule(tenant=TENANTS, task=TASKS, data=DATA)
    def register(self, tenant: str, task: str, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self.catalog.blobs.put(data, digest)
        asked = registration(tenant, task, digest, make_manifest_json(HERE), len(data), HERE)
        if self.done(self.refusal_to_register(tenant, task, data), "register", asked):
            self.files.setdefault((tenant, task), set()).add(data)

    @rule(tenant=TENANTS, task=TASKS, data=DATA)
    def pin(self, tenant: str, task: str, data: bytes) -> None:
        pin = (tenant, task, data)
        refusal: type[AdamixError] | None = None
        if data not in self.files.get((tenant, task), ()):
            refusal = NotFound
        elif pin not in self.pins and not self.allows(tenant, "pinned_versions", self.pins_of(tenant), 1):
            refusal = QuotaExceeded
        if self.done(refusal, "set_pinned", tenant, task, hashlib.sha256(data).hexdigest(), True):
            self.pins.add(pin)

    @rule(tenant=TENANTS, task=TASKS)
    def delete_task(self, tenant: str, task: str) -> None:
        name = (tenant, task)
        if self.done(None if name in self.files else NotFound, "delete_task", *name):
            del self.files[name]
            self.pins = {pin for pin in self.pins if pin[:2] != name}
            self.grants = {grant for grant in self.grants if grant[:2] != name}

    @invariant()
    def agrees_with_the_model(self) -> None:
        snapshot = self.catalog.snapshot()
        access = snapshot.access
        assert {name: (row.weight, row.quotas) for name, row in access.tenants.items()} == self.tenants
        assert {key: (row.tenant, row.revoke_time_us is None) for key, row in access.keys.items()} == self.keys
        assert access.grants == self.grants
        assert {name: len(row.ready) for name, row in snapshot.tasks.items()} == {
            name: len(data) for name, data in self.files.items()
        }
        assert Snapshots(self.catalog._database, HERE).newest() == snapshot

    def refusal_to_register(self, tenant: str, task: str, data: bytes) -> type[AdamixError] | None:
        if tenant not in self.tenants:
            return NotFound
        versions = self.files.get((tenant, task), set())
        if data in versions:
            return None
        files = set().union(*(data for (owner, _), data in self.files.items() if owner == tenant))
        tasks = sum(1 for owner, _ in self.files if owner == tenant)
        is_allowed = (
            (bool(versions) or self.allows(tenant, "max_tasks", tasks, 1))
            and self.allows(tenant, "max_versions_per_task", len(versions), 1)
            and (data in files or self.allows(tenant, "max_stored_bytes", sum(map(len, files)), len(data)))
        )
        return None if is_allowed else QuotaExceeded

    def allows(self, tenant: str, quota: str, used: int, wanted: int) -> bool:
        limit = getattr(self.tenants[tenant][1], quota)
        return limit is None or used + wanted <= limit

    def pins_of(self, tenant: str) -> int:
        return sum(1 for owner, _, _ in self.pins if owner == tenant)

    def done(self, refusal: type[AdamixError] | None, method: str, *args: Any, **kwargs: Any) -> bool:
        """Call it; whether it was done. A refusal must leave everything as it was."""
        act: Callable[..., object] = self.catalog  # type: ignore[assignment]
        for name in method.split("."):
            act = getattr(act, name)
        if refusal is None:
            act(*args, **kwargs)
            return True
        before = self.catalog.snapshot()
        with pytest.raises(refusal):
            act(*args, **kwargs)
        assert self.catalog.snapshot() is before
        return False


def machine(memory: str | None) -> type[AccessMachine]:
    class Machine(AccessMachine):
        def __init__(self) -> None:
            super().__init__(memory)

    return Machine


def test_any_order_of_changes_agrees_with_the_model(memory: str | None) -> None:
    check(memory, 8)


@pytest.mark.long
def test_many_orders_of_changes_agree_with_the_model(memory: str | None) -> None:
    check(memory, 300)


def check(memory: str | None, examples: int) -> None:
    run_state_machine_as_test(
        machine(memory),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
