"""A store with tenants, their keys and their tasks, made before a server uses it."""

import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import canonical_json
from adamix_bench.serving.synthesis import make_task
from adamix_server.access import api_keys
from adamix_server.access.quotas import DEFAULT_SHARES, NO_QUOTAS, Quotas, Shares
from adamix_server.access.rights import ROLES
from adamix_server.catalog.rows import Registration
from adamix_server.catalog.store import Catalog
from adamix_server.config import DEFAULT_TENANT

_WRITERS, _FILES_AT_ONCE = 4, 32


@dataclass(frozen=True, kw_only=True)
class Member:
    """A tenant to be made.

    Attributes:
        tasks: by owner of the adapters, how many of them it has as tasks of its own. What two tenants have of one
            owner is the same bytes.
        keys: how many it is given.
    """

    shares: Shares = DEFAULT_SHARES
    quotas: Quotas = NO_QUOTAS
    tasks: Mapping[str, int] = field(default_factory=dict)
    keys: int = 1


@dataclass(frozen=True)
class Keys:
    """Secrets, as they are sent. `operator` may do everything."""

    of: Mapping[str, tuple[str, ...]] = field(repr=False)
    operator: str = field(repr=False)

    def first(self, tenant: str) -> str:
        return self.of[tenant][0]


def task_name(owner: str, number: int) -> str:
    return f"{owner}-{number:05d}"


def fill(store: Path, spec: BackboneSpec, members: Mapping[str, Member], seed: int) -> Keys:
    """Make a store with these tenants. Raises StoreFull when there is no room on the disk."""
    owners = _first_numbers(members.values())
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)

    def put(job: tuple[str, str, int]) -> None:
        tenant, owner, number = job
        task = make_task(spec, owners[owner] + number, seed)
        digest = hashlib.sha256(task.data).hexdigest()
        catalog.blobs.put(task.data, digest)
        catalog.register(
            Registration(
                tenant=tenant,
                task=task_name(owner, number),
                digest=digest,
                manifest_json=canonical_json(task.manifest.to_json()),
                num_bytes=len(task.data),
                backbone_fingerprint=spec.fingerprint,
            )
        )

    try:
        keys: dict[str, tuple[str, ...]] = {}
        for tenant, member in members.items():
            if tenant != DEFAULT_TENANT:
                shares = member.shares
                catalog.tenants.create(
                    tenant, weight=shares.weight, service_class=shares.service_class, quotas=member.quotas
                )
            keys[tenant] = tuple(_key(catalog, tenant, "caller") for _ in range(member.keys))
        jobs = [
            (tenant, owner, number)
            for tenant, member in members.items()
            for owner, count in member.tasks.items()
            for number in range(count)
        ]
        # A pool takes in all it is given at once: a few files at a time.
        with ThreadPoolExecutor(_WRITERS) as writers:
            left = iter(jobs)
            while some := list(islice(left, _FILES_AT_ONCE)):
                list(writers.map(put, some))
        return Keys(keys, _key(catalog, DEFAULT_TENANT, "operator"))
    finally:
        catalog.close()


def _key(catalog: Catalog, tenant: str, role: str) -> str:
    secret, key = api_keys.make()
    catalog.keys.create(tenant, key, rights=ROLES[role], display_name="benchmark")
    return secret


def _first_numbers(members: Collection[Member]) -> dict[str, int]:
    """Where the adapters of each owner begin among all of a seed."""
    most: dict[str, int] = {}
    for member in members:
        for owner, count in member.tasks.items():
            most[owner] = max(most.get(owner, 0), count)
    numbers, first = {}, 0
    for owner, count in most.items():
        numbers[owner] = first
        first += count
    return numbers
