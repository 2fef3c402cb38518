"""Catalogs with versions in them, put there without a front end."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from adamix.errors import FailedPrecondition
from adamix.files import adapter_file
from adamix.files.manifest import HeadSpec
from adamix.files.tensors import canonical_json
from adamix_server.access.entries import Entry
from adamix_server.catalog.rows import Registration
from adamix_server.catalog.store import Catalog
from adamix_testing.manifests import make_manifest, make_spec


def make_manifest_json(fingerprint: str, labels: int = 2) -> str:
    """What the catalog keeps of a classifier on the backbone with this fingerprint."""
    head = HeadSpec(type="classification", pooling="mean", num_labels=labels)
    return canonical_json(make_manifest(make_spec(fingerprint=fingerprint), head).to_json())


def registration(
    tenant: str,
    task: str,
    digest: str,
    manifest_json: str,
    num_bytes: int,
    backbone_fingerprint: str,
    make_live: bool = True,
    request_id: str = "",
) -> Registration:
    """What `Catalog.register` takes."""
    return Registration(
        tenant=tenant,
        task=task,
        digest=digest,
        manifest_json=manifest_json,
        num_bytes=num_bytes,
        backbone_fingerprint=backbone_fingerprint,
        make_live=make_live,
        request_id=request_id,
    )


def make_tenant(catalog: Catalog, tenant: str) -> None:
    """One that is there stays as it is."""
    with suppress(FailedPrecondition):
        catalog.tenants.create(tenant)


def make_store(store: Path) -> None:
    """What the supervisor has made of a directory before any child starts; one that is a store stays as it is."""
    Catalog(store, backbone_fingerprint="0" * 64).close()


def register(
    store: Path, task: str, data: bytes, *, here: str, tenant: str = "default", fingerprint: str | None = None
) -> str:
    """Put the file of an adapter into the catalog of a server whose backbone is `here`; gives its digest.

    `fingerprint` is the backbone that the catalog says it is for; by default the one that its manifest says.
    """
    digest = hashlib.sha256(data).hexdigest()
    catalog = Catalog(store, backbone_fingerprint=here)
    catalog.blobs.put(data, digest)
    manifest = adapter_file.decode(data).manifest
    backbone = fingerprint or manifest.backbone.fingerprint
    make_tenant(catalog, tenant)
    manifest_json = json.dumps(manifest.to_json())
    catalog.register(registration(tenant, task, digest, manifest_json, len(data), backbone))
    catalog.close()
    return digest


def register_many(store: Path, tasks: Iterable[str], data: bytes, *, here: str) -> None:
    """The same file as the version of many tasks."""
    digest = hashlib.sha256(data).hexdigest()
    catalog = Catalog(store, backbone_fingerprint=here)
    catalog.blobs.put(data, digest)
    manifest_json = json.dumps(adapter_file.decode(data).manifest.to_json())
    for task in tasks:
        catalog.register(registration("default", task, digest, manifest_json, len(data), here))
    catalog.close()


class Seed(Protocol):
    """The fixture `seed`: (task, bytes) -> digest, put into the catalog before the front end starts."""

    def __call__(self, task: str, data: bytes, *, tenant: str = "default", fingerprint: str | None = None) -> str: ...


def write_down(catalog: Catalog, detail: str = "x", *, tenant: str = "default", task: str = "t") -> None:
    """An entry of the audit, which changes nothing that is served: that an adapter was refused."""
    entry = Entry.of(
        1_000_000,
        tenant=tenant,
        resource=f"tenants/{tenant}/tasks/{task}",
        code="INVALID_ARGUMENT",
        reason="TRUNCATED",
        detail=detail,
    )
    catalog.audit_log.append([entry])
