"""What ends a Generate before its answer does: each time callers keep what they have, and nothing is kept of them."""

import asyncio
import random
import struct
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest

from adamix.errors import DataLoss, DeadlineExceeded, FailedPrecondition, InternalError
from adamix_protos.v1 import adapters_pb2, inference_pb2_grpc
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.config import FrontEndSettings
from adamix_server.frontend import endpoint
from adamix_server.frontend.boundary.boundary import Boundary
from adamix_server.frontend.boundary.bounds import BOUNDS
from adamix_server.limits.calls import SLOW_READER_S
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.generating import (
    ask,
    generate,
    holding_decoder,
    next_message,
    request,
    rest_of,
    saying,
    text_of,
    tokens_of,
    until_error,
)
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import reason, refusal, status_of

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def room_of(harness: Harness) -> tuple[int, int, int, int]:
    """Credit that is free, and that is held, of inputs and tokens."""
    connection = harness.front_end._link.moving
    assert connection is not None
    room = connection.room
    return room.free_inputs, room.inputs, room.free_tokens, room.tokens


async def test_a_client_that_leaves_ends_it_in_the_engine(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    before = room_of(harness)
    call, row = await ask(harness)
    assert room_of(harness) == (before[0] - 1, 1, before[2] - 3, 3)
    harness.engine.say(row, *tokens_of("a"))
    assert (await next_message(call)).text_delta == "a"
    assert room_of(harness) == (before[0] - 1, 1, before[2], 0), "the prompt waits no more"
    call.cancel()
    await harness.until(lambda: harness.engine.cancelled == [row.id])
    await harness.until(lambda: room_of(harness) == before)


async def test_a_client_that_leaves_before_an_answer_says_nothing_of_a_version(
    start_generating: StartServing, writer: str
) -> None:
    harness = await start_generating(prepare=holding_decoder)

    async def unavailable() -> str:
        return str((await harness.adapters.GetTask(adapters_pb2.GetTaskRequest(task="writer"))).task.unavailable_reason)

    call, row = await ask(harness)
    harness.engine.say(row, error=DataLoss("damaged", reason="BLOB_CORRUPT"))
    assert reason(status_of((await until_error(call))[1])) == "BLOB_CORRUPT"
    assert await unavailable() == "BLOB_CORRUPT"
    call, row = await ask(harness)
    call.cancel()
    await harness.until(lambda: not harness.engine.held)
    assert await unavailable() == "BLOB_CORRUPT"
    call, row = await ask(harness)
    harness.engine.say(row, finish="eos")
    await rest_of(call)
    assert await unavailable() == ""


async def test_an_engine_that_dies_in_the_middle(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness)
    harness.engine.say(row, *tokens_of("ab"))
    assert (await next_message(call)).text_delta == "ab"
    harness.engine.say(row, *tokens_of("c"))
    harness.kill_engine(back_in_s=3.0)
    messages, error = await until_error(call)
    assert text_of(messages) == "c", "what came before is told first"
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(status_of(error)) == "ENGINE_RESTARTING"
    harness.start_engine()
    await harness.until(lambda: harness.front_end._link.is_up)
    harness.engine.hold = False
    assert text_of(await generate(harness)) == "abc"


async def test_a_deadline_that_passes_in_the_middle(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call = harness.inference.Generate(request(), timeout=0.4)
    await harness.until(lambda: len(harness.engine.held) == 1)
    (row,) = harness.engine.held
    harness.engine.say(row, *tokens_of("ab"))
    messages, error = await until_error(call)
    assert (text_of(messages), error.code()) == ("ab", grpc.StatusCode.DEADLINE_EXCEEDED)
    await harness.until(lambda: harness.engine.cancelled == [row.id])


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (DeadlineExceeded("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (
            FailedPrecondition("bad", reason="NON_FINITE_OUTPUT"),
            grpc.StatusCode.FAILED_PRECONDITION,
            "NON_FINITE_OUTPUT",
        ),
        (InternalError("secret /etc/adapters"), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_what_the_engine_says_in_the_middle(
    start_generating: StartServing, writer: str, error: Any, code: grpc.StatusCode, told: str
) -> None:
    harness = await start_generating(prepare=holding_decoder)
    before = room_of(harness)
    call, row = await ask(harness)
    harness.engine.say(row, *tokens_of("ab"))
    harness.engine.say(row, error=error)
    messages, failed = await until_error(call)
    assert (text_of(messages), failed.code(), reason(status_of(failed))) == ("ab", code, told)
    assert "secret" not in (failed.details() or "")
    assert room_of(harness) == before


async def test_a_client_that_does_not_read(
    start_generating: StartServing, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BOUNDS.write_s == SLOW_READER_S
    quick = partial(Boundary, bounds=replace(BOUNDS, write_s=0.15))
    monkeypatch.setattr(endpoint, "Boundary", quick)
    # A thousand at once, and then few.
    harness = await start_generating(
        prepare=holding_decoder,
        settings=FrontEndSettings(default_quotas={"generated_tokens_per_s": 10, "burst_s": 100}),
    )
    # A client that takes little ahead of its reader.
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 10))
    async with grpc.aio.insecure_channel(harness.address, options=options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(request(max_new_tokens=1000, logprobs=20))
        await harness.until(lambda: len(harness.engine.held) == 1)
        (row,) = harness.engine.held
        probabilities = struct.pack("<if", 1 << 30, -0.5) * 21
        for token in tokens_of("x" * 1000):
            harness.engine.say(row, token, logprobs=probabilities)
        await harness.until(lambda: harness.engine.cancelled == [row.id])
        messages, error = await until_error(call)
    assert (error.code(), reason(status_of(error))) == (EXHAUSTED, "SLOW_READER")
    assert 0 < len(text_of(messages)) < 1000
    # What it did not read was generated all the same: a few are left since.
    await ask(harness, max_new_tokens=100)
    again = harness.inference.Generate(request(), timeout=5)
    assert await refusal(rest_of(again)) == (EXHAUSTED, "QUOTA_GENERATED_TOKENS_PER_S")


async def test_tokens_that_were_not_generated_are_given_back(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(
        prepare=saying("hello"),
        settings=FrontEndSettings(default_quotas={"generated_tokens_per_s": 100, "concurrent_streams": 1}),
    )
    for fields in ({}, {"stop": ["l"]}):
        await generate(harness, max_new_tokens=90, **fields)
    # 5 and 3 of 100, or the second of two that ask for 90 would have been refused.
    harness.engine.hold = True
    call, row = await ask(harness, max_new_tokens=90)
    assert await refusal(rest_of(harness.inference.Generate(request()))) == (EXHAUSTED, "QUOTA_CONCURRENT_STREAMS")
    harness.engine.say(row, *tokens_of("x" * 50))
    await next_message(call)
    call.cancel()
    await harness.until(lambda: harness.engine.cancelled == [row.id])
    await harness.until(lambda: not harness.engine.held)
    # What it takes at once may be more than there is; then it waits for what it really was.
    call, row = await ask(harness, max_new_tokens=1000)
    harness.engine.say(row, *tokens_of("x" * 1000), finish="length")
    await rest_of(call)
    harness.engine.hold = False
    assert await refusal(rest_of(harness.inference.Generate(request()))) == (EXHAUSTED, "QUOTA_GENERATED_TOKENS_PER_S")


async def test_a_text_that_there_is_no_room_for_costs_nothing(
    start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter, writer: str
) -> None:
    def prepare(engine: FakeEngine) -> None:
        holding_decoder(engine)
        engine.credit = (60, 10)

    seed("sst2", make_adapter())
    harness = await start_generating(
        prepare=prepare, settings=FrontEndSettings(default_quotas={"input_tokens_per_s": 30, "burst_s": 1})
    )
    before = room_of(harness)
    # It seems to have a quarter of the tokens that it has.
    text = "x" * 12
    for _ in range(4):
        assert await refusal(rest_of(harness.inference.Generate(request(prompt=text)))) == (EXHAUSTED, "OVERLOADED")
        predicted = harness.inference.Predict(pb.PredictRequest(inputs=[pb.PredictInput(task="sst2", text=text)]))
        assert await refusal(predicted) == (EXHAUSTED, "OVERLOADED")
    assert room_of(harness) == before


async def test_many_streams_cancelled_at_random_leave_nothing(start_generating: StartServing, writer: str) -> None:
    choose = random.Random(0)
    number, at_once, most = 1_000, 32, 16

    def prepare(engine: FakeEngine) -> None:
        holding_decoder(engine)
        engine.credit = (60, 400)

    harness = await start_generating(
        prepare=prepare,
        settings=FrontEndSettings(default_quotas={"generated_tokens_per_s": 1_000_000, "concurrent_streams": at_once}),
    )
    engine, before = harness.engine, room_of(harness)
    places = asyncio.Semaphore(at_once)
    codes: set[grpc.StatusCode] = set()
    is_over = False

    async def answering() -> None:
        """An engine that says something to some, and ends it for others."""
        while not is_over:
            for row in list(engine.held):
                match choose.random():
                    case chance if chance < 0.5:
                        engine.say(row, *tokens_of("日x")[: choose.randint(1, 4)])
                    case chance if chance < 0.7:
                        engine.say(row, finish="eos")
            await asyncio.sleep(choose.choice([0, 0, 0.002]))

    async def one() -> None:
        async with places:
            call = harness.inference.Generate(request(max_new_tokens=most, stop=choose.choice([[], ["日"]])))
            for _ in range(choose.randint(0, 3)):
                if not isinstance(await _read(call), pb.GenerateResponse):
                    break
            else:
                call.cancel()
            codes.add(await call.code())

    engine_task = asyncio.create_task(answering())
    await asyncio.gather(*(one() for _ in range(number)))
    await harness.until(lambda: not engine.held)
    is_over = True
    await engine_task
    await harness.until(lambda: room_of(harness) == before)
    connection: Any = harness.front_end._link.moving
    assert connection._rows == connection._held == connection._waiting == {}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, EXHAUSTED}
    assert codes >= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


async def _read(call: Any) -> Any:
    try:
        return await call.read()
    except grpc.aio.AioRpcError:
        return None
