"""`ModelReady` and `unavailable_reason` say of a task what `Predict` would."""

import hashlib

import grpc
import pytest

from adamix.errors import AdamixError, DataLoss, InvalidInput, Unavailable
from adamix.files.adapter_file import decode
from adamix_client import Client
from adamix_protos.open_inference import open_inference_pb2 as oip
from adamix_protos.open_inference import open_inference_pb2_grpc
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.blobs.packed_size import packed_bytes
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import refusal

MISSING = DataLoss("gone", reason="BLOB_MISSING")


async def ready(harness: Harness, task: str, version: str = "") -> bool:
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    return bool((await stub.ModelReady(oip.ModelReadyRequest(name=task, version=version))).ready)


async def told(harness: Harness, task: str = "t") -> str:
    """The reason in `GetTask`, which `ListTasks` and `WatchTasks` give as well, and `ModelReady` follows."""
    reason = str((await harness.adapters.GetTask(pb.GetTaskRequest(task=task))).task.unavailable_reason)
    listed = await harness.adapters.ListTasks(pb.ListTasksRequest())
    assert [found.unavailable_reason for found in listed.tasks if found.name.endswith(f"/{task}")] == [reason]
    watch = harness.adapters.WatchTasks(pb.WatchTasksRequest())
    async for change in watch:
        if change.task.name.endswith(f"/{task}"):
            assert change.task.unavailable_reason == reason
            break
    watch.cancel()
    assert await ready(harness, task) == (not reason)
    return reason


async def predict(harness: Harness, task: str = "t") -> str:
    """The reason of the error; empty for an answer."""
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task=task, text="w1")])
    call = harness.inference.Predict(request)
    try:
        await call
    except grpc.aio.AioRpcError:
        return (await refusal(call))[1]
    return ""


async def infer(harness: Harness, task: str = "t") -> tuple[grpc.StatusCode, str]:
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"w1")
    return await refusal(stub.ModelInfer(oip.ModelInferRequest(model_name=task, inputs=[tensor])))


async def test_what_the_engine_says_of_an_adapter_is_told_until_it_loads_it(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest, other = seed("t", make_adapter()), seed("other", make_adapter(seed=1))
    harness = await start_serving()
    assert await told(harness) == ""
    harness.engine.fail = lambda row: MISSING if row.digest == digest else None
    assert await predict(harness) == "BLOB_MISSING"
    assert await told(harness) == "BLOB_MISSING"
    assert not await ready(harness, "t", digest)
    assert await told(harness, "other") == ""
    assert await ready(harness, "other", other)
    harness.engine.fail = lambda row: None
    assert await predict(harness) == "", "it is asked all the same"
    assert await told(harness) == ""


async def test_a_store_that_is_lost_is_held_against_no_task(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("t", make_adapter())
    harness = await start_serving()
    harness.engine.fail = lambda row: Unavailable("lost", reason="STORE_LOST", retry_after_s=1.0)
    assert await predict(harness) == "STORE_LOST"
    assert await told(harness) == ""


async def test_an_operators_load_teaches_the_same(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("t", make_adapter())
    harness = await start_serving()
    harness.engine.control_error = MISSING
    await refusal(harness.adapters.LoadVersion(pb.LoadVersionRequest(task="t", digest=digest)))
    assert await told(harness) == "BLOB_MISSING"
    harness.engine.control_error = None
    await harness.adapters.LoadVersion(pb.LoadVersionRequest(task="t", digest=digest))
    assert await told(harness) == ""


async def test_a_blob_that_is_gone_at_the_start_is_told_until_it_is_registered_again(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    data = make_adapter()
    digest = seed("t", data)
    # What the supervisor's recovery finds as well, and only logs.
    harness = await start_serving()
    blob = harness.store / "blobs" / "sha256" / digest[:2] / digest
    blob.unlink()
    second = await start_serving()
    assert await told(second) == "BLOB_MISSING"
    assert await told(harness) == "", "nobody has asked this one for it"

    def register(client: Client) -> bool:
        return client.register("t", data).already_exists

    assert await second.call(register)
    assert await told(second) == ""


async def test_what_was_registered_with_a_larger_arena_is_told_and_refused(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("t", make_adapter())

    def prepare(engine: FakeEngine) -> None:
        engine.arena_bytes = 512

    harness = await start_serving(prepare=prepare)
    assert await told(harness) == "ADAPTER_TOO_LARGE_FOR_SERVER"
    assert await predict(harness) == "ADAPTER_TOO_LARGE_FOR_SERVER"
    expected = (grpc.StatusCode.INVALID_ARGUMENT, "ADAPTER_TOO_LARGE_FOR_SERVER")
    assert await infer(harness) == expected
    for call in (
        harness.adapters.LoadVersion(pb.LoadVersionRequest(task="t", digest=digest)),
        harness.adapters.PinVersion(pb.PinVersionRequest(task="t", digest=digest, pinned=True)),
    ):
        assert await refusal(call) == expected
    assert harness.engine.submits == harness.engine.controls == [], "nothing is read from the disk for it"


async def test_what_could_never_be_loaded_is_refused_before_it_is_stored(
    start_serving: StartServing, make_adapter: MakeAdapter
) -> None:
    small = make_adapter()
    needed = packed_bytes((tensor.array.size for tensor in decode(small).tensors.values()), 4)

    def prepare(engine: FakeEngine) -> None:
        engine.arena_bytes = needed - 1

    harness = await start_serving(prepare=prepare)

    def work(client: Client) -> list[str]:
        words = []
        for validate_only in (True, False):
            with pytest.raises(InvalidInput) as caught:
                client.register("t", small, validate_only=validate_only)
            assert caught.value.reason == "ADAPTER_TOO_LARGE_FOR_SERVER"
            words.append(caught.value.message)
        assert client.tasks() == []
        return words

    for message in await harness.call(work):
        assert "start it with --arena-mib 1 or more" in message
    assert harness.blobs() == harness.temporaries() == []

    def exactly(engine: FakeEngine) -> None:
        engine.arena_bytes = needed

    roomy = await start_serving(prepare=exactly)
    version = await roomy.call(lambda client: client.register("t", small).version)
    assert version.digest == hashlib.sha256(small).hexdigest()
    assert await told(roomy) == ""


async def test_an_engines_refusal_is_not_said_of_the_text(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """The Open Inference Protocol names the tensor that is wrong; here none is."""
    seed("t", make_adapter())
    unfit = AdamixError("values beyond float16", reason="NON_FINITE")
    unfit.code = InvalidInput.code
    harness = await start_serving()
    harness.engine.fail = lambda row: unfit
    assert await infer(harness) == (grpc.StatusCode.INVALID_ARGUMENT, "NON_FINITE")
    assert await told(harness) == "NON_FINITE"
