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
from adamix_server.channel import channel
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    Event,
    Hello,
    Op,
    Reply,
    Row,
    Submit,
    Value,
)
from adamix_server.channel.supervisor_frames import EngineUp

log = logging.getLogger(__name__)

# How long an engine that the supervisor calls ready may take to grant the first credit.
CONNECT_TIMEOUT_S = 5.0
RESTART_RETRY_S = 1.0
# What callers are told while there is no engine.
ENGINE_RESTARTING = "ENGINE_RESTARTING"
MIN_RETRY_S, MAX_RETRY_S = 0.05, 5.0
# With so many rows under way, new ones are gathered for so long before they are sent together. Each frame costs either
# side as much CPU as several rows do; a batch takes the engine several times as long.
BUSY_ROWS = 8
GATHER_S = 0.001
# Who calls one after another has the next row there within this time.
ASKED_S = 0.25

# (address, generation, engine id) -> a channel that has introduced itself.
Connect = Callable[[str, int, str], Awaitable[channel.FrontEndChannel]]


# A future, and since when somebody waits for it.
_Waiting = tuple[asyncio.Future[Event], float]


class EngineLink:
    """The one connection to the engine, over all its restarts."""

    def __init__(self, connect: Connect = channel.connect) -> None:
        self._connect = connect
        self._hello: Hello | None = None
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._last_id = 0
        self._last_submit = -math.inf

    @property
    def hello(self) -> Hello | None:
        """What the current engine, or else the last one, said about itself; None before the first."""
        return self._hello

    @property
    def is_up(self) -> bool:
        return self._connection is not None

    @property
    def is_asked(self) -> bool:
        """Whether rows are under way, or were submitted within the last quarter of a second."""
        is_busy = self._connection is not None and self._connection.is_busy
        return is_busy or time.monotonic() - self._last_submit < ASKED_S

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
            connection = _Connection(frames, engine_id, generation, self._lost)
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
                raise _restarting()
            self._hello, self._connection = up.hello, connection

    def engine_down(self, generation: int, engine_id: str) -> None:
        """Fail everything that waits for this generation of this engine. One that is already gone is ignored."""
        connection = self._connection
        if connection is not None and (connection.generation, connection.engine_id) == (generation, engine_id):
            self.close()

    def submit(self, rows: Sequence[Row]) -> list[asyncio.Future[Event]]:
        """Send rows, each under an id of `next_id`; one future per row, in order.

        A row there is no credit for gets a future that has already failed with Overloaded, before anything is queued.
        Cancelling a future tells the engine that nobody waits.

        Raises:
            Unavailable: there is no engine now.
        """
        if self._connection is None:
            raise _restarting()
        self._last_submit = now = time.monotonic()
        return [self._connection.submit(row, now) for row in rows]

    async def control(self, op: Op, digest: str = "", digests: Sequence[str] = ()) -> Value:
        """Ask the engine something, mostly about an adapter or about many, and return what `Op` promises.

        Raises:
            Unavailable: there is no engine now, or it went away.
            AdamixError: the engine's own error.
        """
        if self._connection is None:
            raise _restarting()
        reply = await self._connection.control(op, digest, digests)
        if reply.error is not None:
            raise reply.error.to_error()
        return reply.value

    def close(self) -> None:
        """End the connection; everything that waits fails."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _lost(self, connection: "_Connection") -> None:
        if self._connection is connection:
            self._connection = None


class _Connection:
    """The life of one connection to one generation of one engine."""

    def __init__(
        self,
        frames: channel.FrontEndChannel,
        engine_id: str,
        generation: int,
        on_lost: Callable[["_Connection"], None],
    ) -> None:
        self.engine_id = engine_id
        self.generation = generation
        self.granted = asyncio.Event()
        self.is_closed = False
        self._channel = frames
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._inputs = 0
        self._tokens = 0
        self._waiting: dict[int, _Waiting] = {}
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._last_call = 0
        self._rows: dict[int, Row] = {}
        self._cancels: list[int] = []
        self._controls: list[Control] = []
        self._something_to_send = asyncio.Event()
        # Smoothed time from submit to answer: about how long it takes until a full queue has moved on.
        self._answer_s = MIN_RETRY_S
        self._tasks = [asyncio.create_task(self._run(self._write)), asyncio.create_task(self._run(self._read))]

    @property
    def is_busy(self) -> bool:
        """Whether rows are under way."""
        return bool(self._waiting)

    def submit(self, row: Row, now: float) -> asyncio.Future[Event]:
        future: asyncio.Future[Event] = self._loop.create_future()
        num_tokens = _num_tokens(row)
        if self._inputs < 1 or self._tokens < num_tokens:
            retry_after_s = min(max(self._answer_s, MIN_RETRY_S), MAX_RETRY_S)
            future.set_exception(Overloaded("the server's queue is full; try again later", retry_after_s=retry_after_s))
            return future
        self._inputs -= 1
        self._tokens -= num_tokens
        self._rows[row.id] = row
        self._waiting[row.id] = (future, now)
        future.add_done_callback(partial(self._done, row.id))
        self._something_to_send.set()
        return future

    async def control(self, op: Op, digest: str, digests: Sequence[str]) -> Reply:
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
        waiting: list[asyncio.Future[Event] | asyncio.Future[Reply]] = [*self._calls.values()]
        waiting += [future for future, _ in self._waiting.values()]
        self._waiting.clear()
        self._calls.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(_restarting())
        self._channel.close()
        self._on_lost(self)

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
            rows = [self._rows.pop(id_) for id_ in list(self._rows) if not self._waiting[id_][0].cancelled()]
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
                    now = time.monotonic()
                    for event in frame.events:
                        self._finish(event, now)
                case Credit() if self._is_ours(frame):
                    self._inputs += frame.inputs
                    self._tokens += frame.tokens
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

    def _finish(self, event: Event, now: float) -> None:
        # A row that was cancelled is no longer known here; its event has still brought its credit back.
        if not event.final or (entry := self._waiting.pop(event.id, None)) is None:
            return
        future, since = entry
        self._answer_s += 0.1 * (now - since - self._answer_s)
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


def _restarting() -> Unavailable:
    return Unavailable("the engine is restarting; try again", reason=ENGINE_RESTARTING, retry_after_s=RESTART_RETRY_S)
