"""What waits for a row that is answered by several events.

To whatever sends rows, lets them wait and cancels them it is the future of the row's final event; who reads it is shown
the events before that as they come. Belongs to one event loop; knows neither connections nor what a token means.
"""

import asyncio
import time
from collections import deque

from adamix_server.channel.engine_frames import Event

# When an event came, in seconds on CLOCK_MONOTONIC, and the event.
Arrival = tuple[float, Event]


class EventStream(asyncio.Future[Event]):
    """The events of the row with this id. What has come and is not taken is no more than the row asked for."""

    def __init__(self, row_id: int) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.row_id = row_id
        self._arrivals: deque[Arrival] = deque()
        self._has_news = asyncio.Event()
        self.add_done_callback(self._wake)

    def put(self, event: Event) -> None:
        """An event has come. After the end nothing does."""
        if self.done():
            return
        self._arrivals.append((time.monotonic(), event))
        if event.final:
            self.set_result(event)
        else:
            self._has_news.set()

    async def take(self, most: int) -> list[Arrival]:
        """What came since the last time, but no more than so many, as soon as that is anything; the last of all is the
        final event.

        Raises:
            AdamixError: it was ended without one, and what came before has been taken.
        """
        while not self._arrivals and not self.done():
            self._has_news.clear()
            await self._has_news.wait()
        if not self._arrivals:
            self.result()
            raise RuntimeError("nothing comes after the final event")
        return [self._arrivals.popleft() for _ in range(min(most, len(self._arrivals)))]

    def left(self) -> list[Event]:
        """What has come and was not taken."""
        return [event for _, event in self._arrivals]

    def _wake(self, _: asyncio.Future[Event]) -> None:
        self._has_news.set()
