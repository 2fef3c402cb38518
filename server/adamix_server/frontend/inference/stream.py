"""One `PredictStream` call: many inputs under way at once, each answered as soon as it is ready.

Four hands share a stream. The reader takes messages off the wire, and stops while too many are unanswered, so that
flow control reaches the client. The intake reads all that has arrived meanwhile. The feeder sends it through the other
stages together, as many as a call may have at once; it goes on when none of these waits for room in the queue. The
generator writes what is ready, in the order it became so; it alone ends the stream. Knows nothing of what an input or
an answer means.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from adamix.errors import AdamixError, DeadlineExceeded, InvalidRequest
from adamix_client.status import clip
from adamix_protos.v1 import inference_pb2
from adamix_server.channel.engine_frames import Event
from adamix_server.frontend import convert
from adamix_server.frontend.boundary.admission import Admission, draining
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.inference.stages import Item, Stages, abandon, settle
from adamix_server.limits.messages import (
    DEFAULT_TIMEOUT_S,
    MAX_INPUTS_PER_CALL,
    MAX_MESSAGE_BYTES,
    MAX_STREAM_ID_BYTES,
    MAX_STREAM_INPUTS,
    MAX_TIMEOUT_S,
    STREAM_IDLE_S,
)


@dataclass(slots=True, eq=False)
class _Entry:
    """One input from its message to its answer. `reading` keeps what it resolved; `future` is the engine's part."""

    id: str
    item: Item
    return_logits: bool
    start: float
    owns_id: bool = False
    is_ready: bool = False
    tokenize_s: float = 0.0
    reading: AbstractContextManager[None] | None = None
    timer: asyncio.TimerHandle | None = None
    future: asyncio.Future[Event] | None = None


