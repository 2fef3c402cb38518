"""The channel between front end and engine: the same behaviour over a socket and in one process."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adamix_server.channel import EngineChannel, FrontEndChannel, SocketEngineChannel, connect, in_process_pair
from adamix_server.frames import AnyFrame, Cancel, Control, Credit, Row, Submit, decode, encode

Pair = tuple[EngineChannel, FrontEndChannel]


@asynccontextmanager
async def socket_pair(folder: Path) -> AsyncIterator[Pair]:
    address = f"ipc://{folder}/engine.sock"
    engine = SocketEngineChannel(address)
    front_end = await connect(address, generation=1)
    try:
        yield engine, front_end
    finally:
        front_end.close()
        engine.close()


@asynccontextmanager
async def local_pair(_: Path) -> AsyncIterator[Pair]:
    yield await in_process_pair()


@pytest.fixture(params=[socket_pair, local_pair])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """Both ends, over a socket and within this process."""
    async with request.param(tmp_path) as pair:
        yield pair


async def poll_until(engine: EngineChannel, count: int) -> list[tuple[bytes, AnyFrame]]:
    arrived: list[tuple[bytes, AnyFrame]] = []
    deadline = time.monotonic() + 5
    while len(arrived) < count and time.monotonic() < deadline:
        arrived += await asyncio.to_thread(engine.poll, 0.05)
    return arrived


async def test_frames_pass_both_ways_in_order(pair: Pair) -> None:
    engine, front_end = pair
    sent = [Cancel(generation=1, ids=[i]) for i in range(100)]
    for frame in sent:
        await front_end.send(frame)
    arrived = await poll_until(engine, 101)
    assert arrived[0][1] == Control(generation=1, call=0, op="hello")
    assert [frame for _, frame in arrived[1:]] == sent
    peer = arrived[0][0]
    for i in range(100):
        engine.send(peer, Credit(generation=1, inputs=i, tokens=0))
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
    engine.send(b"nobody", Credit(generation=1, inputs=1, tokens=1))
    assert engine.poll(0.0) == []


def test_frames_survive_the_wire_bit_for_bit() -> None:
    row = Row(id=2**63, tenant="default", digest="a" * 64, token_ids=b"\x00\xff" * 4, deadline=1.5, type_ids=b"")
    frame = Submit(generation=3, rows=[row])
    assert decode(encode(frame)) == frame
