"""`Watching` on an event loop: the same state, and silence measured by the loop's clock."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc.aio

from adamix_client import watching
from adamix_client.aio.connection import AsyncConnection
from adamix_client.errors import AdamixError, Unavailable
from adamix_client.values import TaskChange
from adamix_client.watching import WatchState
from adamix_protos.v1 import adapters_pb2


class AsyncWatching:
    """One watch."""

    def __init__(self, connection: AsyncConnection, patience_s: float) -> None:
        self._connection = connection
        self._state = WatchState(patience_s)

    async def changes(self) -> AsyncGenerator[TaskChange, None]:
        """Every task once, then every difference. See `AsyncClient.watch`."""
        while True:
            self._state.begin()
            try:
                async with aclosing(self._messages()) as messages:
                    async for message in messages:
                        for change in self._state.read(message):
                            yield change
                failure: AdamixError = Unavailable("the server has ended the stream")
            except AdamixError as error:
                failure = error
            pause_s = self._state.pause_s(failure)
            if pause_s is None or await self._connection.pause(pause_s):
                return

    async def _messages(self) -> AsyncGenerator[adapters_pb2.WatchTasksResponse, None]:
        """One stream's messages; ends it, and with it the channel, where it is silent for too long."""
        with self._connection.calling() as link:
            call = link.adapters.WatchTasks(adapters_pb2.WatchTasksRequest(), metadata=link.metadata)
            says_it_lives = False
            try:
                while True:
                    try:
                        async with asyncio.timeout(watching.SILENCE_S if says_it_lives else None):
                            message = await call.read()
                    except TimeoutError:
                        self._connection.renew(link)
                        raise watching.silent(self._connection.address) from None
                    if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # its stubs lack it
                        return
                    link.heard()
                    says_it_lives = says_it_lives or message.heartbeat or message.synchronised
                    yield message
                    self._connection.check_usable()
            finally:
                self._connection.cancel(call)
