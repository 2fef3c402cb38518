"""A child that is played, kept running."""

import asyncio

from adamix_server.channel.codec import FromChild
from adamix_server.channel.supervisor_frames import Ready
from adamix_server.supervisor.keeper import Keeper


class Held:
    """A child that says it is ready, and that its end does not silence: the kernel holds it, and so its pipe."""

    def __init__(self) -> None:
        self.is_ready = False
        self.kills = 0

    async def receive(self) -> FromChild | None:
        if self.is_ready:
            await asyncio.Event().wait()
        return Ready()

    async def kill(self) -> int:
        self.kills += 1
        return -9

    async def stop(self, grace_s: float) -> int:
        return 0


async def test_a_child_that_outlives_its_end_is_replaced_without_waiting_for_its_silence() -> None:
    children: list[Held] = []
    stopping = asyncio.Event()

    async def start() -> Held:
        children.append(Held())
        return children[-1]

    ended: list[int] = []
    keeper = Keeper(
        "engine",
        600,
        start=start,  # type: ignore[arg-type]  # a child that is played
        on_frame=lambda _: None,
        on_end=lambda: ended.append(len(children)),
        stopping=stopping,
    )
    running = asyncio.create_task(keeper.run())
    try:
        async with asyncio.timeout(10):
            while not keeper.is_ready:  # noqa: ASYNC110 - the test has no event for it
                await asyncio.sleep(0.01)
            await keeper.replace()
            while not (len(children) == 2 and keeper.is_ready):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert children[0].kills
        assert ended == [1]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
