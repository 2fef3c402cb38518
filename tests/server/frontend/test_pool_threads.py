"""Work in a pool's thread whose caller is gone: it is not begun, or it is waited for."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adamix_server.frontend.pool_threads import outcome


async def test_a_caller_that_is_cancelled_ends_with_the_work_it_has_begun_and_begins_none() -> None:
    go_on, begun = threading.Event(), asyncio.Event()
    loop, done = asyncio.get_running_loop(), list[str]()

    def work(name: str) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        done.append(name)
        raise ValueError(name)

    pool = ThreadPoolExecutor(1)
    try:
        first = asyncio.create_task(outcome(pool.submit(work, "first")))
        second = asyncio.create_task(outcome(pool.submit(work, "second")))
        await begun.wait()
        first.cancel()
        second.cancel()
        await asyncio.wait([second])
        assert not first.done()
    finally:
        go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    pool.shutdown()
    assert done == ["first"]


async def test_otherwise_it_is_what_the_work_comes_to() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert await outcome(pool.submit(lambda: 7)) == 7
        with pytest.raises(ZeroDivisionError):
            await outcome(pool.submit(lambda: 1 // 0))
