"""Uploads over a real channel, judged by the real child process: what is accepted, what is refused, what is left."""

import asyncio
import hashlib
import math
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from adamix.errors import DataLoss, StoreFull, Unavailable
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import MIXTURE_FORMAT, encode_tensors
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import adapters_pb2_grpc, inference_pb2
from adamix_server.blobs.local import Temporary
from adamix_server.catalog.store import Catalog
from adamix_server.frontend import assembly
from adamix_server.frontend.availability import Availability
from adamix_server.frontend.control import registration, shares
from adamix_server.frontend.control.validation import Verdict
from adamix_server.limits.control import MAX_WAITING_UPLOAD_BYTES
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import refusal


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def upload(
    data: bytes, task: str = "sst2", *, chunk_bytes: int = 1000, **header: Any
) -> AsyncIterator[pb.RegisterAdapterRequest]:
    yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task=task, **header))
    for start in range(0, len(data), chunk_bytes):
        yield pb.RegisterAdapterRequest(chunk=data[start : start + chunk_bytes])


async def live_version(harness: Harness, task: str = "sst2") -> str:
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task=task, text="w1")])
    response = await harness.inference.Predict(request)
    return str(response.predictions[0].version)


async def test_a_version_is_live_when_the_call_returns(harness: Harness, make_adapter: MakeAdapter) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)
    response = await harness.adapters.RegisterAdapter(upload(first))
    version = response.version
    assert version.name == f"tenants/default/tasks/sst2/versions/{digest_of(first)}"
    assert (version.state, version.live, version.num_bytes) == (pb.VERSION_STATE_READY, True, len(first))
    assert not response.already_exists
    assert await live_version(harness) == digest_of(first)
    again = await harness.adapters.RegisterAdapter(upload(first))
    assert again.already_exists
    await harness.adapters.RegisterAdapter(upload(second))
    assert await live_version(harness) == digest_of(second)
    # Each was loaded before it became live.
    assert [(c.op, c.digest) for c in harness.engine.controls] == [
        ("load", digest_of(first)),
        ("load", digest_of(first)),
        ("load", digest_of(second)),
    ]
    assert harness.temporaries() == []


async def test_a_version_may_wait_before_it_becomes_live(harness: Harness, make_adapter: MakeAdapter) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)
    await harness.adapters.RegisterAdapter(upload(first))
    response = await harness.adapters.RegisterAdapter(upload(second, make_live=False))
    assert not response.version.live
    assert await live_version(harness) == digest_of(first)
    traffic = [pb.Traffic(digest=digest_of(second), weight=1)]
    response = await harness.adapters.SetTraffic(pb.SetTrafficRequest(task="sst2", traffic=traffic))
    assert await live_version(harness) == digest_of(second)
    assert response.task.traffic[0].digest == digest_of(second)


async def test_validate_only_leaves_no_trace(
    harness: Harness, make_adapter: MakeAdapter, store: Path, spec: BackboneSpec
) -> None:
    data = make_adapter()
    response = await harness.adapters.RegisterAdapter(upload(data, validate_only=True))
    assert response.version.digest == digest_of(data)
    assert await refusal(harness.adapters.GetTask(pb.GetTaskRequest(task="sst2"))) == (
        grpc.StatusCode.NOT_FOUND,
        "NOT_FOUND",
    )
    assert harness.blobs() == harness.temporaries() == []
    assert harness.engine.controls == []
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    assert (catalog.revision(), catalog.audit_log.page("default").rows) == (0, ())
    catalog.close()


