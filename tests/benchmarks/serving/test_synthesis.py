"""Made-up adapters are real files, the same for the same seed, and a store filled with them serves them."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import canonical_json
from adamix_bench.serving.synthesis import SynthTask, fill_names, fill_store, make_task, task_name
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import registration

if TYPE_CHECKING:
    from adamix.backbones.backbone import Backbone


@pytest.fixture
def spec(make_backbone: "Callable[[], Backbone]") -> BackboneSpec:
    return make_backbone().spec


def test_files_are_valid_and_alternate_in_kind(spec: BackboneSpec) -> None:
    kinds, labels = [], set()
    for index in range(24):
        adapter = adapter_file.decode(make_task(spec, index, seed=1).data)
        adapter_file.check_backbone(adapter, spec)
        kinds.append(adapter.manifest.kind)
        labels.add(adapter.manifest.head.num_labels)
        sites = {site for _, site in adapter.sites()}
        if adapter.manifest.kind == "lora":
            assert sites == {"attn_q", "attn_v"}
            assert adapter.tensors["layers.0.attn_q.lora_A"].shape == (8, spec.hidden_size)
        else:
            assert sites == {"mlp_out"}
            assert adapter.tensors["layers.0.mlp_out.down_proj.weight"].shape == (16, spec.hidden_size)
    assert kinds == ["bottleneck", "lora"] * 12
    assert labels == {2, 3, 4, 5, 6}


def test_the_seed_decides_the_bytes(spec: BackboneSpec) -> None:
    assert make_task(spec, 3, seed=1).data == make_task(spec, 3, seed=1).data
    assert make_task(spec, 3, seed=1).data != make_task(spec, 3, seed=2).data
    assert make_task(spec, 3, seed=1).data != make_task(spec, 5, seed=1).data


def test_the_kind_can_be_one_for_all(spec: BackboneSpec) -> None:
    tasks = [make_task(spec, index, 0, kind="lora") for index in range(4)]
    assert {task.manifest.kind for task in tasks} == {"lora"}


def test_a_filled_store_has_every_task_live(spec: BackboneSpec, tmp_path: Path) -> None:
    tasks, written = [make_task(spec, index, 0) for index in range(6)], []
    fill_store(tmp_path, spec, iter(tasks), lambda: written.append(1))
    assert len(written) == 6
    assert recover(tmp_path).missing == ()
    catalog = Catalog(tmp_path, backbone_fingerprint=spec.fingerprint)
    try:
        rows = catalog.list_tasks("default").rows
    finally:
        catalog.close()
    digests = [hashlib.sha256(task.data).hexdigest() for task in tasks]
    assert [row.task for row in rows] == [task_name(index) for index in range(6)]
    assert [[share.digest for share in row.traffic] for row in rows] == [[digest] for digest in digests]


def test_filling_a_store_holds_few_files_at_a_time(spec: BackboneSpec, tmp_path: Path) -> None:
    """Two thousand adapters are more than half a gigabyte."""
    made, done, ahead = 0, 0, []

    def tasks() -> Iterator[SynthTask]:
        nonlocal made
        for index in range(100):
            made += 1
            ahead.append(made - done)
            yield make_task(spec, index, 0)

    def on_task() -> None:
        nonlocal done
        done += 1

    fill_store(tmp_path, spec, tasks(), on_task)
    assert done == 100
    assert max(ahead) < 50


def test_one_file_under_many_names_is_what_registering_it_so_often_leaves(spec: BackboneSpec, tmp_path: Path) -> None:
    task = make_task(spec, 0, 0)
    fill_names(tmp_path, spec, task, range(3))
    catalog = Catalog(tmp_path, backbone_fingerprint=spec.fingerprint)
    first = catalog.snapshot()
    fill_names(tmp_path, spec, task, range(3, 7))
    found = catalog.snapshot()
    digest, manifest = hashlib.sha256(task.data).hexdigest(), canonical_json(task.manifest.to_json())
    args = (digest, manifest, len(task.data), spec.fingerprint)
    catalog.register(registration("default", "by-hand", *args))
    expected = catalog.get_task("default", "by-hand")
    assert ([name for _, name in sorted(first.tasks)], first.revision) == ([task_name(i) for i in range(3)], 3)
    assert ([name for _, name in sorted(found.tasks)], found.revision) == ([task_name(i) for i in range(7)], 7)
    for row in found.tasks.values():
        assert (row.traffic, row.unavailable_reason) == (expected.traffic, "")
        assert len(row.etag) == len(expected.etag)
        same = {"task": "by-hand", "create_time_us": expected.live[0].create_time_us}
        assert msgspec.structs.replace(row.live[0], **same) == expected.live[0]
    # They are registered in earnest: names go on, and what they share goes with the last.
    catalog.delete_task("default", task_name(5))
    assert len(catalog.snapshot().tasks) == 7
    catalog.close()
    assert recover(tmp_path).missing == ()
