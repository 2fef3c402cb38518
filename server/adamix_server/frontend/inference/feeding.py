"""Who may put inputs into the queue now, who waits until there is room, and who is refused before any work is done.

A call is judged as a whole before it is tokenised, by the sizes its texts seem to have: by its tenant's quota, by its
deadline, and by the room (`queue_room.py`). One of several inputs that does not fit is let in, and fed into the queue
as room appears, rather than refused whole; so are a stream's inputs. One of a single input does not wait, unless others
of its tenant do already: within a tenant, who came first goes first. Between tenants each in turn, an input at a time.

Knows rows and the link to the engine; knows neither texts nor what is answered. Belongs to one event loop.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType

from adamix.errors import AdamixError, DeadlineExceeded, Overloaded, QuotaExceeded
from adamix_server import retry
from adamix_server.access.quotas import Shares
from adamix_server.channel.engine_frames import Event, Row
from adamix_server.frontend.engine_connection import EngineConnection, num_tokens_of
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.inference.deadline import BATCHES, MARGIN, Queue
from adamix_server.frontend.queue_room import Lack, Room
from adamix_server.frontend.tenancy import Standing, Tenancy
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL, MAX_WAITING_INPUTS

# Tenants whose refused calls are remembered, so that they come back one after the other.
_MAX_TURNS = 1024

_Future = asyncio.Future[Event]


class Place:
    """What was admitted and is not submitted yet. Whoever leaves it as a context has given back what is left of it.

    Attributes:
        connection: where room is reserved for it; None for inputs that are to wait, or that there was no engine for.
        tokens: as many as they seemed to have.
    """

    __slots__ = ("_feeding", "connection", "inputs", "is_waiting", "standing", "tenant", "tokens")

    def __init__(self, feeding: "Feeding", tenant: str, standing: Standing) -> None:
        self._feeding = feeding
        self.tenant = tenant
        self.standing = standing
        self.connection: EngineConnection | None = None
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
        # Tokens that are to wait, or do, by tenant and all of them.
        self._admitted: dict[str, int] = {}
        self._all_admitted = 0
        self._turns: OrderedDict[str, retry.RoomTurns] = OrderedDict()
        self._left = asyncio.Event()
        link.on_room = self._feed

    def admit(self, tenant: str, num_tokens: int, num_inputs: int, deadline: float) -> Place:
        """A place for inputs of so many tokens together.

        Args:
            deadline: of all of them, in seconds on CLOCK_MONOTONIC.

        Raises:
            QuotaExceeded: the tenant may not have so much queued (`QUOTA_QUEUED_TOKENS`).
            DeadlineExceeded: they would be answered too late (`DEADLINE_UNREACHABLE`).
            Overloaded: there is no room for them (`OVERLOADED`), or the tenant has its share of it
                (`TENANT_QUEUE_FULL`).
            Unavailable: there is no engine now, or one that stands still.
        """
        connection = self._link.require_moving()
        standing = self._tenancy.of(tenant)
        place = Place(self, tenant, standing)
        limit, left_s = standing.quotas.queued_tokens, deadline - time.monotonic()
        if limit is not None or not self._is_soon(connection, num_tokens, left_s):
            queue = self._queue(connection, tenant, standing.shares)
            if (refusal := self._refusal(queue, tenant, limit, num_tokens, left_s)) is not None:
                raise refusal
        may_wait = num_inputs > 1 or tenant in self._lines
        if lack := self._try(place, connection, num_tokens, num_inputs, may_wait=may_wait):
            raise self._full(lack, connection, tenant, standing, num_tokens, num_inputs)
        return place

    def nowhere(self, tenant: str) -> Place:
        """A place for nothing."""
        return Place(self, tenant, self._tenancy.of(tenant))

    def refusals(
        self, tenant: str, lengths: Sequence[int], deadlines: Sequence[float]
    ) -> Sequence[QuotaExceeded | DeadlineExceeded | None]:
        """What `admit` would say of quota and deadline to each input of a stream, by its tokens, behind those before it
        that nothing is said to.
        """
        nothing = [None] * len(lengths)
        if (connection := self._link.moving) is None:
            return nothing
        standing, now, before = self._tenancy.of(tenant), time.monotonic(), 0
        limit = standing.quotas.queued_tokens
        if limit is None and self._is_soon(connection, sum(lengths), min(deadlines) - now):
            return nothing
        queue = self._queue(connection, tenant, standing.shares)
        said: list[QuotaExceeded | DeadlineExceeded | None] = []
        for length, deadline in zip(lengths, deadlines, strict=True):
            error = self._refusal(queue, tenant, limit, length, deadline - now, before)
            before += 0 if error is not None else length
            said.append(error)
        return said

    async def place(self, tenant: str, num_tokens: int, num_inputs: int) -> Place:
        """A place for inputs of a stream, of which as many as a call may have come at once: as soon as they may wait,
        at the latest. Without one where there is no engine.
        """
        place = Place(self, tenant, self._tenancy.of(tenant))
        while (connection := self._link.moving) is not None and self._try(
            place, connection, num_tokens, num_inputs, may_wait=True
        ):
            self._left.clear()
            await self._left.wait()
        return place

    def submit(self, place: Place, rows: Sequence[Row], futures: Sequence[_Future] = ()) -> Sequence[_Future]:
        """Send rows of a place, or let them wait; one future per row, in order.

        Cancelling a future ends its wait, here or in the engine. One that there turns out to be no room for, because it
        is longer than it seemed to be, gets a future that has already failed.

        Args:
            futures: of the rows, if they are to be others than `EngineLink.submit` makes.

        Raises:
            Unavailable: there is no engine now, or one that stands still.
        """
        tenant, standing = place.tenant, place.standing
        shares, connection = standing.shares, self._link.moving
        # So many rows have a place to wait in.
        places = place.inputs if place.is_waiting else 0
        if connection is not None and place.connection is connection and self._keep(place, connection, rows):
            sent = self._link.submit(rows, shares, futures, is_taken=True)
            # Of what was reserved, some may be left.
            self._feed()
            return sent
        if place.inputs:
            self.give_back(place)
        if connection is None:
            return self._link.submit(rows, shares)
        loop = asyncio.get_running_loop()
        futures = futures or [loop.create_future() for _ in rows]
        for index, (row, future) in enumerate(zip(rows, futures, strict=True)):
            is_behind = (places or index) and tenant in self._lines
            lack: Lack = "share" if is_behind else _lack(connection, row, standing)
            if not lack:
                self._link.submit([row], shares, [future])
            elif index < places or (
                len(rows) > 1 and not self._waiting.lack(tenant, shares, 0, is_shared=standing.is_shared)
            ):
                self._wait(shares, row, future)
            else:
                future.set_exception(self._full(lack, connection, tenant, standing, num_tokens_of(row), 1))
        return futures

    async def fed(self, tenant: str, futures: Sequence[_Future]) -> None:
        """Return when none of these, which are of one tenant, waits for room."""
        while (line := self._lines.get(tenant)) is not None and any(future in line for future in futures):
            self._left.clear()
            await self._left.wait()

    def give_back(self, place: Place) -> None:
        """A place is not needed any more, or only now."""
        tenant, num_inputs, place.inputs = place.tenant, place.inputs, 0
        if place.is_waiting:
            self._admit(tenant, -place.tokens)
            self._waiting.put_back(tenant, 0, num_inputs)
            self._left.set()
        elif place.connection is not None:
            place.connection.put_back(tenant, place.tokens, num_inputs)
            self._feed()

    def _try(
        self, place: Place, connection: EngineConnection, num_tokens: int, num_inputs: int, *, may_wait: bool
    ) -> Lack:
        """Reserve room for inputs, or else a place to wait in if they may; what is lacking otherwise."""
        tenant, shares, is_shared = place.tenant, place.standing.shares, place.standing.is_shared
        is_first = tenant not in self._lines
        lack: Lack = ""
        if is_first and not (lack := connection.room.lack(tenant, shares, num_tokens, num_inputs, is_shared=is_shared)):
            connection.take(tenant, shares, num_tokens, num_inputs)
            place.connection = connection
        elif not may_wait:
            return lack
        elif beside := self._waiting.lack(tenant, shares, 0, num_inputs, is_shared=is_shared):
            return "share" if lack == "share" else beside
        else:
            self._waiting.take(tenant, shares, 0, num_inputs)
            self._admit(tenant, num_tokens)
            place.is_waiting = True
        place.tokens, place.inputs = num_tokens, num_inputs
        return ""

    def _keep(self, place: Place, connection: EngineConnection, rows: Sequence[Row]) -> bool:
        """Whether rows fit into what is reserved for them, and what is free beside it; then all of that is theirs."""
        tenant, standing = place.tenant, place.standing
        more, more_inputs = sum(map(num_tokens_of, rows)) - place.tokens, len(rows) - place.inputs
        if more > 0 and connection.room.lack(tenant, standing.shares, more, 0, is_shared=standing.is_shared):
            return False
        place.inputs = 0
        if more or more_inputs:
            connection.take(tenant, standing.shares, more, more_inputs)
        return True

    def _is_soon(self, connection: EngineConnection, num_tokens: int, left_s: float) -> bool:
        """Whether inputs are answered in time, even behind all that there is: which costs less to see than `_queue`."""
        said = connection.queue
        behind = said.queued_tokens + connection.all_sent_since + self._all_admitted + connection.room.tokens
        return (MARGIN + BATCHES) * (behind + num_tokens) <= said.tokens_per_s * left_s

    @staticmethod
    def _refusal(
        queue: Queue, tenant: str, limit: int | None, size: int, left_s: float, before: int = 0
    ) -> QuotaExceeded | DeadlineExceeded | None:
        """Why inputs of `size` tokens are not to be queued, of which the last is to be answered in `left_s`.

        Args:
            before: of this tenant, that are to be queued before them.
        """
        num_tokens = before + size
        if limit is not None and queue.own + num_tokens > limit:
            return QuotaExceeded.of(
                "queued_tokens",
                tenant,
                limit=limit,
                used=int(queue.own),
                # What is larger than the quota never fits.
                retry_after_s=queue.drained_s(queue.own + num_tokens - limit) if num_tokens <= limit else None,
            )
        if not queue.busy and not before:
            # Nobody waits for longer if an idle engine tries. Were it to try nothing, a rate that is too low would
            # never be measured again.
            return None
        wait_s = queue.wait_s(num_tokens)
        if wait_s is not None and wait_s > left_s:
            return DeadlineExceeded(
                f"this would be answered in {wait_s:.1f} s, and its deadline is in {max(left_s, 0.0):.1f} s",
                reason="DEADLINE_UNREACHABLE",
                retry_after_s=retry.within(wait_s - left_s),
            )
        return None

    def _queue(self, connection: EngineConnection, tenant: str, shares: Shares) -> Queue:
        """What is before the next input of a tenant: what the engine last said, and what has happened since."""
        said = connection.queue
        # Who has no rows under way hears nothing more of what becomes of those of others.
        done = said.tokens_per_s * (time.monotonic() - connection.queue_time)
        since = connection.sent_since
        left = max(said.queued_tokens - done, 0.0)
        queued = left + connection.all_sent_since + self._all_admitted
        own_said = said.tenants.get(tenant)
        if own_said is None:
            # It may have been left out among many; then what is under way from here is what is known.
            own_said = max(connection.room.tokens_of(tenant) - since.get(tenant, 0), 0)
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
        self,
        lack: Lack,
        connection: EngineConnection,
        tenant: str,
        standing: Standing,
        num_tokens: int,
        num_inputs: int,
    ) -> Overloaded:
        """What inputs are told that find no room: when there will be some, each after those refused before it."""
        if lack != "share" or not standing.is_shared:
            return connection.full(num_tokens, num_inputs)
        queue = self._queue(connection, tenant, standing.shares)
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
            is_first = next(iter(line)) is future
            self._leave(tenant, future)
            if is_first and tenant in self._lines:
                # It made no room; but the next one may need less.
                self._feed((tenant,))

    def _leave(self, tenant: str, future: _Future) -> None:
        """A row is here no more."""
        line = self._lines[tenant]
        num_tokens = num_tokens_of(line.pop(future))
        if not line:
            del self._lines[tenant]
        self._waiting.put_back(tenant, 0)
        self._admit(tenant, -num_tokens)
        self._left.set()

    def _feed(self, tenants: Iterable[str] | None = None) -> None:
        """Send what there is room for now, an input of each tenant in turn; or fail all, if nobody will take it.

        Args:
            tenants: that wait, and that alone may find room; None for all that wait.
        """
        if not self._lines:
            return
        if not self._link.is_up:
            self._fail(self._link.restarting())
            return
        if (connection := self._link.moving) is None:
            return
        turns, room = deque(self._lines if tenants is None else tenants), connection.room
        while turns and room.free_inputs > 0:
            tenant = turns.popleft()
            standing = self._tenancy.of(tenant)
            future, row = next(iter(self._lines[tenant].items()))
            if not future.done():
                if _lack(connection, row, standing):
                    continue
                self._link.submit([row], standing.shares, [future])
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


def _lack(connection: EngineConnection, row: Row, standing: Standing) -> Lack:
    """Why a row does not fit now."""
    return connection.room.lack(row.tenant, standing.shares, num_tokens_of(row), is_shared=standing.is_shared)
