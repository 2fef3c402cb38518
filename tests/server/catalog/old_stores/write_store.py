"""Writes a store as the adamix it runs under writes one, and what that adamix answers from it.

The stores beside it were written by it and are never written again: `schema_1` by the commit before
ae3a30c, `schema_2` by e73c0bd, `schema_3` by c14ddd5, `schema_4` by b6b3c07. Only `answers` still runs, in
`test_old_stores.py`: a store must say tomorrow what it said on the day it was written.

Usage: write_store.py DIRECTORY
"""

import hashlib
import json
import shutil
import sqlite3
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from adamix.files.adapter_file import decode, encode
from adamix.files.manifest import BackboneRef, HeadSpec, Manifest, TrainingRecord
from adamix.files.tensors import TensorData, canonical_json
from adamix_server.access.entries import Entry
from adamix_server.catalog import changes
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import Registration
from adamix_server.catalog.schema import SCHEMA_VERSION
from adamix_server.catalog.store import Catalog

HERE, ELSEWHERE = "a" * 64, "b" * 64
TENANTS = ("default", "other")
# 2026-11-30; each look at the clock takes a second.
STARTED_US = 1_796_000_000_000_000
HIDDEN, LAYERS = 8, 2
ROW = ("tenant", "task", "digest", "state", "create_time_us", "num_bytes", "backbone_fingerprint", "live")
LABELS = {"0": "no", "1": "maybe", "2": "yes"}
# (tenant, request id, task, seed, make_live)
ASKED = [
    ("default", "first", "reviews", 0, True),
    ("default", "beside", "reviews", 2, False),
    ("other", "first", "reviews", 0, True),
    ("default", "gone", "deleted", 5, True),
]


