"""Tests share one event loop; this keeps one test from hanging it, and from leaving work on it for the next."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Every test ends long before this; one that does not has found a hang.
TEST_TIMEOUT_S = 60.0


@asynccontextmanager
async def clean_loop(timeout_s: float = TEST_TIMEOUT_S, to_end_s: float = 5.0) -> AsyncIterator[None]:
    """Whatever is started on the loop in here ends in here.

    After `timeout_s` all of it is cancelled, the test as well. Raises AssertionError with the tasks that are left
    `to_end_s` after the test: what it cancelled or closed last may need some turns of the loop to be gone.
    """
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()

    def give_up() -> None:
        for task in asyncio.all_tasks(loop) - before:
            task.cancel(f"the test did not end within {timeout_s:g} s")

    hang = loop.call_later(timeout_s, give_up)
    try:
        yield
    finally:
        hang.cancel()
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=to_end_s)
    for task in left:
        task.cancel()
    assert not left, f"the test left tasks behind: {left}"
