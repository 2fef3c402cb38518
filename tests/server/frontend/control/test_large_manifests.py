"""Manifests at their limit and beyond it: what is registered, what stays valid, how it is listed and what it costs."""

import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from adamix.files import adapter_file
from adamix.files.manifest import MAX_NEW_MANIFEST_BYTES, HeadSpec
from adamix.files.tensors import canonical_json
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.limits.control import MAX_PAGE_BYTES
from adamix_server.limits.messages import MAX_MESSAGE_BYTES
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import refusal

LABELS = 3


def head(num_bytes: int) -> HeadSpec:
    """A classifier whose labels have so many bytes together."""
    count = max(LABELS, -(-num_bytes // 500))
    size, longer = divmod(num_bytes, count)
    names = {str(index): "x" * (size + (index < longer)) for index in range(count)}
    return HeadSpec(type="classification", pooling="mean", num_labels=count, id2label=names)


def manifest_bytes(data: bytes) -> int:
    return len(canonical_json(adapter_file.decode(data).manifest.to_json()))


def with_manifest_of(make_adapter: MakeAdapter, num_bytes: int) -> bytes:
    """An adapter whose manifest has exactly so many bytes."""
    labels = num_bytes - 20_000
    data = make_adapter(head(labels))
    missing = num_bytes - manifest_bytes(data)
    while missing:
        labels += missing
        data = make_adapter(head(labels))
        missing = num_bytes - manifest_bytes(data)
    return data


async def upload(data: bytes, task: str = "large", **header: Any) -> AsyncIterator[pb.RegisterAdapterRequest]:
    yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task=task, **header))
    yield pb.RegisterAdapterRequest(chunk=data)


async def answers(harness: Harness, task: str) -> str:
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task=task, text="w1")])
    return str((await harness.inference.Predict(request)).predictions[0].version)


async def test_a_manifest_is_registered_up_to_its_limit(harness: Harness, make_adapter: MakeAdapter) -> None:
    largest = with_manifest_of(make_adapter, MAX_NEW_MANIFEST_BYTES)
    too_large = with_manifest_of(make_adapter, MAX_NEW_MANIFEST_BYTES + 1)
    assert (await harness.adapters.RegisterAdapter(upload(largest))).version.live
    for header in ({}, {"validate_only": True}):
        found = await refusal(harness.adapters.RegisterAdapter(upload(too_large, **header)))
        assert found == (grpc.StatusCode.INVALID_ARGUMENT, "MANIFEST_TOO_LARGE")
    assert harness.blobs() == [hashlib.sha256(largest).hexdigest()]


async def test_larger_ones_that_are_stored_answer_and_are_listed(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    # Ten of the largest that are read; their labels are more than a message may carry.
    files = [make_adapter(head(480_000), seed=number) for number in range(10)]
    assert manifest_bytes(files[0]) > 480_000
    digests = [seed(f"large-{number}", data) for number, data in enumerate(files)]
    for data in files[1:4]:
        seed("large-0", data)
    harness = await start_serving(prepare=lambda engine: engine.widths.update(dict.fromkeys(digests, 960)))
    assert await answers(harness, "large-5") == digests[5]
    names = [task.name async for task in pages(harness.adapters.ListTasks, pb.ListTasksRequest, "tasks")]
    assert names == [f"tenants/default/tasks/large-{number}" for number in range(10)]
    versions = [
        version.digest
        async for version in pages(harness.adapters.ListVersions, pb.ListVersionsRequest, "versions", task="large-0")
    ]
    assert versions == [digests[3], digests[2], digests[1], digests[0]]
    assert len(await harness.call(lambda client: client.tasks())) == 10
    # The bytes that the task has are nothing new.
    again = await harness.adapters.RegisterAdapter(upload(files[3], task="large-0"))
    assert again.already_exists
    found = await refusal(harness.adapters.RegisterAdapter(upload(files[3], task="another")))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "MANIFEST_TOO_LARGE")


async def pages(call: Callable[..., Any], request: Callable[..., Any], field: str, **of: Any) -> AsyncIterator[Any]:
    """All rows of a list; each page is one, or fits."""
    token = ""
    while True:
        page = await call(request(page_size=1000, page_token=token, **of))
        rows = getattr(page, field)
        assert rows
        assert page.ByteSize() < MAX_MESSAGE_BYTES
        assert len(rows) == 1 or page.ByteSize() <= MAX_PAGE_BYTES
        for row in rows:
            yield row
        if not (token := page.next_page_token):
            return


def test_a_large_manifest_costs_a_snapshot_what_its_head_does(
    seed: Seed, make_adapter: MakeAdapter, store: Any, spec: Any
) -> None:
    from adamix_server.catalog.store import Catalog

    large = head(230_000)
    for number in range(8):
        seed(f"large-{number}", make_adapter(large, seed=number))
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    catalog.revision()  # what a first query makes stays out of the account
    tracemalloc.start()
    try:
        snapshot = catalog.snapshot()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        catalog.close()
    assert len(snapshot.tasks) == 8
    # One head for all of them, some rows, and no manifest, of which there are two megabytes.
    assert held < 2 * 230_000 + (200 << 10)
