"""A supervisor that is played: the other end of a front end's pipe, in the same process."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from adamix_server.channel.codec import FromChild, ToChild
from adamix_server.channel.engine_frames import Frame
from adamix_server.channel.supervisor_frames import Account, Agreed, Asks, Sample, Seen, Stats

Kind = TypeVar("Kind", bound=Frame)


class FakeSupervisor:
    """The other end of the pipe. Agrees to everything, as if there were no other front end, unless told not to.

    Attributes:
        lend: is told what the front end needs of quotas; None: nobody answers.
    """

    def __init__(self) -> None:
        self.agrees = True
        self.lend: Callable[[Asks], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._to_child: asyncio.Queue[ToChild | None] = asyncio.Queue()
        self.from_child: asyncio.Queue[FromChild] = asyncio.Queue()

    def send(self, frame: FromChild) -> None:
        self._loop.call_soon_threadsafe(self._take, frame)

    def report(self, drain: Callable[[], list[Sample]]) -> None:
        self.send(Stats(samples=drain()))

    def account(self, make: Callable[[], Account]) -> None:
        self.send(make())

    async def receive(self) -> ToChild | None:
        return await self._to_child.get()

    def _take(self, frame: FromChild) -> None:
        if isinstance(frame, Seen) and self.agrees:
            self.tell(Agreed(revision=frame.revision, oldest=frame.oldest))
        if isinstance(frame, Asks) and self.lend is not None:
            self.lend(frame)
        self.from_child.put_nowait(frame)

    def tell(self, frame: ToChild | None) -> None:
        self._to_child.put_nowait(frame)

    async def expect(self, kind: type[Kind]) -> Kind:
        """The next frame of this kind; others are passed over."""
        while not isinstance(frame := await self.from_child.get(), kind):
            pass
        return frame
