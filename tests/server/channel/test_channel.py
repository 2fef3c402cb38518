"""The channel between front end and engine: the same behaviour over a socket and in one process."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adamix_server.channel.channel import (
    EngineChannel,
    FrontEndChannel,
    SocketEngineChannel,
    SocketFrontEndChannel,
    connect,
    in_process_pair,
)
from adamix_server.channel.codec import ToEngine, from_engine
from adamix_server.channel.engine_frames import Cancel, Control, Credit

ENGINE_ID = "0"

Pair = tuple[EngineChannel, FrontEndChannel]


@asynccontextmanager
async def socket_pair(folder: Path) -> AsyncIterator[tuple[EngineChannel, SocketFrontEndChannel]]:
    address = f"ipc://{folder}/engine.sock"
    engine = SocketEngineChannel(address)
    front_end = await connect(address, generation=1, engine_id=ENGINE_ID)
    try:
        yield engine, front_end
    finally:
        front_end.close()
        engine.close()


@asynccontextmanager
async def local_pair(_: Path) -> AsyncIterator[Pair]:
    yield await in_process_pair(ENGINE_ID, generation=1)


@pytest.fixture(params=[socket_pair, local_pair])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """Both ends, over a socket and within this process."""
    async with request.param(tmp_path) as pair:
        yield pair


async def poll_until(engine: EngineChannel, count: int) -> list[tuple[bytes, ToEngine]]:
    arrived: list[tuple[bytes, ToEngine]] = []
    deadline = time.monotonic() + 5
    while len(arrived) < count and time.monotonic() < deadline:
        arrived += await asyncio.to_thread(engine.poll, 0.05)
    return arrived


async def test_frames_pass_both_ways_in_order(pair: Pair) -> None:
    engine, front_end = pair
    sent = [Cancel(engine_id=ENGINE_ID, generation=1, ids=[i]) for i in range(100)]
    for frame in sent:
        await front_end.send(frame)
    arrived = await poll_until(engine, 101)
    assert arrived[0][1] == Control(engine_id=ENGINE_ID, generation=1, call=0, op="hello")
    assert [frame for _, frame in arrived[1:]] == sent
    peer = arrived[0][0]
    for i in range(100):
        engine.send(peer, Credit(engine_id=ENGINE_ID, generation=1, inputs=i, tokens=0))
    received = [await asyncio.wait_for(front_end.receive(), 5) for _ in range(100)]
    assert [frame.inputs for frame in received] == list(range(100))


async def test_wake_ends_a_waiting_poll(pair: Pair) -> None:
    engine, _ = pair
    await poll_until(engine, 1)
    threading.Timer(0.1, engine.wake).start()
    started = time.monotonic()
    assert await asyncio.to_thread(engine.poll, 10.0) == []
    assert time.monotonic() - started < 5


async def test_a_front_end_that_is_gone_costs_the_engine_nothing(pair: Pair) -> None:
    engine, front_end = pair
    await poll_until(engine, 1)
    front_end.close()
    engine.send(b"nobody", Credit(engine_id=ENGINE_ID, generation=1, inputs=1, tokens=1))
    assert engine.poll(0.0) == []


async def test_an_engine_learns_that_a_front_end_is_gone_when_it_sends(tmp_path: Path) -> None:
    async with socket_pair(tmp_path) as (engine, front_end):
        ((peer, _),) = await poll_until(engine, 1)
        credit = Credit(engine_id=ENGINE_ID, generation=1, inputs=1, tokens=1)
        assert engine.send(peer, credit)
        front_end.close()
        deadline = time.monotonic() + 5
        while engine.send(peer, credit):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_an_engine_goes_on_when_a_front_end_sends_what_is_no_frame_of_its(tmp_path: Path) -> None:
    async with socket_pair(tmp_path) as (engine, front_end):
        await poll_until(engine, 1)
        for data in (
            b"",
            b"\xc1",
            from_engine.encode(Credit(engine_id=ENGINE_ID, generation=1, inputs=1, tokens=1)),
        ):
            front_end._dealer.send(data)
        cancel = Cancel(engine_id=ENGINE_ID, generation=1, ids=[1])
        await front_end.send(cancel)
        assert [frame for _, frame in await poll_until(engine, 1)] == [cancel]
