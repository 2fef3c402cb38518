"""The front end's side of the engine, over all its restarts: is there one, does it move, and when will the next serve?

What goes over a connection is `engine_connection.py`'s. Knows neither gRPC nor tasks nor what a payload means.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from adamix.errors import Unavailable
from adamix_server import retry
from adamix_server.access.quotas import DEFAULT_SHARES, Shares
from adamix_server.channel import channel
from adamix_server.channel.engine_frames import Event, Hello, Op, Row, TenantShare, Value
from adamix_server.channel.supervisor_frames import EngineDown, EngineMoving, EngineStalled, EngineUp
from adamix_server.frontend.engine_connection import EngineConnection

# How long an engine that the supervisor calls ready may take to grant the first credit.
CONNECT_TIMEOUT_S = 5.0
# A connection that broke, for another reason than the engine's end, is made anew within so long.
RECONNECT_S = 1.0
# What callers are told while there is no engine, and while there is one that stands still.
ENGINE_RESTARTING, ENGINE_STALLED = "ENGINE_RESTARTING", "ENGINE_STALLED"
# Who calls one after another has the next row there within this time.
ASKED_S = 0.25

# (address, generation, engine id) -> a channel that has introduced itself.
Connect = Callable[[str, int, str], Awaitable[channel.FrontEndChannel]]


class EngineLink:
    """The one connection to the engine, over all its restarts. Belongs to one event loop.

    Attributes:
        on_room: called when rows may find room that found none before, or will find none; to be set by who waits.
    """

    def __init__(self, connect: Connect = channel.connect) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self._connect = connect
        self._hello: Hello | None = None
        self._connection: EngineConnection | None = None
        self._connecting = asyncio.Lock()
        self._last_id = 0
        self._last_submit = -math.inf
        # None until anybody has said.
        self._shares: list[TenantShare] | None = None
        # While there is no connection: since when, and when the next is expected.
        self._down_since = self._back_at = time.monotonic()
        self._stall: EngineStalled | None = None

    @property
    def hello(self) -> Hello | None:
        """What the current engine, or else the last one, said about itself; None before the first."""
        return self._hello

    @property
    def is_up(self) -> bool:
        """Whether there is a connection to an engine; one that stands still counts."""
        return self._connection is not None

    @property
    def is_asked(self) -> bool:
        """Whether rows are under way, or were submitted within the last quarter of a second."""
        is_busy = self._connection is not None and self._connection.is_busy
        return is_busy or time.monotonic() - self._last_submit < ASKED_S

    @property
    def quarantined(self) -> Mapping[tuple[str, str], str]:
        """By (tenant, digest), why the engine that there is now does not run it: the reason of its last failure."""
        return {} if self._connection is None else self._connection.quarantined

    @property
    def is_stalled(self) -> bool:
        return self._stall is not None

    @property
    def back_s(self) -> float:
        """While there is no connection: in how many seconds the next is expected."""
        return retry.until_back(time.monotonic(), self._down_since, self._back_at)

    def next_id(self) -> int:
        """An id for a row: unique for the life of this front end, also across engine restarts."""
        self._last_id += 1
        return self._last_id

    async def connect(self, up: EngineUp) -> None:
        """Connect to an engine and wait for its first credit. Replaces any older generation.

        Raises:
            Unavailable: it did not grant any credit in time.
        """
        engine_id, generation = up.hello.engine_id, up.hello.generation
        async with self._connecting:
            if self._connection is not None:
                if (self._connection.engine_id, self._connection.generation) == (engine_id, generation):
                    return
                self.close()
            frames = await self._connect(up.address, generation, engine_id)
            connection = EngineConnection(frames, up.hello, self._tell_of_room, self._lost, self.restarting)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await connection.granted.wait()
            except TimeoutError:
                connection.close()
                raise Unavailable("the engine does not answer", reason="ENGINE_SILENT") from None
            except asyncio.CancelledError:
                connection.close()
                raise
            if connection.is_closed:
                raise self.restarting()
            if (stall := self._stall) is not None and (stall.generation, stall.engine_id) != (generation, engine_id):
                self._stall = None
            self._hello, self._connection = up.hello, connection
            if self._shares is not None:
                connection.tell_shares(self._shares)

    def engine_down(self, down: EngineDown) -> None:
        """Fail everything that waits for this generation of this engine.

        Of one that is already gone, only when the next is expected.
        """
        connection = self._connection
        if connection is None:
            self._stall, self._back_at = None, down.back_at
        elif (connection.generation, connection.engine_id) == (down.generation, down.engine_id):
            self._stall = None
            self._drop(down.back_at)

    def engine_stalled(self, stalled: EngineStalled) -> None:
        """Refuse what is new, until the engine moves or is down. What waits for it stays."""
        self._stall = stalled

    def engine_moving(self, moving: EngineMoving) -> None:
        """It takes work again. Of another engine than the one that stands still, ignored."""
        stall = self._stall
        if stall is not None and (stall.generation, stall.engine_id) == (moving.generation, moving.engine_id):
            self._stall = None
            self.on_room()

    @property
    def moving(self) -> EngineConnection | None:
        """The connection to an engine that takes work now."""
        return self._connection if self._stall is None else None

    def require_moving(self) -> EngineConnection:
        """As `moving`. Raises Unavailable: there is no engine (`ENGINE_RESTARTING`), or it stands still
        (`ENGINE_STALLED`)."""
        if self._connection is None:
            raise self.restarting()
        if (stall := self._stall) is not None:
            retry_after_s = retry.until_moving(time.monotonic(), stall.since, stall.back_at)
            raise Unavailable(
                "the engine makes no progress; try again", reason=ENGINE_STALLED, retry_after_s=retry_after_s
            )
        return self._connection

    def submit(
        self,
        rows: Sequence[Row],
        shares: Shares = DEFAULT_SHARES,
        futures: Sequence[asyncio.Future[Event]] = (),
        *,
        is_taken: bool = False,
    ) -> Sequence[asyncio.Future[Event]]:
        """Send rows of one tenant, each under an id of `next_id`; one future per row, in order.

        A row there is no credit for gets a future that has already failed with Overloaded, before anything is queued.
        Cancelling a future tells the engine that nobody waits.

        Args:
            shares: the tenant's.
            futures: of the rows, if somebody waits for them already; a row with `generate` needs an `EventStream`.
            is_taken: they have been taken from the room of the connection that there is now.

        Raises:
            Unavailable: there is no engine now (`ENGINE_RESTARTING`), or one that stands still (`ENGINE_STALLED`).
        """
        self._last_submit = time.monotonic()
        return self.require_moving().submit(rows, shares, futures, is_taken=is_taken)

    def stop(self, row_id: int) -> None:
        """Tell the engine that what a row would still be answered is not needed; its final event is waited for.

        Nothing is done for a row that has ended, or went to an engine that is gone.
        """
        if self._connection is not None:
            self._connection.stop(row_id)

    def tell_shares(self, shares: list[TenantShare]) -> None:
        """Tell the engine, and every later one, of all tenants that are not of weight 1 and interactive.

        It knows before it gets what is submitted from now on.
        """
        self._shares = shares
        if self._connection is not None:
            self._connection.tell_shares(shares)

    async def control(
        self, op: Op, digest: str = "", digests: Sequence[str] = (), *, tenant: str = "", is_kept: bool = False
    ) -> Value:
        """Ask the engine something, mostly about an adapter or about many, and return what `Op` promises.

        Args:
            tenant: whose version it is about; empty if the server itself asks.
            is_kept: of `unload`: another tenant needs it.

        Raises:
            Unavailable: there is no engine now, or it stands still, or it went away.
            AdamixError: the engine's own error.
        """
        reply = await self.require_moving().control(op, digest, digests, tenant, is_kept=is_kept)
        if reply.error is not None:
            raise reply.error.to_error()
        return reply.value

    def close(self) -> None:
        """End the connection; everything that waits fails."""
        self._drop(time.monotonic())

    def _drop(self, back_at: float) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._down_since, self._back_at = time.monotonic(), back_at
            connection.close()

    def _lost(self, connection: EngineConnection) -> None:
        """It has closed by itself."""
        if self._connection is connection:
            self._connection = None
            self._down_since = time.monotonic()
            self._back_at = self._down_since + RECONNECT_S

    def _tell_of_room(self) -> None:
        self.on_room()

    def restarting(self) -> Unavailable:
        """What is told to those that wait for an engine that is gone."""
        return Unavailable("the engine is restarting; try again", reason=ENGINE_RESTARTING, retry_after_s=self.back_s)
