"""Readers that do not read: what is sent to them is bounded before it is written, and their calls end."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest

from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.boundary.bounds import BOUNDS, Bounds
from adamix_testing.bare_boundary import PREDICT, BareBoundary
from adamix_testing.refusals import refusal

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
GENERATE = "/adamix.v1.InferenceService/Generate"
QUICK = replace(BOUNDS, write_s=0.15, stuck_calls=4)
LARGE = inference_pb2.PredictResponse(predictions=[inference_pb2.Prediction(task="x" * (3 << 20))])


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts a boundary with bounds of the test's own."""
    async with asyncio.timeout(30):
        open_ones: list[BareBoundary] = []

        async def start(bounds: Bounds = QUICK) -> BareBoundary:
            bare = BareBoundary(bounds)
            open_ones.append(bare)
            return await bare.__aenter__()

        yield start
        for bare in open_ones:
            await bare.__aexit__()


async def let_go(bare: BareBoundary) -> None:
    """Let grpc forget what it can: it may remember the last call of a kind until there is another."""
    bare.servicer.behave = inference_pb2.PredictResponse
    for _ in range(2):
        await asyncio.sleep(0.02)
        half_open = bare.half_open(bare.connect())
        await asyncio.sleep(0.02)
        half_open.cancel()
        await bare.predict(bare.connect())
    gc.collect()


async def unread(bare: BareBoundary, method: str, channel: Any = None) -> Any:
    """A call whose answers are not read: grpc reads one message ahead, and no more."""
    call = (channel or bare.channel).stream_stream(method)()
    await call.write(b"")
    await call.done_writing()
    return call


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined] # the stubs do not have it
        pass


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the test's timeout is the limit
        await asyncio.sleep(0.005)


async def test_a_stream_that_nobody_reads_ends(start: Callable[..., Any]) -> None:
    assert BOUNDS.write_s == 30.0
    bare = await start()
    written, of_call = 0, asyncio.current_task()

    def behave() -> None:
        nonlocal written, of_call
        written, of_call = written + 1, asyncio.current_task()

    bare.servicer.behave = behave
    call = await unread(bare, GENERATE)
    await bare.servicer.closed.wait()
    # Flow control and one buffer in grpc: a part of the 100 MB that there would be.
    assert 0 < written < 30
    assert await bare.admission.wait_idle(1)
    await until(lambda: bare.admission._calls.free == QUICK.calls)
    assert of_call is not None
    await until(of_call.done)
    assert bare.boundary._books.sending._stuck.total() == 1
    # Whoever reads on is told why it ends.
    assert await refusal(read_all(call)) == (EXHAUSTED, "SLOW_READER")
    assert bare.counts("adamix_rejected_total") == {("SLOW_READER",): 1.0}


async def test_a_large_answer_that_nobody_reads_is_let_go(start: Callable[..., Any]) -> None:
    bare = await start()
    sending = bare.boundary._books.sending
    bare.servicer.behave = lambda: LARGE
    calls = [await unread(bare, PREDICT) for _ in range(4)]
    await until(lambda: sending._stuck.total() == 4)
    # The calls are over, their room among the calls is free; their bytes count for as long as grpc has them.
    await until(lambda: bare.admission._calls.free == QUICK.calls)
    assert bare.admission._running == 0
    assert sending._room.free == QUICK.unsent_bytes - 4 * LARGE.ByteSize()
    for call in calls:
        call.cancel()
    await let_go(bare)
    assert sending._stuck.total() <= 1
    assert sending._room.free >= QUICK.unsent_bytes - LARGE.ByteSize()


async def test_a_connection_that_never_reads_gets_no_more(start: Callable[..., Any]) -> None:
    assert BOUNDS.stuck_calls == 16
    bare = await start()
    bare.servicer.behave = lambda: LARGE
    hostile = bare.connect()
    calls = [await unread(bare, PREDICT, hostile) for _ in range(4)]
    await until(lambda: bare.boundary._books.sending._stuck.total() == 4)
    assert await refusal(bare.predict(hostile)) == (EXHAUSTED, "SLOW_READER")
    # On another one all is as before.
    await bare.predict()
    for call in calls:
        call.cancel()


async def test_unsent_answers_have_room(start: Callable[..., Any]) -> None:
    assert BOUNDS.unsent_bytes == 64 << 20
    bare = await start(replace(QUICK, unsent_bytes=4 << 20, write_s=0.4))
    sending = bare.boundary._books.sending
    bare.servicer.behave = lambda: LARGE
    # More than a connection's share, until others are gone; alone it always has room for one.
    first = await unread(bare, PREDICT)
    await until(lambda: sending._room.free < 4 << 20)
    assert await refusal(bare.predict(bare.connect())) == (EXHAUSTED, "SLOW_READER")
    # What was asked for is sent all the same, as soon as it is read.
    assert len(await first.read()) == LARGE.ByteSize()


async def test_readers_that_read_get_everything(start: Callable[..., Any]) -> None:
    bare = await start()
    bare.servicer.behave = lambda: LARGE
    answers = await asyncio.gather(*(bare.predict(bare.connect()) for _ in range(8)))
    assert {len(answer) for answer in answers} == {LARGE.ByteSize()}
    bare.servicer.delta = "x" * (1 << 20)
    call = await unread(bare, GENERATE)
    for _ in range(5):
        assert len(await call.read()) > 1 << 20
        await asyncio.sleep(0.05)
    call.cancel()
    await bare.servicer.closed.wait()
    await bare.predict()
    await until(lambda: bare.boundary._books.sending._room.free == QUICK.unsent_bytes)
    assert bare.counts("adamix_rejected_total") == {}