async def test_bad_files_are_refused_and_the_old_version_serves_on(harness: Harness, make_adapter: MakeAdapter) -> None:
    good = make_adapter()
    flipped = bytearray(good)
    flipped[20] ^= 0xFF
    bad: list[tuple[bytes, str]] = [
        (good[: len(good) // 2], "TRUNCATED"),
        (b"", "TRUNCATED"),
        (bytes(flipped), "HEADER_INVALID"),
        (make_adapter(bad=float("nan")), "NON_FINITE"),
        (make_adapter(fingerprint="c" * 64), "BACKBONE_MISMATCH"),
        (encode_tensors(MIXTURE_FORMAT, {}, {}), "UNMERGED_MIXTURE"),
        (pickle.dumps({"weights": [1.0]}), "FORMAT_UNKNOWN"),
        (b"PK\x03\x04" + bytes(2000), "FORMAT_UNKNOWN"),
        ((1 << 62).to_bytes(8, "little") + bytes(2000), "HEADER_TOO_LARGE"),
    ]
    await harness.adapters.RegisterAdapter(upload(good))
    for data, reason in bad:
        found = await refusal(harness.adapters.RegisterAdapter(upload(data)))
        assert found == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert await live_version(harness) == digest_of(good)
    assert harness.blobs() == [digest_of(good)]
    assert harness.temporaries() == []


async def test_bad_requests_are_refused_before_or_while_bytes_arrive(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    data = make_adapter()

    async def of(*requests: pb.RegisterAdapterRequest) -> AsyncIterator[pb.RegisterAdapterRequest]:
        for request in requests:
            yield request

    header = pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="sst2"))
    cases = [
        (of(), "HEADER_MISSING"),
        (of(pb.RegisterAdapterRequest(chunk=b"x")), "HEADER_MISSING"),
        (of(header, header), "CHUNK_EXPECTED"),
        (of(header, pb.RegisterAdapterRequest(chunk=bytes((1 << 20) + 1))), "CHUNK_TOO_LARGE"),
        (upload(data, "../x"), "ID_INVALID"),
        (upload(data, ""), "TASK_MISSING"),
        (upload(data, expected_digest="abc"), "DIGEST_INVALID"),
        (upload(data, expected_digest="0" * 64), "DIGEST_MISMATCH"),
        (upload(data, request_id="a b"), "REQUEST_ID_INVALID"),
    ]
    for requests, reason in cases:
        found = await refusal(harness.adapters.RegisterAdapter(requests))
        assert found == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    found = await refusal(harness.adapters.RegisterAdapter(upload(data, "tenants/other/tasks/x")))
    assert found == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")
    response = await harness.adapters.RegisterAdapter(upload(data, expected_digest=digest_of(data)))
    assert response.version.live


async def test_an_upload_over_the_limit_is_cut_off(
    start_serving: StartServing, monkeypatch: pytest.MonkeyPatch, make_adapter: MakeAdapter
) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.upload.MAX_ADAPTER_BYTES", 2500)
    answered = asyncio.Event()

    async def unending() -> AsyncIterator[pb.RegisterAdapterRequest]:
        yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="sst2"))
        for _ in range(MAX_WAITING_UPLOAD_BYTES // 1000 + 1):
            yield pb.RegisterAdapterRequest(chunk=bytes(1000))
        # What grpc's client still sends while the answer comes, it may take for an error of its own.
        await answered.wait()

    harness = await start_serving()
    found = await refusal(harness.adapters.RegisterAdapter(unending()))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_LARGE")
    assert harness.temporaries() == []
    answered.set()


async def test_an_upload_cut_in_the_middle_leaves_nothing(harness: Harness) -> None:
    arrived = asyncio.Event()

    async def half() -> AsyncIterator[pb.RegisterAdapterRequest]:
        yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="sst2"))
        yield pb.RegisterAdapterRequest(chunk=bytes(MAX_WAITING_UPLOAD_BYTES))
        arrived.set()
        await asyncio.Event().wait()

    call = harness.adapters.RegisterAdapter(half())
    await arrived.wait()
    await harness.until(lambda: len(harness.temporaries()) == 1)
    call.cancel()
    await harness.until(lambda: harness.temporaries() == [])
    assert harness.blobs() == []
    assert not (await harness.adapters.ListTasks(pb.ListTasksRequest())).tasks


async def test_an_upload_that_stands_still_is_ended(
    start_serving: StartServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.upload_places.UPLOAD_IDLE_S", 0.05)
    harness = await start_serving()
    given_up = asyncio.Event()

    async def stuck() -> AsyncIterator[pb.RegisterAdapterRequest]:
        yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="sst2"))
        await given_up.wait()

    found = await refusal(harness.adapters.RegisterAdapter(stuck()))
    assert found == (grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_IDLE")
    assert harness.temporaries() == []
    given_up.set()


@pytest.mark.parametrize(("of", "step"), [(Temporary, "write"), (Catalog, "register")])
async def test_a_full_disk_says_so_and_leaves_nothing(
    start_serving: StartServing, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch, of: type, step: str
) -> None:
    def full(*_arguments: object) -> None:
        raise StoreFull("the server's disk is full")

    monkeypatch.setattr(of, step, full)
    harness = await start_serving()
    found = await refusal(harness.adapters.RegisterAdapter(upload(make_adapter())))
    assert found == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    assert harness.temporaries() == harness.blobs() == []


async def test_a_load_that_fails_leaves_the_old_version_live(harness: Harness, make_adapter: MakeAdapter) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)
    await harness.adapters.RegisterAdapter(upload(first))
    harness.engine.control_error = DataLoss("gone")
    found = await refusal(harness.adapters.RegisterAdapter(upload(second)))
    assert found == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")
    assert await live_version(harness) == digest_of(first)
    assert harness.blobs() == [digest_of(first)], "what was refused takes up no disk"
    await refusal(harness.adapters.RegisterAdapter(upload(first, task="other")))
    assert harness.blobs() == [digest_of(first)], "it is in service all the same"
    # An engine that is away is no reason to refuse: it loads the version when it is asked for.
    harness.engine.control_error = Unavailable("restarting")
    await harness.adapters.RegisterAdapter(upload(second))
    assert await live_version(harness) == digest_of(second)


