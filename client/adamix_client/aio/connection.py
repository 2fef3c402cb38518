"""`Connection` for an event loop: its channels are those of `grpc.aio`, made in the loop of the first call."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc.aio

from adamix_client.connection import Connection, Link, Option
from adamix_client.destination import NO_CREDENTIALS, Credentials

# How soon a pause ends with its client.
_LOOK_S = 0.1


class AsyncConnection(Connection):
    """The way to one server, for the tasks of one event loop; of no use to a forked process."""

    _library = grpc.aio

    def __init__(
        self,
        address: str,
        options: Sequence[tuple[str, Option]],
        renewal_s: float,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        super().__init__(address, options, renewal_s, credentials)
        self._closing: set[asyncio.Task[None]] = set()

    @contextmanager
    def calling(self) -> Iterator[Link]:
        """As that of `Connection`. A call that ends because its channel is closed is no cancelled task."""
        with super().calling() as link:
            try:
                yield link
            except asyncio.CancelledError:
                if not is_cancelled():
                    self.check_usable()
                raise

    async def messages_of(self, begin: Callable[[Link], Any]) -> AsyncGenerator[Any, None]:
        """What comes over the stream that `begin` opens. Raises as `calling`; closing it ends the stream."""
        with self.calling() as link:
            call = begin(link)
            try:
                async for message in call:
                    link.heard()
                    yield message
                    self.check_usable()
            finally:
                self.cancel(call)

    async def pause(self, pause_s: float) -> bool:
        """Sleep; whether the client was closed meanwhile."""
        end = asyncio.get_running_loop().time() + pause_s
        while not self.is_closed:
            left_s = end - asyncio.get_running_loop().time()
            if left_s <= 0:
                return False
            await asyncio.sleep(min(left_s, _LOOK_S))
        return True

    async def end(self) -> None:
        """End everything that runs."""
        for link in self.retire_all():
            await link.channel.close()

    def _shut(self, link: Link) -> None:
        closing = asyncio.get_running_loop().create_task(link.channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def is_cancelled() -> bool:
    """Whether somebody cancels the task that runs; gRPC ends calls by the same exception."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
