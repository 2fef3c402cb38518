"""What leaves: answers and the end of a call, to readers that may not read.

grpc takes a message whether its reader does or not, and cannot be told to drop it: a write that waits, waits for the
reader. So large answers take room before they are written, every write has a limit, and a call that is ended because
nobody reads it is counted against its connection until grpc could let go of it: when the client reads on, cancels, or
its connection ends (at the latest when it has grown too old, see `endpoint.py`). Knows grpc; knows no service.
"""

import asyncio
import logging
import weakref
from collections import Counter
from typing import Any

import grpc.aio

from adamix.errors import Overloaded
from adamix_server import retry
from adamix_server.frontend.boundary.bounds import SMALL_BYTES, Bounds
from adamix_server.frontend.boundary.patience import Patience, Wait
from adamix_server.frontend.boundary.rooms import Origin, Room
from adamix_server.limits.calls import SLOW_READER_S
from adamix_server.limits.messages import MAX_MESSAGE_BYTES
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
# grpc takes this much at once, whether its reader reads or not.
MAY_WAIT_BYTES = 32 << 10

# grpc.aio.ServicerContext: generic in grpc-stubs, but not when it runs.
Context = Any


class Sending:
    """The answers of all calls on their way out. Belongs to one event loop."""

    def __init__(self, bounds: Bounds, recorder: Recorder) -> None:
        self.loop = asyncio.get_running_loop()
        self._room = Room(bounds.unsent_bytes, least=MAX_MESSAGE_BYTES)
        self._write_s = bounds.write_s
        self._most_stuck = bounds.stuck_calls
        self._recorder = recorder
        self._freed = asyncio.Event()
        self._stuck: Counter[str] = Counter()
        self.writes: Patience[Departure] = Patience(bounds.write_s)
        self.ends: Patience[Departure] = Patience(bounds.write_s, self._end_is_stuck)

    def check(self, origin: Origin) -> None:
        """Raises Overloaded (`SLOW_READER`) for a connection with too many answers that nobody has read."""
        if self._stuck and self._stuck[origin.connection] >= self._most_stuck and not origin.is_trusted:
            raise slow_reader()

    def close(self) -> None:
        """Watch no more."""
        self.writes.close()
        self.ends.close()

    def count_stuck(self, departure: "Departure") -> None:
        """A call that was ended because nobody read it: it weighs on its connection until grpc lets go of it."""
        if departure.is_stuck:
            return
        departure.is_stuck = True
        self._recorder.inc("adamix_rejected_total", "SLOW_READER")
        self._stuck[departure.origin.connection] += 1
        # Lives as long as what grpc knows of the call, since it is a part of that.
        mark = _Mark(departure.request_id)
        departure.context.set_trailing_metadata(((REQUEST_ID_KEY, mark),))
        departure.mark = mark
        weakref.finalize(mark, self._let_go, departure.origin, departure.held).atexit = False
        departure.held = 0

    async def take(self, origin: Origin, num_bytes: int) -> int:
        """Room for a large answer. Raises Overloaded (`SLOW_READER`) if earlier ones are not read for too long."""
        try:
            async with asyncio.timeout(self._write_s):
                while not self._room.take(origin, num_bytes):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            self._recorder.inc("adamix_rejected_total", "SLOW_READER")
            raise slow_reader() from None
        return num_bytes

    def give(self, origin: Origin, num_bytes: int) -> None:
        self._room.give(origin, num_bytes)
        self._freed.set()

    def _let_go(self, origin: Origin, num_bytes: int) -> None:
        self._stuck[origin.connection] -= 1
        if not self._stuck[origin.connection]:
            del self._stuck[origin.connection]
        if num_bytes:
            self.give(origin, num_bytes)

    def _end_is_stuck(self, departure: "Departure") -> None:
        self.count_stuck(departure)
        log.info("nobody reads the end of a call", extra={"request_id": departure.request_id})
        departure.end()


class Departure(Wait):
    """What one call sends, and the wait for its last byte to be taken.

    Attributes:
        held: bytes of it that wait for their reader, as far as they are counted.
        is_stuck: its reader took too long.
    """

    __slots__ = ("_has_begun", "_sending", "context", "held", "is_stuck", "mark", "origin", "request_id")

    def __init__(self, sending: Sending, context: Context, origin: Origin, request_id: str, since: float) -> None:
        super().__init__(sending.loop, since)
        self._sending = sending
        self._has_begun = False
        self.context = context
        self.origin = origin
        self.request_id = request_id
        self.held = 0
        self.is_stuck = False
        self.mark: _Mark | None = None

    async def write(self, raw: bytes) -> None:
        """Send one message of a stream, when the reader has taken what came before.

        Raises:
            Overloaded: the reader took too long (`SLOW_READER`).
            ReaderGone: there is no call any more.
        """
        sending = self._sending
        if len(raw) > SMALL_BYTES:
            await self.hold(raw)
        self.since = sending.loop.time()
        sending.writes.begin(self)
        try:
            if len(raw) > MAY_WAIT_BYTES and not self._has_begun:
                # grpc forgets that it has sent them with a message that was given up, and then cannot send a status.
                await self.send_initial_metadata(())
            self._has_begun = True
            await self.context.write(raw)
        except asyncio.CancelledError:
            if not self.was_ended():
                raise
            self.is_over = False
            sending.count_stuck(self)
            raise slow_reader() from None
        except grpc.aio.InternalError:
            raise ReaderGone from None
        finally:
            sending.writes.end(self)
        if self.held:
            self.let_go()

    async def hold(self, raw: bytes) -> None:
        """Room for `raw`, if it is large, until `let_go`. Raises Overloaded (`SLOW_READER`)."""
        if len(raw) > SMALL_BYTES:
            self.held = await self._sending.take(self.origin, len(raw))

    def let_go(self) -> None:
        """What was written has been taken, or will never be."""
        if self.held:
            self._sending.give(self.origin, self.held)
            self.held = 0

    async def send_initial_metadata(self, metadata: Any) -> None:
        """As of grpc's own context: what a servicer of a stream may call before its first message."""
        self._has_begun = True
        await self.context.send_initial_metadata(metadata)


class ReaderGone(Exception):
    """grpc could not send, because the call has ended. Its cancellation comes a moment later, or came before."""


class _Mark(str):
    """A request id that can be referred to weakly."""


def slow_reader() -> Overloaded:
    """What a client is told that does not read its answers, should it read this."""
    # A write that waits is given up after so long: then what it held is free.
    return Overloaded("the answers are not being read", reason="SLOW_READER", retry_after_s=retry.within(SLOW_READER_S))