async def test_too_many_uploads_at_once_are_refused(
    start_serving: StartServing, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.upload_places.MAX_UPLOADS", 1)
    harness = await start_serving()
    release = asyncio.Event()

    async def slow() -> AsyncIterator[pb.RegisterAdapterRequest]:
        yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="sst2"))
        yield pb.RegisterAdapterRequest(chunk=bytes(MAX_WAITING_UPLOAD_BYTES))
        await release.wait()

    call = asyncio.ensure_future(harness.adapters.RegisterAdapter(slow()))
    await harness.until(lambda: len(harness.temporaries()) == 1)
    found = await refusal(harness.adapters.RegisterAdapter(upload(make_adapter(seed=9))))
    assert found == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
    release.set()
    assert (await refusal(call))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await harness.adapters.RegisterAdapter(upload(make_adapter(seed=9)))).version.live


async def test_a_deleted_task_is_gone_at_once_and_its_bytes_when_unused(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    data = make_adapter()
    await harness.adapters.RegisterAdapter(upload(data))
    await harness.adapters.RegisterAdapter(upload(data, "copy"))
    await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="sst2"))
    found = await refusal(live_version(harness))
    assert found == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    # The same bytes still belong to the other task.
    assert await live_version(harness, "copy") == digest_of(data)
    harness.engine.in_use.add(digest_of(data))
    await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="copy"))
    await harness.until(lambda: harness.engine.controls[-1].op == "in_use")
    assert harness.blobs() == [digest_of(data)]
    harness.engine.in_use.clear()
    await harness.adapters.RegisterAdapter(upload(make_adapter(seed=5), "other"))
    await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="other"))
    await harness.until(lambda: harness.blobs() == [])
    # Registered again, it is as good as new.
    assert not (await harness.adapters.RegisterAdapter(upload(data))).already_exists
    assert await live_version(harness) == digest_of(data)


