"""One connection to one generation of one engine: credit, and one future per row that is under way.

Rows go out in one `Submit` frame per turn of the event loop, answers come back in `Emit` frames: one event for most
rows, many for a row that is generated, whose future is an `EventStream`. The engine's credit
bounds what may be under way, so nothing queues here. Whatever ends the connection fails every future that waits: no
caller is ever left hanging. Knows frames; knows nothing of the engine's other lives, nor what a payload means.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from adamix.errors import Overloaded, Unavailable
from adamix_server import retry
from adamix_server.access.quotas import Shares
from adamix_server.channel import channel
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    Event,
    Hello,
    Op,
    Quarantined,
    QueueState,
    Reply,
    Row,
    Submit,
    TenantShare,
    TenantShares,
)
from adamix_server.frontend.event_stream import EventStream
from adamix_server.frontend.queue_room import Room

log = logging.getLogger(__name__)

# With so many rows under way, new ones are gathered for so long before they are sent together. Each frame costs either
# side as much CPU as several rows do; a batch takes the engine several times as long.
BUSY_ROWS = 8
GATHER_S = 0.001


class EngineConnection:
    """The life of one connection. Belongs to one event loop.

    Args:
        frames: has introduced itself.
        on_room: called when rows may find room that found none before, and when it has closed.
        on_lost: called when it has closed.
        restarting: what is told to those that wait when it closes.

    Attributes:
        room: the credit, and which tenant has how much of it under way.
        queue: what the engine last said of itself.
        queue_time: when it did, in seconds on CLOCK_MONOTONIC.
        sent_since, all_sent_since: tokens that credit was taken for since then, by tenant and together.
        batch_tokens: of a full batch.
        quarantined: by (tenant, digest), the reason of what the engine does not run.
    """

    def __init__(
        self,
        frames: channel.FrontEndChannel,
        hello: Hello,
        on_room: Callable[[], None],
        on_lost: Callable[["EngineConnection"], None],
        restarting: Callable[[], Unavailable],
    ) -> None:
        self.engine_id = hello.engine_id
        self.generation = hello.generation
        self.batch_tokens = hello.limits.max_batch_tokens
        self.room = Room(least_tokens=hello.spec.max_tokens)
        self.queue = QueueState()
        self.queue_time = time.monotonic()
        self.sent_since: dict[str, int] = {}
        self.all_sent_since = 0
        self.quarantined: Mapping[tuple[str, str], str] = {}
        self.granted = asyncio.Event()
        self.is_closed = False
        self._channel = frames
        self._on_room = on_room
        self._on_lost = on_lost
        self._restarting = restarting
        self._loop = asyncio.get_running_loop()
        self._turns = retry.RoomTurns()
        self._waiting: dict[int, asyncio.Future[Event]] = {}
        # Whose row it is and its tokens that wait, until its final event: also when nobody waits for that any more.
        self._held: dict[int, tuple[str, int]] = {}
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._last_call = 0
        self._rows: dict[int, Row] = {}
        self._cancels: list[int] = []
        self._controls: list[Control] = []
        self._shares: list[TenantShare] | None = None
        self._something_to_send = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(self._write)), asyncio.create_task(self._run(self._read))]

    @property
    def is_busy(self) -> bool:
        """Whether rows are under way."""
        return bool(self._waiting)

    def tell_shares(self, shares: list[TenantShare]) -> None:
        self._shares = shares
        self._something_to_send.set()

    def submit(
        self,
        rows: Sequence[Row],
        shares: Shares,
        futures: Sequence[asyncio.Future[Event]] = (),
        *,
        is_taken: bool = False,
    ) -> Sequence[asyncio.Future[Event]]:
        """As `EngineLink.submit`."""
        futures = futures or [self._loop.create_future() for _ in rows]
        if not rows:
            return futures
        room, tenant = self.room, rows[0].tenant
        lengths = [len(row.token_ids) // 4 for row in rows]
        num_tokens = sum(lengths)
        if is_taken or (num_tokens <= room.free_tokens and len(rows) <= room.free_inputs):
            if not is_taken:
                self.take(tenant, shares, num_tokens, len(rows))
            self._send(tenant, rows, lengths, futures)
            return futures
        refused: list[tuple[int, asyncio.Future[Event]]] = []
        for row, length, future in zip(rows, lengths, futures, strict=True):
            if length > room.free_tokens or room.free_inputs < 1:
                refused.append((length, future))
            else:
                self.take(tenant, shares, length)
                self._send(tenant, [row], [length], [future])
        # All of them at once, since they are of one call.
        full = self.full(sum(length for length, _ in refused), len(refused))
        for _, future in refused:
            future.set_exception(Overloaded(full.message, retry_after_s=full.retry_after_s))
        return futures

    def take(self, tenant: str, shares: Shares, num_tokens: int, num_inputs: int = 1) -> None:
        """Take credit that there is, for rows of a tenant that will be sent; or less, as `Room.take`."""
        self.room.take(tenant, shares, num_tokens, num_inputs)
        self._count_sent(tenant, num_tokens)

    def put_back(self, tenant: str, num_tokens: int, num_inputs: int = 1) -> None:
        """Give credit back that was taken for rows that are not sent."""
        self.room.put_back(tenant, num_tokens, num_inputs)
        self._count_sent(tenant, -num_tokens)

    def _count_sent(self, tenant: str, num_tokens: int) -> None:
        """So much more was taken since the engine spoke last; or less, unless that was taken before it spoke."""
        if (sent := self.sent_since.get(tenant, 0) + num_tokens) >= 0:
            self.sent_since[tenant] = sent
            self.all_sent_since += num_tokens

    def full(self, num_tokens: int, num_inputs: int) -> Overloaded:
        """What inputs are told for which there is no credit: when to come again."""
        room = self.room
        if room.free_inputs < num_inputs:
            # They need the places of others, whatever their own lengths.
            num_tokens = max(num_tokens, num_inputs * room.tokens // max(room.inputs, 1))
        retry_after_s = self._turns.next(
            time.monotonic(),
            num_tokens,
            own=room.tokens,
            queued=self.queue.queued_tokens,
            per_s=self.queue.tokens_per_s,
            batch=self.batch_tokens,
        )
        return Overloaded("the server's queue is full; try again later", retry_after_s=retry_after_s)

    def _send(
        self,
        tenant: str,
        rows: Sequence[Row],
        lengths: Sequence[int],
        futures: Sequence[asyncio.Future[Event]],
    ) -> None:
        """Put rows of one tenant, for which credit was taken, to what is sent next."""
        for row, length, future in zip(rows, lengths, futures, strict=True):
            id_ = row.id
            self._held[id_] = tenant, length
            self._rows[id_] = row
            self._waiting[id_] = future
            future.add_done_callback(partial(self._done, id_))
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

    def stop(self, row_id: int) -> None:
        """What would come after is not needed. Its final event is still waited for."""
        if row_id in self._waiting:
            self._cancels.append(row_id)
            self._something_to_send.set()

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
        self._on_room()
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
            shares, self._shares = self._shares, None
            if shares is not None:
                await self._channel.send(
                    TenantShares(engine_id=self.engine_id, generation=self.generation, shares=shares)
                )
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
                    self._finish(frame.events)
                    self._grant(frame.credit_tokens, frame.credit_inputs, frame.queue)
                case Credit() if self._is_ours(frame):
                    self._grant(frame.tokens, frame.inputs, frame.queue)
                    self.granted.set()
                case Quarantined() if self._is_ours(frame):
                    self.quarantined = {(each.tenant, each.digest): each.reason for each in frame.versions}
                case Reply() if self._is_ours(frame):
                    future = self._calls.get(frame.call)
                    if future is not None and not future.done():
                        future.set_result(frame)
                case Emit() | Credit() | Reply() | Quarantined() | Hello():
                    # A greeting, which EngineUp has already brought, or a frame of an engine that is gone.
                    continue

    def _is_ours(self, frame: Emit | Credit | Reply | Quarantined) -> bool:
        return frame.generation == self.generation and frame.engine_id == self.engine_id

    def _grant(self, tokens: int, inputs: int, queue: QueueState) -> None:
        self.queue, self.queue_time = queue, time.monotonic()
        self.sent_since, self.all_sent_since = {}, 0
        self.room.grant(tokens, inputs)
        self._on_room()

    def _finish(self, events: Sequence[Event]) -> None:
        ended: dict[str, list[int]] = {}
        for event in events:
            if not event.final:
                self._go_on(event)
                continue
            if (held := self._held.pop(event.id, None)) is not None:
                tenant, length = held
                if (lengths := ended.get(tenant)) is None:
                    ended[tenant] = [length]
                else:
                    lengths.append(length)
            # For a row that was cancelled nobody waits; its event has still brought its credit back.
            if (future := self._waiting.pop(event.id, None)) is not None and not future.done():
                if isinstance(future, EventStream):
                    future.put(event)
                else:
                    future.set_result(event)
        for tenant, lengths in ended.items():
            self.room.end(tenant, sum(lengths), len(lengths))

    def _go_on(self, event: Event) -> None:
        """One of several. With the first one what the row brought is computed, and waits no more."""
        if (held := self._held.get(event.id)) is not None and held[1]:
            tenant, length = held
            self._held[event.id] = tenant, 0
            self.room.end(tenant, length, 0)
        if isinstance(stream := self._waiting.get(event.id), EventStream):
            stream.put(event)

    def _done(self, row_id: int, future: asyncio.Future[Event]) -> None:
        if not future.cancelled():
            return
        self._waiting.pop(row_id, None)
        if self._rows.pop(row_id, None) is not None:
            tenant, num_tokens = self._held.pop(row_id)
            self.put_back(tenant, num_tokens)
            self._on_room()
        elif not self.is_closed:
            self._cancels.append(row_id)
            self._something_to_send.set()


def num_tokens_of(row: Row) -> int:
    return len(row.token_ids) // 4