def adapter(seed: int, backbone: str = HERE) -> bytes:
    """A valid adapter of a BERT of two layers of width 8; seeds differ in weights, labels and length."""
    manifest = Manifest(
        kind="bottleneck",
        activation="gelu",
        scaling=1.0,
        backbone=BackboneRef(
            model_type="bert",
            fingerprint=backbone,
            tokenizer_fingerprint="b" * 64,
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            name="tiny",
        ),
        head=HeadSpec(type="classification", pooling="mean", num_labels=3, id2label=LABELS if seed % 2 == 0 else None),
        max_length=16 + seed,
        training=TrainingRecord(method="adamix", seed=seed),
    )
    shapes = {
        "layers.0.mlp_out.down_proj.weight": (2, HIDDEN),
        "layers.0.mlp_out.down_proj.bias": (2,),
        "layers.0.mlp_out.up_proj.weight": (HIDDEN, 2),
        "layers.0.mlp_out.up_proj.bias": (HIDDEN,),
        "head.out_proj.weight": (3, HIDDEN),
        "head.out_proj.bias": (3,),
    }
    random = np.random.default_rng(seed)
    tensors = {
        name: TensorData("F32", random.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()
    }
    return encode(manifest, tensors)


def registration(
    tenant: str, task: str, seed: int, make_live: bool, backbone: str = HERE, request_id: str = ""
) -> Registration:
    data = adapter(seed, backbone)
    return Registration(
        tenant=tenant,
        task=task,
        digest=hashlib.sha256(data).hexdigest(),
        manifest_json=canonical_json(decode(data).manifest.to_json()),
        num_bytes=len(data),
        backbone_fingerprint=backbone,
        make_live=make_live,
        request_id=request_id,
    )


def add(catalog: Catalog, tenant: str, task: str, seed: int, make_live: bool = True, backbone: str = HERE) -> str:
    data = adapter(seed, backbone)
    digest = hashlib.sha256(data).hexdigest()
    catalog.blobs.put(data, digest)
    catalog.register(registration(tenant, task, seed, make_live, backbone))
    return digest


def fill(store: Path) -> None:
    """Tasks of two tenants with everything that happens to tasks."""
    catalog = Catalog(store, backbone_fingerprint=HERE)
    catalog.tenants.create("other")
    for tenant, request_id, task, seed, make_live in ASKED:
        data = adapter(seed)
        catalog.blobs.put(data, hashlib.sha256(data).hexdigest())
        catalog.register(registration(tenant, task, seed, make_live, request_id=request_id))
    first, beside = (hashlib.sha256(adapter(seed)).hexdigest() for seed in (0, 2))
    third = add(catalog, "default", "reviews", 4)
    catalog.set_traffic("default", "reviews", [(first, 3), (third, 1)])
    catalog.set_traffic("default", "reviews", [(beside, 1)])
    catalog.rollback("default", "reviews")
    for number in range(4):
        add(catalog, "default", f"topic-{number}", number % 2)
    add(catalog, "default", "topic-0", 6)
    catalog.rollback("default", "topic-0")
    add(catalog, "default", "moved", 7, backbone=ELSEWHERE)
    add(catalog, "default", "waiting", 1, make_live=False)
    add(catalog, "default", "topic-1", 8)
    catalog.delete_version("default", "topic-1", hashlib.sha256(adapter(1)).hexdigest())
    catalog.delete_task("default", "deleted")
    catalog.delete_task("default", "topic-3")
    add(catalog, "other", "topic-3", 1)
    for number in range(3):
        catalog.audit_log.append(
            [
                Entry.of(
                    changes.now_us(),
                    tenant="default",
                    resource="tenants/default/tasks/reviews",
                    code="INVALID_ARGUMENT",
                    reason=f"TRUNCATED_{number}",
                )
            ]
        )
    if SCHEMA_VERSION > 1:
        catalog.set_pinned("default", "reviews", third, True)
        catalog.set_pinned("other", "reviews", first, True)
        catalog.set_pinned("default", "topic-2", first, True)
        catalog.set_pinned("default", "topic-2", first, False)
    catalog.close()


def answers(catalog: Catalog, schema: int) -> dict[str, Any]:
    """What a catalog says when it is asked for everything that `schema` knew. Plain JSON. Nothing is changed."""
    columns = (*ROW, "pinned") if schema > 1 else ROW

    def version(row: Any) -> dict[str, Any]:
        return {name: str(value) if isinstance(value := getattr(row, name), str) else value for name in columns}

    def task(row: Any) -> dict[str, Any]:
        names = ("tenant", "task", "etag", "create_time_us", "update_time_us", "unavailable_reason")
        traffic = [[share.digest, share.weight] for share in row.traffic]
        return {
            **{name: getattr(row, name) for name in names},
            "traffic": traffic,
            "live": list(map(version, row.live)),
        }

    def pages(ask: Any) -> list[Any]:
        found, token = [], ""
        while not found or token:
            page = ask(2, token)
            token = page.next_page_token
            found.append([list(page.rows), token])
        return found

    snapshot = catalog.snapshot()
    tasks = dict(sorted(snapshot.tasks.items()))
    listed: dict[str, Any] = {}
    for tenant, name in tasks:
        asked = pages(lambda size, token, at=(tenant, name): catalog.list_versions(*at, size, token))
        listed[f"{tenant}/{name}"] = [
            [[{**version(row), "manifest": json.loads(row.manifest_json)} for row in rows], token]
            for rows, token in asked
        ]
    result = {
        "revision": snapshot.revision,
        "snapshot": {
            f"{tenant}/{name}": {
                **task(row),
                "versions": {digest: version(row.version(digest)) for digest in sorted(row.versions)},
            }
            for (tenant, name), row in tasks.items()
        },
        "get_task": {f"{tenant}/{name}": task(catalog.get_task(tenant, name)) for tenant, name in tasks},
        "list_versions": listed,
        "list_tasks": {
            tenant: [
                [list(map(task, rows)), token]
                for rows, token in pages(lambda size, token, tenant=tenant: catalog.list_tasks(tenant, size, token))
            ]
            for tenant in TENANTS
        },
        "audit": {
            tenant: [
                [
                    row.time_us,
                    row.revision,
                    row.resource.rpartition("/")[2],
                    row.action or "fail",
                    row.digest or None,
                    row.detail or row.reason,
                ]
                for row in catalog.audit_log.page(tenant).rows
            ]
            for tenant in TENANTS
        },
        "retired": sorted(catalog.retired()),
    }
    if schema > 1:
        result["pinned"] = list(catalog.pinned())
        retried = []
        for tenant, request_id, name, seed, make_live in ASKED:
            row, exists = catalog.register(registration(tenant, name, seed, make_live, request_id=request_id))
            retried.append([request_id, version(row), exists])
        result["retried"] = retried
    assert catalog.snapshot() is snapshot
    return result


def main() -> None:
    store = Path(sys.argv[1])
    clock = count(STARTED_US, 1_000_000)
    changes.now_us = lambda: next(clock)
    fill(store)
    # Everything in the one file.
    connection = sqlite3.connect(store / "catalog.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    for directory in (store / "blobs" / "sha256").iterdir():
        if not any(directory.iterdir()):
            directory.rmdir()
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(store, copy, dirs_exist_ok=True)
        recover(Path(copy))
        catalog = Catalog(Path(copy), backbone_fingerprint=HERE)
        found = answers(catalog, SCHEMA_VERSION)
        catalog.close()
    (store / "answers.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
