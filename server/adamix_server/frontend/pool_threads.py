"""Waits for work in a pool's thread, and does not leave it behind: what runs there is somebody's until it has ended."""

import asyncio
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def outcome(work: Future[T]) -> T:
    """What `work` comes to. Cancelled before its turn, it is not begun; later, only after it has ended."""
    try:
        return await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        if not work.cancelled():
            ended = asyncio.wrap_future(work)
            # Nobody is left whom its error would tell anything.
            ended.add_done_callback(asyncio.Future.exception)
            await asyncio.wait([ended])
        raise