class PredictStream:
    """The state of one stream. Belongs to one event loop; `answers` is to be run once."""

    def __init__(self, stages: Stages, admission: Admission, call: Call) -> None:
        self._stages = stages
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.create_task(admission.closed())
        self._arrived: list[inference_pb2.PredictStreamRequest] = []
        # Of these, and of those that were read and not admitted yet.
        self._waiting_bytes = 0
        self._entries: set[_Entry] = set()
        self._live_ids: set[str] = set()
        self._opened: deque[tuple[_Entry, int]] = deque()
        self._ready: deque[_Entry] = deque()
        # Messages that were read and whose answer has not been written.
        self._unanswered = 0
        self._last_message = time.monotonic()
        self._something_arrived = asyncio.Event()
        self._something_opened = asyncio.Event()
        self._has_room = asyncio.Event()
        self._wake = asyncio.Event()

    async def answers(
        self, requests: AsyncIterator[inference_pb2.PredictStreamRequest]
    ) -> AsyncGenerator[inference_pb2.PredictStreamResponse, None]:
        """One response per request. Ends when the client has sent its last one and has every answer.

        Raises:
            DeadlineExceeded: nothing was sent for `STREAM_IDLE_S` (`STREAM_IDLE`).
            Unavailable: the server drains, and everything read was answered (`DRAINING`).
            AdamixError: of the reader: a message that cannot be parsed.
        """
        reader = asyncio.create_task(self._read(requests))
        intake = asyncio.create_task(self._take_in())
        feeder = asyncio.create_task(self._feed())
        tasks = (reader, intake, feeder, self._closed)
        for task in tasks:
            task.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                while self._ready:
                    entry = self._ready.popleft()
                    # Before the client can know the answer, and use the id again.
                    self._release_id(entry)
                    yield self._response(entry)
                    self._count_out()
                for task in (reader, intake, feeder):
                    if task.done():
                        task.result()
                if not self._unanswered:
                    if reader.done():
                        return
                    if self._closed.done():
                        raise draining()
                await self._wait()
        finally:
            # Also when the client is gone: the engine need not compute what nobody will read.
            for task in tasks:
                task.cancel()
            for entry in self._entries:
                self._let_go(entry)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[inference_pb2.PredictStreamRequest]) -> None:
        async for request in requests:
            self._last_message = time.monotonic()
            self._unanswered += 1
            self._arrived.append(request)
            self._waiting_bytes += request.ByteSize()
            self._something_arrived.set()
            del request
            while self._unanswered >= MAX_STREAM_INPUTS or self._waiting_bytes >= MAX_MESSAGE_BYTES:
                self._has_room.clear()
                await self._has_room.wait()

    async def _take_in(self) -> None:
        while True:
            await self._something_arrived.wait()
            # Reading a message that is already here takes two turns of the loop: then both go on together.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._something_arrived.clear()
            arrived, self._arrived = self._arrived, []
            now = time.monotonic()
            self._opened.extend((self._open(request, now), request.ByteSize()) for request in arrived)
            # The entries have what they need of it.
            del arrived
            self._something_opened.set()

    async def _feed(self) -> None:
        """Send what was read through the stages."""
        tenant = self._call.tenant
        while True:
            await self._something_opened.wait()
            self._something_opened.clear()
            while entries := self._next_opened():
                by_item = {id(entry.item): entry for entry in entries}
                items = [entry.item for entry in entries]
                self._stages.check(items, tenant)
                with await self._stages.place(items, tenant) as place:
                    before = time.monotonic()
                    await self._stages.tokenize(items)
                    await self._stages.charge_each(items, place)
                    waiting = self._stages.submit([entry.item for entry in entries if not entry.is_ready], place)
                tokenize_s = time.monotonic() - before
                for item, future in waiting:
                    entry = by_item.pop(id(item))
                    entry.tokenize_s, entry.future = tokenize_s, future
                    future.add_done_callback(partial(self._settled, entry))
                # Whatever has no future by now has an error.
                for entry in by_item.values():
                    if not entry.is_ready:
                        self._finish(entry)
                await self._stages.fed([future for _, future in waiting], tenant)

    def _next_opened(self) -> list[_Entry]:
        """As many as a call may have, of those that still wait."""
        opened, entries = self._opened, list[_Entry]()
        while opened and len(entries) < MAX_INPUTS_PER_CALL:
            entry, num_bytes = opened.popleft()
            self._waiting_bytes -= num_bytes
            if not entry.is_ready:
                entries.append(entry)
        self._has_room.set()
        return entries

    def _open(self, request: inference_pb2.PredictStreamRequest, now: float) -> _Entry:
        """An entry for a message, read as far as that goes without waiting."""
        entry_id = clip(request.id, MAX_STREAM_ID_BYTES)
        deadline = min(self._call.deadline, now + (request.timeout_s or DEFAULT_TIMEOUT_S))
        try:
            self._check(request)
        except AdamixError as error:
            item = Item.of(request.input.task, deadline)
            item.error = error
            entry = _Entry(entry_id, item, request.return_logits, now)
        else:
            reading = self._stages.view.reading()
            reading.__enter__()
            item = self._stages.read(request.input, "input", self._call.principal, deadline)
            entry = _Entry(entry_id, item, request.return_logits, now, owns_id=True, reading=reading)
            self._live_ids.add(request.id)
            entry.timer = self._loop.call_at(deadline, self._expire, entry)
        self._entries.add(entry)
        if entry.item.error is not None:
            self._finish(entry)
        return entry

    def _check(self, request: inference_pb2.PredictStreamRequest) -> None:
        """Raise what is wrong with a message beside its input."""
        if not 1 <= len(request.id.encode()) <= MAX_STREAM_ID_BYTES:
            raise InvalidRequest(f"id must have 1 to {MAX_STREAM_ID_BYTES} bytes", reason="ID_INVALID", field="id")
        if request.id in self._live_ids:
            raise InvalidRequest("another input of this id is not answered yet", reason="ID_IN_USE", field="id")
        # As one comparison, because NaN is in no interval.
        if not 0 <= request.timeout_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"timeout_s must be in 0..{MAX_TIMEOUT_S:g}", reason="TIMEOUT_INVALID", field="timeout_s"
            )
        if self._closed.done():
            raise draining()

    def _settled(self, entry: _Entry, future: asyncio.Future[Event]) -> None:
        if entry.is_ready or future.cancelled():
            return
        error = future.exception()
        if error is None:
            settle(entry.item, future.result())
        elif isinstance(error, AdamixError):
            entry.item.error = error
        self._finish(entry)

    def _expire(self, entry: _Entry) -> None:
        if not entry.is_ready:
            entry.item.error = DeadlineExceeded("the input took longer than its timeout")
            self._finish(entry)

    def _finish(self, entry: _Entry) -> None:
        """The entry has its answer or its error: hand it to the writer."""
        entry.is_ready = True
        self._let_go(entry)
        # What waits for a slow reader should not hold its input as well.
        entry.item.text = entry.item.tokens = None
        self._ready.append(entry)
        self._wake.set()

    def _let_go(self, entry: _Entry) -> None:
        """Give back what an entry holds. Does nothing the second time."""
        reading, timer, future = entry.reading, entry.timer, entry.future
        entry.reading = entry.timer = entry.future = None
        if reading is not None:
            reading.__exit__(None, None, None)
        if timer is not None:
            timer.cancel()
        if future is not None:
            abandon([future])

    def _release_id(self, entry: _Entry) -> None:
        self._entries.discard(entry)
        if entry.owns_id:
            self._live_ids.discard(entry.id)

    def _count_out(self) -> None:
        self._last_message = time.monotonic()
        self._unanswered -= 1
        self._has_room.set()

    def _response(self, entry: _Entry) -> inference_pb2.PredictStreamResponse:
        item = entry.item
        response = inference_pb2.PredictStreamResponse(id=entry.id)
        self._stages.write(item, response.prediction, self._call, return_logits=entry.return_logits)
        if item.event is not None:
            convert.fill_timing(response.timing, [item.event.timing], entry.tokenize_s)
        self._stages.record((item,), self._call.tenant, time.monotonic() - entry.start)
        return response

    async def _wait(self) -> None:
        """Until there is something to do. Raises DeadlineExceeded if there was nothing for too long."""
        idle_since = self._last_message
        try:
            async with asyncio.timeout_at(None if self._unanswered else idle_since + STREAM_IDLE_S):
                await self._wake.wait()
        except TimeoutError:
            if not self._unanswered and self._last_message == idle_since:
                raise DeadlineExceeded(
                    f"nothing was sent for {STREAM_IDLE_S:g} s; open a stream again to go on", reason="STREAM_IDLE"
                ) from None
