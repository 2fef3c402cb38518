"""Many adapters without training: canonical files with small random weights, each the same for the same seed.

Even tasks have a bottleneck of 16 units at `mlp_out`, odd ones a LoRA of rank 8 at `attn_q` and `attn_v`; heads have
two to six labels. What the weights are worth does not matter to speed; that they change the answers does, because the
benchmark also compares answers.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from sqlalchemy import insert, update

from adamix.files import adapter_file
from adamix.files.manifest import BackboneRef, BackboneSpec, HeadSpec, Kind, Manifest, TrainingRecord
from adamix.files.tensors import TensorData, canonical_json
from adamix_server.blobs.local import BLOBS_DIRECTORY, BlobStore
from adamix_server.catalog import changes, schema
from adamix_server.catalog.database import Database
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.pointer import Pointer
from adamix_server.catalog.rows import Registration
from adamix_server.catalog.store import Catalog
from adamix_server.config import DEFAULT_TENANT

BOTTLENECK_RANK, BOTTLENECK_SITES = 16, ("mlp_out",)
LORA_RANK, LORA_SITES = 8, ("attn_q", "attn_v")
MAX_LENGTH = 128
_FEWEST_LABELS, _MOST_LABELS = 2, 6
_WEIGHT_STD = 0.1
_WRITERS, _FILES_AT_ONCE = 4, 32


@dataclass(frozen=True)
class SynthTask:
    """One task and its only version: the bytes of an adapter file."""

    name: str
    data: bytes
    manifest: Manifest


def task_name(index: int, prefix: str = "bench") -> str:
    return f"{prefix}-{index:05d}"


def make_task(
    spec: BackboneSpec, index: int, seed: int, *, kind: Kind | None = None, prefix: str = "bench"
) -> SynthTask:
    """The `index`-th task of a seed. `kind` overrides the alternation."""
    random = np.random.default_rng([seed, index])
    num_labels = int(random.integers(_FEWEST_LABELS, _MOST_LABELS + 1))
    if kind is None:
        kind = "lora" if index % 2 else "bottleneck"
    tensors = dict(_lora(spec, random) if kind == "lora" else _bottleneck(spec, random))
    tensors["head.out_proj.weight"] = _normal(random, num_labels, spec.hidden_size)
    tensors["head.out_proj.bias"] = _normal(random, num_labels)
    manifest = Manifest(
        kind=kind,
        activation="identity" if kind == "lora" else "gelu",
        scaling=1.0,
        backbone=BackboneRef(**{name: getattr(spec, name) for name in BackboneRef.__struct_fields__}),
        head=HeadSpec(type="classification", pooling="mean", num_labels=num_labels),
        max_length=min(MAX_LENGTH, spec.max_tokens),
        training=TrainingRecord(method="random", seed=seed),
    )
    return SynthTask(task_name(index, prefix), adapter_file.encode(manifest, tensors), manifest)


def fill_store(store: Path, spec: BackboneSpec, tasks: Iterable[SynthTask], on_task: Callable[[], None]) -> None:
    """Put tasks into a store that no server uses yet, as registering them would.

    Raises:
        StoreFull: there is no room on the disk.
    """
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)

    def put(task: SynthTask) -> None:
        digest = hashlib.sha256(task.data).hexdigest()
        manifest = canonical_json(task.manifest.to_json())
        catalog.blobs.put(task.data, digest)
        catalog.register(
            Registration(
                tenant=DEFAULT_TENANT,
                task=task.name,
                digest=digest,
                manifest_json=manifest,
                num_bytes=len(task.data),
                backbone_fingerprint=spec.fingerprint,
            )
        )

    left = iter(tasks)
    try:
        # Both wait for the disk most of the time. A pool takes in all it is given at once: a few files at a time.
        with ThreadPoolExecutor(_WRITERS) as writers:
            while some := list(islice(left, _FILES_AT_ONCE)):
                for _ in writers.map(put, some):
                    on_task()
    finally:
        catalog.close()


def fill_names(store: Path, spec: BackboneSpec, task: SynthTask, numbers: range) -> None:
    """Put one adapter into a store as the tasks of these numbers, in one transaction; a server may use it meanwhile.

    The rows are those that registering leaves. Only the first task is logged: whoever follows the catalog finds that
    changes are missing, and reads everything.

    Args:
        numbers: consecutive, and new to the store.

    Raises:
        StoreFull: there is no room on the disk.
    """
    digest, fingerprint = hashlib.sha256(task.data).hexdigest(), spec.fingerprint
    manifest, now = canonical_json(task.manifest.to_json()), changes.now_us()
    current, earlier = Pointer(((digest, 1),)).to_json()
    BlobStore(store / BLOBS_DIRECTORY).put(task.data, digest)
    database = Database(store / CATALOG_FILE)
    try:
        with database.write() as connection:
            # The first one the usual way; the others take the ids after it.
            first = changes.find_or_make_task(connection, DEFAULT_TENANT, task_name(numbers[0]))
            ids = range(first, first + len(numbers))
            columns = {"tenant": DEFAULT_TENANT, "create_time_us": now, "update_time_us": now}
            rest = [
                {"id": id_, "task": task_name(number), "etag": secrets.token_hex(8), **columns}
                for id_, number in zip(ids[1:], numbers[1:], strict=True)
            ]
            if rest:
                connection.execute(insert(schema.tasks), rest)
            columns = {"digest": digest, "state": State.READY, "create_time_us": now, "num_bytes": len(task.data)}
            columns |= {"backbone_fingerprint": fingerprint, "manifest_json": manifest}
            connection.execute(insert(schema.versions), [{"task_id": id_, **columns} for id_ in ids])
            columns = {"backbone_fingerprint": fingerprint, "current": current, "earlier": earlier}
            connection.execute(insert(schema.traffic), [{"task_id": id_, **columns} for id_ in ids])
            connection.execute(update(schema.state).values(revision=schema.state.c.revision + len(rest)))
            changes.record(connection, DEFAULT_TENANT, task_name(numbers[0]), "register", digest, "live")
    finally:
        database.close()


def _bottleneck(spec: BackboneSpec, random: np.random.Generator) -> Iterator[tuple[str, TensorData]]:
    for layer in range(spec.num_layers):
        for site in BOTTLENECK_SITES:
            name, width = f"layers.{layer}.{site}.", spec.sites[site][1]
            yield name + "down_proj.weight", _normal(random, BOTTLENECK_RANK, width)
            yield name + "down_proj.bias", _normal(random, BOTTLENECK_RANK)
            yield name + "up_proj.weight", _normal(random, width, BOTTLENECK_RANK)
            yield name + "up_proj.bias", _normal(random, width)


def _lora(spec: BackboneSpec, random: np.random.Generator) -> Iterator[tuple[str, TensorData]]:
    for layer in range(spec.num_layers):
        for site in LORA_SITES:
            name, (width_in, width_out) = f"layers.{layer}.{site}.", spec.sites[site]
            yield name + "lora_A", _normal(random, LORA_RANK, width_in)
            yield name + "lora_B", _normal(random, width_out, LORA_RANK)


def _normal(random: np.random.Generator, *shape: int) -> TensorData:
    return TensorData.from_float32(random.standard_normal(shape, np.float32) * np.float32(_WEIGHT_STD))
