"""The front end's side of the engine: generation, credit, and one future per row that is under way.

Rows go out in one `Submit` frame per turn of the event loop, answers come back in `Emit` frames. The engine's credit
bounds what may be under way, so nothing queues here. Whatever ends the connection fails every future that waits: no
caller is ever left hanging. Knows frames; knows neither gRPC nor tasks nor what a payload means.

All methods belong to one event loop.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from adamix.errors import Overloaded, Unavailable
from adamix_server import retry
from adamix_server.channel import channel
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    Event,
    Hello,
    Op,
    QueueState,
    Reply,
    Row,
    Submit,
    Value,
)
from adamix_server.channel.supervisor_frames import EngineDown, EngineMoving, EngineStalled, EngineUp

log = logging.getLogger(__name__)

# How long an engine that the supervisor calls ready may take to grant the first credit.
CONNECT_TIMEOUT_S = 5.0
# A connection that broke, for another reason than the engine's end, is made anew within so long.
RECONNECT_S = 1.0
# What callers are told while there is no engine, and while there is one that stands still.
ENGINE_RESTARTING, ENGINE_STALLED = "ENGINE_RESTARTING", "ENGINE_STALLED"
# With so many rows under way, new ones are gathered for so long before they are sent together. Each frame costs either
# side as much CPU as several rows do; a batch takes the engine several times as long.
BUSY_ROWS = 8
GATHER_S = 0.001
# Who calls one after another has the next row there within this time.
ASKED_S = 0.25

# (address, generation, engine id) -> a channel that has introduced itself.
Connect = Callable[[str, int, str], Awaitable[channel.FrontEndChannel]]


class EngineLink:
    """The one connection to the engine, over all its restarts."""

    def __init__(self, connect: Connect = channel.connect) -> None:
        self._connect = connect
        self._hello: Hello | None = None
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._last_id = 0
        self._last_submit = -math.inf
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
            batch_tokens = up.hello.limits.max_batch_tokens
            connection = _Connection(frames, engine_id, generation, batch_tokens, self._lost, self._restarting)
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
                raise self._restarting()
            if (stall := self._stall) is not None and (stall.generation, stall.engine_id) != (generation, engine_id):
                self._stall = None
            self._hello, self._connection = up.hello, connection

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

    def submit(self, rows: Sequence[Row]) -> list[asyncio.Future[Event]]:
        """Send rows, each under an id of `next_id`; one future per row, in order.

        A row there is no credit for gets a future that has already failed with Overloaded, before anything is queued.
        Cancelling a future tells the engine that nobody waits.

        Raises:
            Unavailable: there is no engine now (`ENGINE_RESTARTING`), or one that stands still (`ENGINE_STALLED`).
        """
        self._last_submit = time.monotonic()
        return self._connection_that_moves().submit(rows)

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
        reply = await self._connection_that_moves().control(op, digest, digests, tenant, is_kept=is_kept)
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

    def _lost(self, connection: "_Connection") -> None:
        """It has closed by itself."""
        if self._connection is connection:
            self._connection = None
            self._down_since = time.monotonic()
            self._back_at = self._down_since + RECONNECT_S

    def _connection_that_moves(self) -> "_Connection":
        if self._connection is None:
            raise self._restarting()
        if (stall := self._stall) is not None:
            retry_after_s = retry.until_moving(time.monotonic(), stall.since, stall.back_at)
            raise Unavailable(
                "the engine makes no progress; try again", reason=ENGINE_STALLED, retry_after_s=retry_after_s
            )
        return self._connection

    def _restarting(self) -> Unavailable:
        return Unavailable("the engine is restarting; try again", reason=ENGINE_RESTARTING, retry_after_s=self.back_s)


class _Connection:
    """The life of one connection to one generation of one engine."""

    def __init__(
        self,
        frames: channel.FrontEndChannel,
        engine_id: str,
        generation: int,
        batch_tokens: int,
        on_lost: Callable[["_Connection"], None],
        restarting: Callable[[], Unavailable],
    ) -> None:
        self.engine_id = engine_id
        self.generation = generation
        self.granted = asyncio.Event()
        self.is_closed = False
        self._channel = frames
        self._on_lost = on_lost
        self._restarting = restarting
        self._loop = asyncio.get_running_loop()
        # The credit that is left, and all that was ever granted: the difference is under way.
        self._inputs = self._granted_inputs = 0
        self._tokens = self._granted_tokens = 0
        # What the engine last said of itself.
        self._queue = QueueState()
        self._batch_tokens = batch_tokens
        self._turns = retry.RoomTurns()
        self._waiting: dict[int, asyncio.Future[Event]] = {}
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._last_call = 0
        self._rows: dict[int, Row] = {}
        self._cancels: list[int] = []
        self._controls: list[Control] = []
        self._something_to_send = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(self._write)), asyncio.create_task(self._run(self._read))]

    @property
    def is_busy(self) -> bool:
        """Whether rows are under way."""
        return bool(self._waiting)

    def submit(self, rows: Sequence[Row]) -> list[asyncio.Future[Event]]:
        futures: list[asyncio.Future[Event]] = []
        refused: list[tuple[asyncio.Future[Event], Row]] = []
        for row in rows:
            future: asyncio.Future[Event] = self._loop.create_future()
            futures.append(future)
            num_tokens = _num_tokens(row)
            if self._inputs < 1 or self._tokens < num_tokens:
                refused.append((future, row))
            else:
                self._send(row, num_tokens, future)
        if refused:
            # All of them at once, since most of them are of one call.
            retry_after_s = self._room_s([row for _, row in refused])
            for future, _ in refused:
                error = Overloaded("the server's queue is full; try again later", retry_after_s=retry_after_s)
                future.set_exception(error)
        return futures

    def _send(self, row: Row, num_tokens: int, future: asyncio.Future[Event]) -> None:
        self._inputs -= 1
        self._tokens -= num_tokens
        self._rows[row.id] = row
        self._waiting[row.id] = future
        future.add_done_callback(partial(self._done, row.id))
        self._something_to_send.set()

    async def control(self, op: Op, digest: str, digests: Sequence[str], tenant: str, *, is_kept: bool) -> Reply:
        self._last_call += 1
        call = self._last_call
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._calls[call] = future
        self._controls.append(
            Control(
                engine_id=self.engine_id,
                generation=self.generation,
                call=call,
                op=op,
                digest=digest,
                digests=list(digests),
                tenant=tenant,
                is_kept=is_kept,
            )
        )
        self._something_to_send.set()
        try:
            return await future
        finally:
            self._calls.pop(call, None)

    def close(self) -> None:
        """Stop both directions and fail what waits. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        self.granted.set()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._on_lost(self)
        waiting: list[asyncio.Future[Event] | asyncio.Future[Reply]] = [*self._calls.values()]
        waiting += self._waiting.values()
        self._waiting.clear()
        self._calls.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(self._restarting())
        self._channel.close()

    async def _run(self, direction: Callable[[], Awaitable[None]]) -> None:
        try:
            await direction()
        except Exception:
            # Of any kind: what waits on this connection is failed below, and the heartbeat connects anew.
            log.exception("the connection to the engine broke")
        finally:
            self.close()

    async def _write(self) -> None:
        while True:
            await self._something_to_send.wait()
            if len(self._waiting) - len(self._rows) >= BUSY_ROWS:
                # The engine computes and looks at its socket between two batches: one frame then serves both sides.
                await asyncio.sleep(GATHER_S)
            self._something_to_send.clear()
            rows = [self._rows.pop(id_) for id_ in list(self._rows) if not self._waiting[id_].cancelled()]
            cancels, self._cancels = self._cancels, []
            controls, self._controls = self._controls, []
            if rows:
                await self._channel.send(Submit(engine_id=self.engine_id, generation=self.generation, rows=rows))
            if cancels:
                await self._channel.send(Cancel(engine_id=self.engine_id, generation=self.generation, ids=cancels))
            for control in controls:
                await self._channel.send(control)

    async def _read(self) -> None:
        while True:
            frame = await self._channel.receive()
            match frame:
                case Emit() if self._is_ours(frame):
                    self._inputs += frame.credit_inputs
                    self._tokens += frame.credit_tokens
                    self._queue = frame.queue
                    for event in frame.events:
                        self._finish(event)
                case Credit() if self._is_ours(frame):
                    self._inputs += frame.inputs
                    self._tokens += frame.tokens
                    self._granted_inputs += frame.inputs
                    self._granted_tokens += frame.tokens
                    self._queue = frame.queue
                    self.granted.set()
                case Reply() if self._is_ours(frame):
                    future = self._calls.get(frame.call)
                    if future is not None and not future.done():
                        future.set_result(frame)
                case Emit() | Credit() | Reply() | Hello():
                    # A greeting, which EngineUp has already brought, or a frame of an engine that is gone.
                    continue

    def _is_ours(self, frame: Emit | Credit | Reply) -> bool:
        return frame.generation == self.generation and frame.engine_id == self.engine_id

    def _room_s(self, rows: Sequence[Row]) -> float:
        """When rows that there is no credit for are to come again."""
        own_tokens, own_inputs = self._granted_tokens - self._tokens, self._granted_inputs - self._inputs
        num_tokens = sum(map(_num_tokens, rows))
        if self._inputs < len(rows):
            # They need the places of others, whatever their own lengths.
            num_tokens = max(num_tokens, len(rows) * own_tokens // max(own_inputs, 1))
        return self._turns.next(
            time.monotonic(),
            num_tokens,
            own=own_tokens,
            queued=self._queue.queued_tokens,
            per_s=self._queue.tokens_per_s,
            batch=self._batch_tokens,
        )

    def _finish(self, event: Event) -> None:
        # A row that was cancelled is no longer known here; its event has still brought its credit back.
        if not event.final or (future := self._waiting.pop(event.id, None)) is None:
            return
        if not future.done():
            future.set_result(event)

    def _done(self, row_id: int, future: asyncio.Future[Event]) -> None:
        if not future.cancelled():
            return
        self._waiting.pop(row_id, None)
        if (unsent := self._rows.pop(row_id, None)) is not None:
            self._inputs += 1
            self._tokens += _num_tokens(unsent)
        elif not self.is_closed:
            self._cancels.append(row_id)
            self._something_to_send.set()


def _num_tokens(row: Row) -> int:
    return len(row.token_ids) // 4
