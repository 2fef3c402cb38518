"""Calls given up at every stage of their way through a front end: exactly the credit that was granted comes back."""

import asyncio
import random
from typing import Any

import grpc

from adamix_protos.v1 import inference_pb2 as pb
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import StartServing

CALLS, AT_ONCE = 1_200, 24
CREDIT = (60, 400)
TASKS = ("a", "b", "c")


async def test_every_credit_comes_back(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    for number, task in enumerate(TASKS):
        seed(task, make_adapter(seed=number))
    choose = random.Random(0)
    codes: set[grpc.StatusCode] = set()

    def prepare(engine: FakeEngine) -> None:
        engine.credit = CREDIT

    harness = await start_serving(prepare=prepare)
    engine = harness.engine
    engine.hold = True
    link = harness.front_end._link
    places = asyncio.Semaphore(AT_ONCE)
    done = False

    async def answering() -> None:
        """An engine that answers in any order and sometimes not for a while."""
        while not done:
            await asyncio.sleep(choose.choice([0, 0, 0.002, 0.01]))
            some = [row for row in engine.held if choose.random() < 0.3]
            engine.answer(some)

    async def one() -> None:
        inputs = [pb.PredictInput(task=choose.choice(TASKS), text="w1 w2 w3") for _ in range(choose.choice([1, 3, 9]))]
        async with places:
            timeout_s = choose.choice([None, None, choose.uniform(0.0005, 0.02)])
            call = harness.inference.Predict(pb.PredictRequest(inputs=inputs), timeout=timeout_s)
            if timeout_s is None and choose.random() < 0.8:
                await asyncio.sleep(choose.choice([0, 0.001, choose.uniform(0, 0.02)]))
                call.cancel()
            code = await call.code()
            # The transport refuses new streams to a connection with too many that are not yet cleared away.
            if code is grpc.StatusCode.UNAVAILABLE and "RST_STREAM" in (await call.details() or ""):
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
            codes.add(code)

    answers = asyncio.create_task(answering())
    await asyncio.gather(*(one() for _ in range(CALLS)))
    done = True
    await answers
    engine.hold = False
    engine.answer_all()
    assert link.moving is not None
    connection, room = link.moving, link.moving.room
    await harness.until(lambda: not connection._waiting and not engine.held)
    await harness.until(lambda: (room.free_inputs, room.free_tokens) == CREDIT)
    assert (room.inputs, room.tokens) == (0, 0)
    assert connection._rows == connection._held == {}
    feeding: Any = getattr(link.on_room, "__self__", None)
    assert (feeding._lines, feeding._admitted, feeding._waiting.inputs) == ({}, {}, 0)
    assert codes >= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert codes <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
