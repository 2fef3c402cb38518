"""The stream of a row's events: what has come is shown in order, however it is taken, and its end is an end."""

import asyncio

import pytest

from adamix.errors import Unavailable
from adamix_server.channel.engine_frames import Event, Finish
from adamix_server.frontend.event_stream import EventStream

FINISH = Finish(reason="eos", num_tokens=1, cached_tokens=0, seed=0)


def early(seq: int) -> Event:
    return Event(id=7, seq=seq, final=False)


async def seqs(stream: EventStream, most: int = 99) -> list[int]:
    return [event.seq for _, event in await stream.take(most)]


async def test_what_has_come_is_taken_at_once_and_in_order() -> None:
    stream = EventStream(7)
    for seq in range(3):
        stream.put(early(seq))
    assert await seqs(stream, 2) == [0, 1]
    assert await seqs(stream) == [2]
    waiting = asyncio.create_task(seqs(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.put(early(3))
    assert await waiting == [3]


async def test_the_final_event_comes_last_and_is_the_futures() -> None:
    stream = EventStream(7)
    stream.put(early(0))
    final = Event(id=7, seq=1, finish=FINISH)
    stream.put(final)
    stream.put(early(2))
    assert stream.result() is final
    assert await seqs(stream) == [0, 1]
    with pytest.raises(RuntimeError):
        await stream.take(1)


async def test_what_came_before_an_error_is_taken_first() -> None:
    stream = EventStream(7)
    stream.put(early(0))
    stream.set_exception(Unavailable("gone"))
    assert await seqs(stream) == [0]
    with pytest.raises(Unavailable):
        await stream.take(1)


async def test_who_waits_is_told_of_an_error() -> None:
    stream = EventStream(7)
    waiting = asyncio.create_task(stream.take(1))
    await asyncio.sleep(0)
    stream.set_exception(Unavailable("gone"))
    with pytest.raises(Unavailable):
        await waiting


async def test_nothing_comes_to_one_that_was_cancelled() -> None:
    stream = EventStream(7)
    stream.cancel()
    stream.put(early(0))
    stream.put(Event(id=7, seq=1, finish=FINISH))
    with pytest.raises(asyncio.CancelledError):
        await stream.take(1)
