"""What keeps the tests apart that share an event loop."""

import asyncio

import pytest

from adamix_testing.event_loop import clean_loop


async def test_a_task_that_is_left_behind_is_told_and_ended() -> None:
    with pytest.raises(AssertionError, match="left tasks behind"):
        async with clean_loop(to_end_s=0.01):
            left = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(asyncio.CancelledError):
        await left


async def test_what_does_not_end_is_cancelled() -> None:
    async with clean_loop(timeout_s=0.01):
        hangs = asyncio.create_task(asyncio.sleep(60))
        with pytest.raises(asyncio.CancelledError, match="did not end within"):
            await hangs


async def test_what_ends_soon_after_the_test_is_no_matter() -> None:
    async with clean_loop():
        last = asyncio.create_task(asyncio.sleep(0.01))
    assert last.done()
