"""An engine that stands still: nobody is sent to it, what waits for it may yet be answered, and everybody is told."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamix_protos.open_inference import open_inference_pb2, open_inference_pb2_grpc
from adamix_protos.v1 import adapters_pb2, inference_pb2, server_pb2
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import details, failure, reason, status_of

ONE = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])
TWO = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1 w2")] * 2)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
LOAD = server_pb2.GetLoadRequest()
STALLED = (grpc.StatusCode.UNAVAILABLE, "ENGINE_STALLED")


async def health(harness: Harness) -> int:
    stub = health_pb2_grpc.HealthStub(harness.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service="adamix.v1.InferenceService"))).status)


async def until_health(harness: Harness, wanted: int) -> None:
    async with asyncio.timeout(10):
        while await health(harness) != wanted:  # noqa: ASYNC110 - a watch would be one more thing to end
            await asyncio.sleep(0.01)


async def open_inference_readiness(harness: Harness) -> tuple[bool, bool]:
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    server = await stub.ServerReady(open_inference_pb2.ServerReadyRequest())
    model = await stub.ModelReady(open_inference_pb2.ModelReadyRequest(name="sst2"))
    return server.ready, model.ready


async def test_a_stalled_engine_is_told_and_takes_nothing_until_it_moves(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    assert await health(harness) == SERVING
    harness.engine.hold = True
    waiting = asyncio.ensure_future(harness.inference.Predict(ONE))
    await harness.until(lambda: len(harness.engine.held) == 1)
    harness.stall_engine(for_s=8.0, back_in_s=40.0)
    await until_health(harness, NOT_SERVING)
    assert await open_inference_readiness(harness) == (False, False)
    for call in (harness.inference.Predict(ONE), harness.inference.Predict(TWO), harness.server.GetLoad(LOAD)):
        error = await failure(call)
        status = status_of(error)
        assert (error.code(), reason(status)) == STALLED
        # As long again as it has stood still, give or take a fifth.
        delay_ms = details(status)["RetryInfo"].retry_delay.ToMilliseconds()
        assert 6_400 <= delay_ms <= 10_000
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == str(delay_ms)
    # Neither the catalog nor what the engine has said before needs it to move.
    assert len((await harness.adapters.ListTasks(adapters_pb2.ListTasksRequest())).tasks) == 1
    await harness.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert not waiting.done()
    harness.engine.hold = False
    harness.engine.answer_all()
    assert (await waiting).predictions[0].version
    harness.move_engine()
    await until_health(harness, SERVING)
    assert await open_inference_readiness(harness) == (True, True)
    assert (await harness.inference.Predict(ONE)).predictions[0].version


async def test_what_waits_for_a_stalled_engine_ends_with_it(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    waiting = asyncio.ensure_future(harness.inference.Predict(ONE))
    await harness.until(lambda: len(harness.engine.held) == 1)
    harness.stall_engine()
    await until_health(harness, NOT_SERVING)
    harness.kill_engine(back_in_s=5.0)
    error = await failure(waiting)
    assert (error.code(), reason(status_of(error))) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTING")
    assert 4_900 <= details(status_of(error))["RetryInfo"].retry_delay.ToMilliseconds() <= 7_500
    harness.engine.hold = False
    harness.start_engine()
    await until_health(harness, SERVING)
    assert (await harness.inference.Predict(ONE)).predictions[0].version
