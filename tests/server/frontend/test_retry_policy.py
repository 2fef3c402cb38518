"""Retries by a client's own library: a stock policy carries a call over an engine's restart, and stops where told."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from adamix.errors import Overloaded
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import details, failure, reason, status_of

ONE = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])
# As the documentation of gRPC gives it.
POLICY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


@asynccontextmanager
async def stock_client(harness: Harness) -> AsyncIterator[inference_pb2_grpc.InferenceServiceStub]:
    options = [("grpc.enable_retries", 1), ("grpc.service_config", json.dumps(POLICY))]
    async with grpc.aio.insecure_channel(harness.address, options=options) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_call_is_carried_over_the_restart_of_an_engine(
    waits: bool, start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """`waits`: it was sent before the engine went, and waits for its answer; else while there is none."""
    seed("sst2", make_adapter())
    harness = await start_serving()
    async with stock_client(harness) as stub:
        harness.engine.hold = waits
        if not waits:
            harness.kill_engine(back_in_s=0.5)
            await harness.until(lambda: not harness.front_end._link.is_up)
        call = stub.Predict(ONE, timeout=20)
        if waits:
            await harness.until(lambda: len(harness.engine.held) == 1)
            harness.kill_engine(back_in_s=0.5)
            await harness.until(lambda: not harness.front_end._link.is_up)
            harness.engine.hold = False
        else:
            await harness.until(lambda: refused(harness, "ENGINE_RESTARTING") > 0)
        assert not call.done()
        harness.start_engine()
        response = await call
    assert response.predictions[0].version
    assert sum(len(submit.rows) for submit in harness.engine.submits) == 1 + waits


async def test_a_call_is_carried_over_a_full_queue(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=lambda engine: vars(engine).update(credit=(1, 1000), hold=True))
    async with stock_client(harness) as stub:
        first = stub.Predict(ONE, timeout=20)
        await harness.until(lambda: len(harness.engine.held) == 1)
        second = stub.Predict(ONE, timeout=20)
        await harness.until(lambda: refused(harness, "OVERLOADED") > 0)
        harness.engine.hold = False
        harness.engine.answer_all()
        for call in (first, second):
            assert (await call).predictions[0].version


async def test_what_no_retry_helps_is_tried_once(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.fail = lambda row: Overloaded("half of the slots are pinned", reason="TOO_MANY_PINNED")
    async with stock_client(harness) as stub:
        error = await failure(stub.Predict(ONE, timeout=20))
    status = status_of(error)
    assert reason(status) == "TOO_MANY_PINNED"
    assert "RetryInfo" not in details(status)
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
    assert sum(len(submit.rows) for submit in harness.engine.submits) == 1


def refused(harness: Harness, why: str) -> float:
    """How many inputs were refused for this reason since the last time that was reported."""
    pending = harness.front_end._recorder._pending
    return sum(pending.get(("adamix_rejected_total", (why,)), ()))
