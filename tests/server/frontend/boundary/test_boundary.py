"""What a caller gets when things go wrong inside: a status with details, an id, and nothing of the inside."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from adamix.errors import FailedPrecondition, Overloaded
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc, server_pb2
from adamix_server.access import rights
from adamix_server.access.rights import NEEDS
from adamix_server.frontend.boundary.boundary import Boundary
from adamix_server.frontend.boundary.enclosure import own_limit_s
from adamix_testing.adapters import MakeAdapter
from adamix_testing.bare_boundary import PREDICT, BareBoundary
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import failure, reason, status_of

Context = grpc.aio.ServicerContext[Any, Any]


@pytest.fixture
async def bare() -> AsyncIterator[BareBoundary]:
    async with BareBoundary() as bare:
        yield bare


def raising(error: BaseException) -> Callable[[], Any]:
    def behave() -> Any:
        raise error

    return behave


def everything_in(error: grpc.aio.AioRpcError) -> str:
    return f"{error.details()} {error.debug_error_string()} {list(error.trailing_metadata())}"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret /etc/adapters/tenantA"),
        SystemExit("secret"),
        KeyboardInterrupt("secret"),
        asyncio.CancelledError("secret"),
        TimeoutError("secret"),
        MemoryError("secret"),
        RecursionError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_no_exception_reaches_a_client_or_ends_the_server(
    bare: BareBoundary, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="adamix_server"):
        bare.servicer.behave = raising(error)
        metadata = (("x-request-id", "trace-7"),)
        unary = bare.stub.Predict(inference_pb2.PredictRequest(), metadata=metadata, timeout=5)
        stream = bare.stub.PredictStream(iter([inference_pb2.PredictStreamRequest()]), metadata=metadata, timeout=5)
        generate = bare.stub.Generate(inference_pb2.GenerateRequest(), metadata=metadata, timeout=5)
        await generate.read()
        for call in (unary, stream.read(), generate.read()):
            failed = await failure(call)
            assert failed.code() is grpc.StatusCode.INTERNAL
            assert failed.details() == "internal error, id=trace-7"
            assert reason(status_of(failed)) == "INTERNAL"
            assert "secret" not in everything_in(failed)
            assert type(error).__name__ not in everything_in(failed)
        bare.servicer.behave = inference_pb2.PredictResponse
        await bare.stub.Predict(inference_pb2.PredictRequest(), timeout=5)
    # The operator finds the whole of it under the same id.
    logged = [record for record in caplog.records if getattr(record, "request_id", "") == "trace-7"]
    assert len(logged) == 3
    assert all(record.exc_info and record.exc_info[1] is error for record in logged)


async def test_errors_of_ours_keep_their_words_and_hints(bare: BareBoundary) -> None:
    bare.servicer.behave = raising(Overloaded("full", reason="NO_SLOT", retry_after_s=0.25))
    failed = await failure(bare.stub.Predict(inference_pb2.PredictRequest()))
    assert (failed.code(), failed.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    trailers = dict(failed.trailing_metadata())
    assert trailers["x-request-id"]
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    delay_ms = retry.retry_delay.ToMilliseconds()
    assert 200 <= delay_ms <= 300
    assert trailers["grpc-retry-pushback-ms"] == str(delay_ms)


async def test_a_message_that_cannot_be_serialised_is_internal(bare: BareBoundary) -> None:
    bare.servicer.behave = lambda: "not a message"
    assert (await failure(bare.stub.Predict(inference_pb2.PredictRequest()))).code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x05\x1a\x03\xff\xfe\xfd", b"\x0a\xff\xff\xff\xff\x0f"])
async def test_garbage_is_invalid_argument(bare: BareBoundary, garbage: bytes) -> None:
    failed = await failure(bare.channel.unary_unary(PREDICT)(garbage))
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(status_of(failed)) == "MALFORMED_MESSAGE"
    stream = bare.channel.stream_stream("/adamix.v1.InferenceService/PredictStream")(iter([garbage]))
    assert reason(status_of(await failure(stream.read()))) == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("method", ["/adamix.v1.InferenceService/Nothing", "/nobody/Home", "/x"])
async def test_an_unknown_method_is_unimplemented_and_makes_no_series(bare: BareBoundary, method: str) -> None:
    for answer in (bare.channel.unary_unary(method)(b""), bare.channel.unary_stream(method)(b"").read()):
        failed = await failure(answer)
        assert failed.code() is grpc.StatusCode.UNIMPLEMENTED
        assert reason(status_of(failed)) == "UNIMPLEMENTED"
    assert bare.counts() == {("unknown", "UNIMPLEMENTED"): 2.0}


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-DEF_1.2", True), ("x" * 64, True), ("x" * 65, False), ("two words", False)]
)
async def test_a_harmless_request_id_is_kept(bare: BareBoundary, sent: str, kept: bool) -> None:
    call = bare.stub.Predict(inference_pb2.PredictRequest(), metadata=(("x-request-id", sent),))
    await call
    returned = dict(await call.trailing_metadata())["x-request-id"]
    assert (returned == sent) is kept
    assert 1 <= len(returned) <= 64


async def test_a_client_that_leaves_a_stream_ends_the_servicer(bare: BareBoundary) -> None:
    call = bare.stub.Generate(inference_pb2.GenerateRequest())
    await call.read()
    # The reader stops reading: the servicer blocks on flow control, where leaving looks different to it.
    await asyncio.sleep(0.05)
    call.cancel()
    await bare.servicer.closed.wait()
    assert await bare.admission.wait_idle(5)
    assert ("adamix.v1.InferenceService/Generate", "CANCELLED") in bare.counts()


async def test_calls_are_counted_by_method_and_code(bare: BareBoundary) -> None:
    await bare.stub.Predict(inference_pb2.PredictRequest())
    bare.servicer.behave = raising(ValueError())
    await failure(bare.stub.Predict(inference_pb2.PredictRequest()))
    bare.admission.close()
    await failure(bare.stub.Predict(inference_pb2.PredictRequest()))
    assert bare.counts() == {
        (PREDICT[1:], "OK"): 1.0,
        (PREDICT[1:], "INTERNAL"): 1.0,
        (PREDICT[1:], "UNAVAILABLE"): 1.0,
    }
    assert bare.admission._running == 0


async def test_the_methods_that_there_are_are_counted_from_0_on(bare: BareBoundary) -> None:
    begun = {sample.labels: sample.values for sample in bare.recorder.drain() if sample.name == "adamix_requests_total"}
    assert begun[PREDICT[1:], "OK"] == [0.0]
    # Not those that a servicer leaves to its base class.
    assert ("adamix.v1.AdapterService/DeleteTask", "OK") not in begun


def test_the_servers_own_time_limit() -> None:
    inf = float("inf")
    assert own_limit_s(None, 60.0) == 60.0
    assert own_limit_s(5.0, 60.0) is None
    assert own_limit_s(5000.0, 60.0) == 600.0
    assert own_limit_s(None, inf) is None
    assert own_limit_s(5000.0, inf) is None


async def test_a_call_without_a_deadline_ends_with_the_servers(
    bare: BareBoundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.boundary.boundary.DEFAULT_TIMEOUT_S", 0.05)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def predict(request: inference_pb2.PredictRequest, context: Context) -> Any:
        await never

    bare.servicer.Predict = predict  # type: ignore[method-assign]
    boundary = Boundary(bare.admission, bare.recorder)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(bare.servicer, boundary)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((boundary,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        failed = await failure(channel.unary_unary(PREDICT)(b""))
    assert failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason(status_of(failed)) == "DEADLINE_EXCEEDED"
    assert never.cancelled()
    await server.stop(0)


# The same boundary as part of a whole front end


async def test_a_10_mb_message_is_refused_by_the_transport(harness: Harness) -> None:
    big = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="x", text="x" * (10 << 20))])
    failed = await failure(harness.inference.Predict(big))
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await harness.server.GetServerInfo(server_pb2.GetServerInfoRequest())


async def test_one_megabyte_of_text_is_refused_by_its_field(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    big = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="x" * (1 << 20))])
    failed = await failure(harness.inference.Predict(big))
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(status_of(failed)) == "TEXT_TOO_LARGE"


async def test_an_encoder_generates_nothing(harness: Harness) -> None:
    failed = await failure(harness.inference.Generate(inference_pb2.GenerateRequest()).read())
    assert failed.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(status_of(failed)) == "NOT_GENERATIVE"


async def test_health_and_reflection_answer_behind_the_boundary(harness: Harness) -> None:
    health = health_pb2_grpc.HealthStub(harness.channel)
    services = [f"adamix.v1.{name}Service" for name in ("Inference", "Adapter", "Server")]
    for name in ("", *services, "inference.GRPCInferenceService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    failed = await failure(health.Check(health_pb2.HealthCheckRequest(service="other")))
    assert failed.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    harness.kill_engine()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    harness.start_engine()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    reflection = reflection_pb2_grpc.ServerReflectionStub(harness.channel)
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = json_format.MessageToDict(await call.read())["listServicesResponse"]["service"]
    assert {service["name"] for service in names} >= {*services, "inference.GRPCInferenceService"}


async def test_a_method_for_which_no_right_is_set_keeps_the_server_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = {method: need for method, need in NEEDS.items() if not method.endswith(("/Predict", "/Generate"))}
    monkeypatch.setattr(rights, "NEEDS", needs)
    with pytest.raises(FailedPrecondition) as refused:
        BareBoundary()
    assert refused.value.reason == "METHOD_WITHOUT_RIGHT"
    named = "/adamix.v1.InferenceService/Generate, /adamix.v1.InferenceService/Predict"
    assert refused.value.message == f"access/rights.py does not say which right is needed for {named}"


async def test_nor_does_one_answer_that_was_added_without_a_word(bare: BareBoundary) -> None:
    """As by code that an older compiler generated, which names no methods to the server."""

    async def answer(_request: Any, _context: Any) -> Any:
        raise AssertionError("nobody has a right to it")

    handler = grpc.unary_unary_rpc_method_handler(answer)
    bare.boundary.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", {"Z": handler}),))
    error = await failure(bare.channel.unary_unary("/x.Y/Z")(b""))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
