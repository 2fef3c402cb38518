"""What a connection asks without pause, beside predictions and alone."""

import asyncio

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc, inference_pb2
from adamix_server.frontend.boundary import pace
from adamix_server.frontend.boundary.pace import BURST_S, MAX_WAIT_S, Pace
from adamix_server.frontend.boundary.rooms import Origin
from adamix_server.limits.calls import MAX_OTHER_CALLS_PER_S
from adamix_testing.bare_boundary import BareBoundary
from adamix_testing.refusals import refusal

GAP_S = 1.0 / MAX_OTHER_CALLS_PER_S
AT_ONCE = round(BURST_S * MAX_OTHER_CALLS_PER_S) + 1


def test_so_many_at_once_and_then_at_a_steady_rate() -> None:
    found = Pace(lambda: True)
    now = 1000.0
    dues = [found.due("a", now) for _ in range(AT_ONCE + 3)]
    assert [due <= now + 1e-9 for due in dues] == [True] * AT_ONCE + [False] * 3
    assert dues[-1] == pytest.approx(now + 3 * GAP_S)
    # Each connection for itself.
    assert found.due("b", now) <= now
    # One that keeps to the rate never waits.
    for second in range(1, 3 * MAX_OTHER_CALLS_PER_S):
        then = now + 10.0 + second * GAP_S
        assert found.due("a", then) <= then


def test_however_much_one_has_asked_it_is_told_something_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_MAX_KNOWN", 3)
    found = Pace(lambda: True)
    for _ in range(10_000):
        assert found.due("a", 1000.0) <= 1000.0 + MAX_WAIT_S
    # Others come and go, and it is not forgotten for them.
    for number in range(10):
        found.due(f"{number}", 1001.0 + number / 10)
    assert found.due("a", 1002.0) > 1002.0


async def test_a_unix_socket_is_many_callers_and_without_data_calls_nobody_waits() -> None:
    is_shared = True
    found = Pace(lambda: is_shared)
    waiting = [asyncio.ensure_future(found.turn(Origin("a"))) for _ in range(500)]
    await asyncio.sleep(0)
    assert sum(task.done() for task in waiting) <= AT_ONCE + 1
    async with asyncio.timeout(1.0):
        for _ in range(500):
            await found.turn(Origin("unix:", is_trusted=True))
    is_shared = False
    async with asyncio.timeout(2.0):  # with their rate it is the wait at most
        await asyncio.gather(*waiting)


async def test_what_is_no_prediction_waits_and_predictions_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "BURST_S", 0.0)
    monkeypatch.setattr(pace, "MAX_OTHER_CALLS_PER_S", 1e-9)
    is_shared = True
    async with BareBoundary(is_shared=lambda: is_shared) as bare:
        health = health_pb2_grpc.HealthStub(bare.channel)
        adapters = adapters_pb2_grpc.AdapterServiceStub(bare.channel)
        await health.Check(health_pb2.HealthCheckRequest())
        asked = [
            asyncio.ensure_future(call)
            for call in (
                refusal(health.Check(health_pb2.HealthCheckRequest(service="nobody's"))),
                refusal(adapters.GetTask(adapters_pb2.GetTaskRequest(task="../"))),
                refusal(bare.channel.unary_unary("/no.Service/Method")(b"")),
            )
        ]
        for _ in range(3):
            await bare.stub.Predict(inference_pb2.PredictRequest())
        # Another connection's come at once, an upload's first message among them, and its others after it.
        other = adapters_pb2_grpc.AdapterServiceStub(bare.connect())
        chunks = [adapters_pb2.RegisterAdapterRequest(chunk=b"x")] * 5
        assert (await other.RegisterAdapter(iter(chunks))).version.num_bytes == 5
        assert not any(task.done() for task in asked)
        is_shared = False
        codes = [code for code, _ in await asyncio.gather(*asked)]
    assert codes == [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNIMPLEMENTED]
