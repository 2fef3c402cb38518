"""Who may put inputs into the queue now, who waits until there is room, and who is refused before any work is done.

A call is judged as a whole before it is tokenised, by the sizes its texts seem to have: by its tenant's quota, by its
deadline, and by the room (`room.py`). One of several inputs that does not fit is let in, and fed into the queue as room
appears, rather than refused whole; so are a stream's inputs. One of a single input does not wait, unless others of its
tenant do already: within a tenant, who came first goes first. Between tenants each in turn, an input at a time.

Knows rows and the link to the engine; knows neither texts nor what is answered. Belongs to one event loop.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import partial
from types import TracebackType

from adamix.errors import AdamixError, DeadlineExceeded, Overloaded, QuotaExceeded
from adamix_server import retry
from adamix_server.access.quotas import Shares
from adamix_server.channel.engine_frames import Event, Row
from adamix_server.frontend.engine_connection import EngineConnection, num_tokens_of
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.inference.deadline import Queue
from adamix_server.frontend.inference.room import Lack, Room
from adamix_server.frontend.tenancy import Tenancy
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL, MAX_WAITING_INPUTS

# Tenants whose refused calls are remembered, so that they come back one after the other.
_MAX_TURNS = 1024

_Future = asyncio.Future[Event]


class Place:
    """What was admitted and is not submitted yet. Whoever leaves it as a context has given back what is left of it.

    Attributes:
        room: where room is reserved for it; None for inputs that are to wait, or that there was no engine for.
        tokens: as many as they seemed to have.
    """

    __slots__ = ("_feeding", "inputs", "is_waiting", "room", "shares", "tenant", "tokens")

    def __init__(self, feeding: "Feeding", tenant: str, shares: Shares) -> None:
        self._feeding = feeding
        self.tenant = tenant
        self.shares = shares
        self.room: Room | None = None
        self.is_waiting = False
        self.tokens = self.inputs = 0

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.inputs:
            self._feeding.give_back(self)


class Feeding:
    """What waits for room, in front of the one connection to the engine.

    Args:
        link: tells it when there is room.
        tenancy: what each tenant is among others.
    """

    def __init__(self, link: EngineLink, tenancy: Tenancy) -> None:
        self._link = link
        self._tenancy = tenancy
        # What waits by tenant, in the order of their turns; in each the oldest first.
        self._lines: OrderedDict[str, OrderedDict[_Future, Row]] = OrderedDict()
        self._waiting = Room(least_tokens=0, least_inputs=MAX_INPUTS_PER_CALL)
        self._waiting.grant(0, MAX_WAITING_INPUTS)
        # Tokens that were admitted and are not in the queue yet, by tenant and all of them.
        self._admitted: dict[str, int] = {}
        self._all_admitted = 0
        self._turns: OrderedDict[str, retry.RoomTurns] = OrderedDict()
        self._left = asyncio.Event()
        link.on_room = self._feed

    def admit(self, tenant: str, num_tokens: int, num_inputs: int, deadline: float) -> Place:
        """A place for inputs of so many tokens together; without one where there is no engine, which `submit` tells.

        Args:
            deadline: of all of them, in seconds on CLOCK_MONOTONIC.

        Raises:
            QuotaExceeded: the tenant may not have so much queued (`QUOTA_QUEUED_TOKENS`).
            DeadlineExceeded: they would be answered too late (`DEADLINE_UNREACHABLE`).
            Overloaded: there is no room for them (`OVERLOADED`), or the tenant has its share of it
                (`TENANT_QUEUE_FULL`).
        """
        shares = self._tenancy.shares(tenant)
        place = Place(self, tenant, shares)
        if (connection := self._link.moving) is None:
            return place
        queue = self._check(connection, tenant, shares, num_tokens, deadline)
        may_wait = num_inputs > 1 or tenant in self._lines
        if lack := self._try(place, connection, num_tokens, num_inputs, may_wait=may_wait):
            raise self._full(lack, connection, tenant, queue, num_tokens, num_inputs)
        return place

    def nowhere(self, tenant: str) -> Place:
        """A place for nothing."""
        return Place(self, tenant, self._tenancy.shares(tenant))

    def check(self, tenant: str, num_tokens: int, deadline: float) -> None:
        """Raise what `admit` does of a quota or a deadline, for the last of inputs of so many tokens together."""
        if (connection := self._link.moving) is not None:
            self._check(connection, tenant, self._tenancy.shares(tenant), num_tokens, deadline)

    async def place(self, tenant: str, num_tokens: int, num_inputs: int) -> Place:
        """A place for inputs of a stream, of which as many as a call may have come at once: as soon as they may wait,
        at the latest. Without one where there is no engine.
        """
        place = Place(self, tenant, self._tenancy.shares(tenant))
        while (connection := self._link.moving) is not None and self._try(
            place, connection, num_tokens, num_inputs, may_wait=True
        ):
            self._left.clear()
            await self._left.wait()
        return place

    def submit(self, place: Place, rows: Sequence[Row]) -> Sequence[_Future]:
        """Send rows of a place, or let them wait; one future per row, in order.

        Cancelling a future ends its wait, here or in the engine. One that there turns out to be no room for, because it
        is longer than it seemed to be, gets a future that has already failed.

        Raises:
            Unavailable: there is no engine now, or one that stands still.
        """
        tenant, shares = place.tenant, place.shares
        # So many rows have a place to wait in.
        places = place.inputs if place.is_waiting else 0
        if place.inputs:
            self.give_back(place)
        connection, is_shared = self._link.moving, self._tenancy.is_shared
        if connection is None or not (
            places
            or connection.room.lack(tenant, shares, sum(map(num_tokens_of, rows)), len(rows), is_shared=is_shared)
        ):
            return self._link.submit(rows, shares)
        loop = asyncio.get_running_loop()
        futures: list[_Future] = []
        for index, row in enumerate(rows):
            future = loop.create_future()
            futures.append(future)
            is_behind = (places or index) and tenant in self._lines
            lack: Lack = "share" if is_behind else self._lack(connection, row, shares)
            if not lack:
                self._link.submit([row], shares, [future])
            elif index < places or (len(rows) > 1 and not self._waiting.lack(tenant, shares, 0, is_shared=is_shared)):
                self._wait(shares, row, future)
            else:
                queue = self._queue(connection, tenant, shares)
                future.set_exception(self._full(lack, connection, tenant, queue, num_tokens_of(row), 1))
        return futures

    async def fed(self, tenant: str, futures: Sequence[_Future]) -> None:
        """Return when none of these, which are of one tenant, waits for room."""
        while (line := self._lines.get(tenant)) is not None and any(future in line for future in futures):
            self._left.clear()
            await self._left.wait()

    def give_back(self, place: Place) -> None:
        """A place is not needed any more, or only now."""
        self._admit(place.tenant, -place.tokens)
        if place.is_waiting:
            self._waiting.put_back(place.tenant, 0, place.inputs)
        elif place.room is not None:
            place.room.put_back(place.tenant, place.tokens, place.inputs)
        place.inputs = 0
        self._left.set()

    def _try(
        self, place: Place, connection: EngineConnection, num_tokens: int, num_inputs: int, *, may_wait: bool
    ) -> Lack:
        """Reserve room for inputs, or else a place to wait in if they may; what is lacking otherwise."""
        tenant, shares, room = place.tenant, place.shares, connection.room
        is_shared, is_first = self._tenancy.is_shared, tenant not in self._lines
        lack: Lack = ""
        if is_first and not (lack := room.lack(tenant, shares, num_tokens, num_inputs, is_shared=is_shared)):
            room.take(tenant, shares, num_tokens, num_inputs)
            place.room = room
        elif not may_wait:
            return lack
        elif beside := self._waiting.lack(tenant, shares, 0, num_inputs, is_shared=is_shared):
            return "share" if lack == "share" else beside
        else:
            self._waiting.take(tenant, shares, 0, num_inputs)
            place.is_waiting = True
        self._admit(tenant, num_tokens)
        place.tokens, place.inputs = num_tokens, num_inputs
        return ""

    def _lack(self, connection: EngineConnection, row: Row, shares: Shares) -> Lack:
        """Why a row does not fit now."""
        return connection.room.lack(row.tenant, shares, num_tokens_of(row), is_shared=self._tenancy.is_shared)

    def _check(
        self, connection: EngineConnection, tenant: str, shares: Shares, num_tokens: int, deadline: float
    ) -> Queue:
        """What is before inputs of so many tokens. Raises QuotaExceeded, DeadlineExceeded."""
        queue = self._queue(connection, tenant, shares)
        limit = self._tenancy.quotas(tenant).queued_tokens
        if limit is not None and queue.own + num_tokens > limit:
            raise QuotaExceeded.of(
                "queued_tokens",
                tenant,
                limit=limit,
                used=int(queue.own),
                # What is larger than the quota never fits.
                retry_after_s=queue.drained_s(queue.own + num_tokens - limit) if num_tokens <= limit else None,
            )
        wait_s = queue.wait_s(num_tokens)
        if wait_s is not None and wait_s > (left_s := deadline - time.monotonic()):
            raise DeadlineExceeded(
                f"this would be answered in {wait_s:.1f} s, and its deadline is in {max(left_s, 0.0):.1f} s",
                reason="DEADLINE_UNREACHABLE",
                retry_after_s=retry.within(wait_s - left_s),
            )
        return queue

    def _queue(self, connection: EngineConnection, tenant: str, shares: Shares) -> Queue:
        """What is before the next input of a tenant: what the engine last said, and what has happened since."""
        said = connection.queue
        # Who has no rows under way hears nothing more of what becomes of those of others.
        done = said.tokens_per_s * (time.monotonic() - connection.queue_time)
        since = connection.sent_since
        left = max(said.queued_tokens - done, 0.0)
        queued = left + connection.all_sent_since + self._all_admitted
        own_said = said.tenants.get(tenant, 0)
        own = min(own_said, left) + since.get(tenant, 0) + self._admitted.get(tenant, 0)
        # The class `batch` takes what `interactive` leaves.
        of_batch = max(said.batch_tokens - done, 0.0)
        is_batch = shares.service_class == "batch"
        return Queue(
            queued=queued if is_batch else max(queued - of_batch, own),
            before=max(queued - of_batch - own, 0.0) if is_batch else 0.0,
            own=own,
            busy=max(queued, connection.room.tokens),
            batch=connection.batch_tokens,
            active_weight=said.active_weight + (0 if own_said else shares.weight),
            weight=shares.weight,
            tokens_per_s=said.tokens_per_s,
        )

    def _full(
        self, lack: Lack, connection: EngineConnection, tenant: str, queue: Queue, num_tokens: int, num_inputs: int
    ) -> Overloaded:
        """What inputs are told that find no room: when there will be some, each after those refused before it."""
        if lack != "share" or not self._tenancy.is_shared:
            return connection.full(num_tokens, num_inputs)
        turns = self._turns.pop(tenant, None) or retry.RoomTurns()
        self._turns[tenant] = turns
        if len(self._turns) > _MAX_TURNS:
            self._turns.popitem(last=False)
        return Overloaded(
            "this tenant has its share of the server's queue; try again later",
            reason="TENANT_QUEUE_FULL",
            retry_after_s=turns.next(
                time.monotonic(),
                num_tokens,
                own=queue.own,
                queued=queue.ahead,
                per_s=queue.tokens_per_s,
                batch=queue.batch,
            ),
        )

    def _wait(self, shares: Shares, row: Row, future: _Future) -> None:
        """Put a row to the end of its tenant's line."""
        self._lines.setdefault(row.tenant, OrderedDict())[future] = row
        self._waiting.take(row.tenant, shares, 0)
        self._admit(row.tenant, num_tokens_of(row))
        future.add_done_callback(partial(self._ended, row.tenant))

    def _ended(self, tenant: str, future: _Future) -> None:
        """Somebody waits no more for a row, wherever it is."""
        line = self._lines.get(tenant)
        if line is not None and future in line:
            self._leave(tenant, future)
            self._feed()

    def _leave(self, tenant: str, future: _Future) -> None:
        """A row is here no more."""
        line = self._lines[tenant]
        num_tokens = num_tokens_of(line.pop(future))
        if not line:
            del self._lines[tenant]
        self._waiting.put_back(tenant, 0)
        self._admit(tenant, -num_tokens)
        self._left.set()

    def _feed(self) -> None:
        """Send what there is room for now, an input of each tenant in turn; or fail all, if nobody will take it."""
        if not self._lines:
            return
        if not self._link.is_up:
            self._fail(self._link.restarting())
            return
        if (connection := self._link.moving) is None:
            return
        turns = deque(self._lines)
        while turns:
            tenant = turns.popleft()
            shares = self._tenancy.shares(tenant)
            future, row = next(iter(self._lines[tenant].items()))
            if not future.done():
                if self._lack(connection, row, shares):
                    continue
                self._link.submit([row], shares, [future])
            self._leave(tenant, future)
            if tenant in self._lines:
                self._lines.move_to_end(tenant)
                turns.append(tenant)

    def _fail(self, error: AdamixError) -> None:
        for tenant, line in list(self._lines.items()):
            for future in list(line):
                self._leave(tenant, future)
                if not future.done():
                    future.set_exception(error)

    def _admit(self, tenant: str, num_tokens: int) -> None:
        """There are so many more tokens of a tenant that are not in the queue yet, or less."""
        self._all_admitted += num_tokens
        if left := self._admitted.get(tenant, 0) + num_tokens:
            self._admitted[tenant] = left
        else:
            self._admitted.pop(tenant, None)