async def test_a_deleted_version_answers_nobody_and_its_bytes_go(harness: Harness, make_adapter: MakeAdapter) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)

    def delete(digest: str, etag: str = "") -> Any:
        return harness.adapters.DeleteVersion(pb.DeleteVersionRequest(task="sst2", digest=digest, etag=etag))

    await harness.adapters.RegisterAdapter(upload(first))
    stale = (await harness.adapters.GetTask(pb.GetTaskRequest(task="sst2"))).task.etag
    await harness.adapters.RegisterAdapter(upload(second))
    for digest, etag, expected in (
        (digest_of(second), "", (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_LIVE")),
        (digest_of(first), stale, (grpc.StatusCode.ABORTED, "STALE_ETAG")),
        ("0" * 64, "", (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")),
        ("", "", (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_INVALID")),
    ):
        assert await refusal(delete(digest, etag)) == expected
    assert harness.blobs() == sorted([digest_of(first), digest_of(second)])
    await delete(digest_of(first))
    asked = inference_pb2.PredictInput(task="sst2", text="w1", version=digest_of(first))
    found = await refusal(harness.inference.Predict(inference_pb2.PredictRequest(inputs=[asked])))
    assert found == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert await live_version(harness) == digest_of(second)
    assert await refusal(harness.adapters.Rollback(pb.RollbackRequest(task="sst2"))) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "NOTHING_EARLIER",
    )
    await harness.until(lambda: harness.blobs() == [digest_of(second)])


async def test_a_retry_gets_the_first_answer_and_acts_no_second_time(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)
    answer = await harness.adapters.RegisterAdapter(upload(first, request_id="once"))
    assert not answer.already_exists
    await harness.adapters.RegisterAdapter(upload(second))
    loads = len(harness.engine.controls)
    assert await harness.adapters.RegisterAdapter(upload(first, request_id="once")) == answer
    assert await live_version(harness) == digest_of(second)
    assert len(harness.engine.controls) == loads
    for data, header in (
        (second, {}),
        (first, {"task": "other"}),
        (first, {"make_live": False}),
    ):
        found = await refusal(harness.adapters.RegisterAdapter(upload(data, request_id="once", **header)))
        assert found == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    # What the retry would have stored is not stored again either.
    await harness.adapters.DeleteVersion(pb.DeleteVersionRequest(task="sst2", digest=digest_of(first)))
    await harness.until(lambda: harness.blobs() == [digest_of(second)])
    assert await harness.adapters.RegisterAdapter(upload(first, request_id="once")) == answer
    assert harness.blobs() == [digest_of(second)]


async def test_of_two_uploads_with_one_id_one_acts(harness: Harness, make_adapter: MakeAdapter) -> None:
    data = make_adapter()
    calls = [harness.adapters.RegisterAdapter(upload(data, request_id="once")) for _ in range(2)]
    answers = await asyncio.gather(*calls)
    assert answers[0] == answers[1]
    assert not answers[0].already_exists


async def test_a_failed_registration_may_be_tried_again_under_its_id(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    data = make_adapter()
    bad = harness.adapters.RegisterAdapter(upload(data[:-8], request_id="once"))
    assert await refusal(bad) == (grpc.StatusCode.INVALID_ARGUMENT, "TRUNCATED")
    # Checking is not registering, and leaves the id free.
    await harness.adapters.RegisterAdapter(upload(data, validate_only=True, request_id="once"))
    assert not (await harness.adapters.RegisterAdapter(upload(data, request_id="once"))).already_exists
    assert await live_version(harness) == digest_of(data)


async def test_a_swap_under_load_answers_every_request_with_one_version(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    files = [make_adapter(seed=seed) for seed in range(4)]
    await harness.adapters.RegisterAdapter(upload(files[0]))
    seen: list[str] = []
    done = asyncio.Event()

    async def client() -> None:
        while not done.is_set():
            seen.append(await live_version(harness))

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for data in files[1:]:
        await harness.adapters.RegisterAdapter(upload(data))
    done.set()
    await asyncio.gather(*clients)
    order = [digest_of(data) for data in files]
    assert set(seen) <= set(order)
    assert await live_version(harness) == order[-1]


async def test_lists_are_paged(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    for number in range(3):
        seed(f"task-{number}", make_adapter(seed=number))
    digests = [seed("task-0", make_adapter(seed=number)) for number in (7, 8)]
    harness = await start_serving()
    first = await harness.adapters.ListTasks(pb.ListTasksRequest(page_size=2))
    rest = await harness.adapters.ListTasks(pb.ListTasksRequest(page_size=2, page_token=first.next_page_token))
    names = [task.name for task in (*first.tasks, *rest.tasks)]
    assert names == [f"tenants/default/tasks/task-{number}" for number in range(3)]
    assert rest.next_page_token == ""
    versions = await harness.adapters.ListVersions(pb.ListVersionsRequest(task="task-0", page_size=2))
    assert [version.digest for version in versions.versions] == digests[::-1]
    assert [version.residency for version in versions.versions] == [pb.RESIDENCY_HOST] * 2
    bad = pb.ListTasksRequest(page_token="nonsense")
    assert (await refusal(harness.adapters.ListTasks(bad)))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests of what was judged in a child, one after the other."""
    digests: list[str] = []
    judge = assembly.validate_async

    async def noted(path: Path, spec: BackboneSpec, *, expected_digest: str, **kwargs: Any) -> Verdict:
        digests.append(expected_digest)
        return await judge(path, spec, expected_digest=expected_digest, **kwargs)

    monkeypatch.setattr(assembly, "validate_async", noted)
    return digests


async def test_bytes_that_the_task_has_are_not_judged_again_and_everything_else_is_as_it_was(
    harness: Harness, make_adapter: MakeAdapter, judged: list[str]
) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)
    told = (await harness.adapters.RegisterAdapter(upload(first))).version
    other = (await harness.adapters.RegisterAdapter(upload(second))).version
    assert judged == [digest_of(first), digest_of(second)]
    # Not made live: nothing changes.
    again = await harness.adapters.RegisterAdapter(upload(first, make_live=False))
    assert again.already_exists
    assert (again.version.name, again.version.live) == (told.name, False)
    assert (again.version.manifest_json, again.version.num_bytes) == (told.manifest_json, told.num_bytes)
    assert await live_version(harness) == digest_of(second)
    # Made live, under an id, and again under it.
    for _ in range(2):
        again = await harness.adapters.RegisterAdapter(upload(first, request_id="r", expected_digest=digest_of(first)))
        assert (again.already_exists, again.version.live) == (True, True)
    assert await live_version(harness) == digest_of(first)
    dry = await harness.adapters.RegisterAdapter(upload(second, validate_only=True))
    assert (dry.version.state, dry.version.manifest_json) == (pb.VERSION_STATE_VALIDATING, other.manifest_json)
    found = await refusal(harness.adapters.RegisterAdapter(upload(first, expected_digest="0" * 64)))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH")
    found = await refusal(harness.adapters.RegisterAdapter(upload(second, request_id="r")))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert len(judged) == 2
    assert harness.temporaries() == []


async def test_what_others_have_is_judged_and_so_is_what_the_task_had_or_has_for_another_backbone(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, judged: list[str]
) -> None:
    data, foreign = make_adapter(seed=1), make_adapter(seed=2, fingerprint="c" * 64)
    seed("sst2", data, tenant="other")
    seed("elsewhere", data)
    seed("moved", foreign)
    harness = await start_serving()
    for _ in range(2):
        assert not (await harness.adapters.RegisterAdapter(upload(data))).already_exists
        await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="sst2"))
    assert judged == [digest_of(data)] * 2
    found = await refusal(harness.adapters.RegisterAdapter(upload(foreign, "moved")))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "BACKBONE_MISMATCH")
    assert len(judged) == 3


async def test_bytes_that_the_task_has_repair_what_is_stored(
    harness: Harness, make_adapter: MakeAdapter, judged: list[str]
) -> None:
    data = make_adapter()
    await harness.adapters.RegisterAdapter(upload(data))
    blob = harness.store / "blobs" / "sha256" / digest_of(data)[:2] / digest_of(data)
    blob.chmod(0o600)
    blob.write_bytes(b"damaged")
    await harness.adapters.RegisterAdapter(upload(data))
    assert blob.read_bytes() == data
    blob.unlink()
    await harness.adapters.RegisterAdapter(upload(data))
    assert blob.read_bytes() == data
    assert len(judged) == 1


async def test_a_version_that_something_speaks_against_is_judged(
    harness: Harness, make_adapter: MakeAdapter, judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_adapter()
    await harness.adapters.RegisterAdapter(upload(data))
    monkeypatch.setattr(Availability, "reason", lambda _, _version: "WRONG_HEAD")
    await harness.adapters.RegisterAdapter(upload(data))
    assert len(judged) == 2


@asynccontextmanager
async def beside_data_calls(harness: Harness) -> AsyncIterator[None]:
    """While the block runs, the engine has something to do."""
    harness.engine.hold = True
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="busy", text="w1")])
    predicting = asyncio.ensure_future(harness.inference.Predict(request))
    await harness.until(lambda: bool(harness.engine.held))
    try:
        yield
    finally:
        harness.engine.hold = False
        harness.engine.answer_all()
        await predicting


async def test_beside_data_calls_a_loop_of_registrations_waits_before_its_bytes_are_read_and_nobody_else_does(
    start_serving: StartServing,
    seed: Seed,
    make_adapter: MakeAdapter,
    judged: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only what the child has had makes anybody wait: all the rest costs less than it may be ahead.
    monkeypatch.setattr(shares, "REGISTRATION_SHARE", 1e-9)
    monkeypatch.setattr(shares, "MAX_AHEAD_S", 0.04)
    monkeypatch.setattr(shares, "MAX_ALL_AHEAD_S", math.inf)
    monkeypatch.setattr(registration, "JUDGEMENT_S", 0.0)
    seed("busy", make_adapter())
    harness = await start_serving()
    bad = make_adapter(bad=float("nan"))
    async with beside_data_calls(harness):
        found = await refusal(harness.adapters.RegisterAdapter(upload(bad)))
        assert found == (grpc.StatusCode.INVALID_ARGUMENT, "NON_FINITE")
        again = asyncio.ensure_future(harness.adapters.RegisterAdapter(upload(make_adapter(seed=2))))
        # Its connection's other calls have a share of their own.
        await harness.adapters.GetTask(pb.GetTaskRequest(task="busy"))
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(harness.address, options=own) as channel:
            others = adapters_pb2_grpc.AdapterServiceStub(channel)
            await others.RegisterAdapter(upload(make_adapter(seed=3)))
        assert not again.done()
        assert len(judged) == 2
        assert harness.temporaries() == []
    assert (await again).version.live


async def test_beside_data_calls_what_a_task_has_costs_next_to_nothing(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "REGISTRATION_SHARE", 1e-9)
    monkeypatch.setattr(shares, "MAX_AHEAD_S", 0.14)
    data = make_adapter()
    seed("busy", data)
    harness = await start_serving()
    async with beside_data_calls(harness):
        for _ in range(3):
            assert (await harness.adapters.RegisterAdapter(upload(data, "busy", validate_only=True))).version.digest
