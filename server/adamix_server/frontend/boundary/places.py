"""Places to receive a message in, and whose turn it is when there is none.

grpc tells no size before it delivers, and a read that has begun cannot be taken back: until its message is here, it
may cost a whole one. So a place is taken before each read. Who has none waits, and connections take turns. A caller
that sends its headers and no message must not keep others from theirs: while they wait it is ended after a short
patience, and its connection is served after the others for a while. Half of the places are for connections whose last
message came, and was small: most are such. A stream that waits for its *next* message does nothing odd; it has a seat,
of which there are more: at once where its connection sends small messages, else when its message has not come for a
moment. So many streams of one connection can be asked and answered in turn, and none keeps a place from its new calls.
Knows tasks and time; knows neither messages nor grpc.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from adamix.errors import AdamixError, DeadlineExceeded, Overloaded
from adamix_server import retry
from adamix_server.frontend.boundary.bounds import Bounds
from adamix_server.frontend.boundary.patience import Wait
from adamix_server.frontend.boundary.rooms import Origin, Room

# Connections of which is known that they send small messages.
_MAX_KNOWN = 4096


Refused = Callable[[str], None]


def uncounted(_reason: str) -> None:
    """For who counts no refusals."""


class Place(Wait):
    """One place, held by the task that reads.

    Attributes:
        is_first: the call has sent no message yet.
        room: where it is to be given back: among the places, or among the seats.
        error: why the read was ended, if it was.
    """

    __slots__ = ("error", "is_first", "origin", "room")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, since: float, origin: Origin, room: Room, *, is_first: bool
    ) -> None:
        super().__init__(loop, since)
        self.origin = origin
        self.room = room
        self.is_first = is_first
        self.error: AdamixError | None = None


class Places:
    """The places of one kind of call. Belongs to one event loop.

    Args:
        size: places.
        seats: for streams that wait for their next message.
        bounds: how long things may take.
        refused: is told the reason of each refusal.
    """

    def __init__(self, size: int, seats: int, bounds: Bounds, refused: Refused = uncounted) -> None:
        self._room = Room(size)
        self._seats = Room(seats)
        self._reserve = size // 2
        # A dict for its order: the first is the one that has been known for longest.
        self._known: dict[str, None] = {}
        self._bounds = bounds
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        # In the order in which they were taken.
        self._held: dict[Place, None] = {}
        # By connection, in the order in which these have their turn.
        self._waiting: dict[str, deque[_Turn]] = {}
        # Connection -> until when.
        self._late: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, origin: Origin, *, is_first: bool) -> Place | None:
        """A place, if there is one and nobody waits for it; or a seat."""
        if not is_first and self._is_known(origin) and self._seats.take(origin, 1):
            # Nobody is in the way there, so there is nothing to look at.
            return Place(self._loop, self._loop.time(), origin, self._seats, is_first=False)
        if self._waiting or not self._may(origin):
            return None
        return self._hold(origin, is_first=is_first)

    async def turn(self, origin: Origin, *, is_first: bool) -> Place:
        """A place as soon as it is this connection's turn.

        Raises:
            Overloaded: it took too long (`READING_FULL`).
        """
        turn = _Turn(origin, self._loop.create_future())
        self._waiting.setdefault(origin.connection, deque()).append(turn)
        # Nobody has begun to wait while there is a place for it; but there may be one for it now.
        self._serve()
        self._watch()
        is_known = False
        try:
            async with asyncio.timeout(self._bounds.turn_s):
                await turn.granted
            is_known = True
        except TimeoutError:
            self._refused("READING_FULL")
            # It has waited for so long already, and may well have to for as long again.
            raise Overloaded(
                "other calls' messages are being received; try again",
                reason="READING_FULL",
                retry_after_s=retry.within(self._bounds.turn_s),
            ) from None
        finally:
            if not is_known:
                self._withdraw(turn)
        return self._hold(origin, is_first=is_first)

    def give(self, place: Place, *, is_small: bool | None = None) -> None:
        """Give a place back. Does nothing the second time.

        Args:
            is_small: how the message was that came, if one came.
        """
        if place.room is _NONE:
            return
        connection = place.origin.connection
        if is_small is False:
            self._known.pop(connection, None)
        elif is_small and connection not in self._known:
            self._known[connection] = None
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
        place.room.give(place.origin, 1)
        place.room = _NONE
        self._held.pop(place, None)
        if self._waiting:
            self._serve()

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _may(self, origin: Origin) -> bool:
        """Whether one of this connection may have a place now; if so, it is taken."""
        if self._room.free <= self._reserve and not self._is_known(origin):
            return False
        return self._room.take(origin, 1)

    def _is_known(self, origin: Origin) -> bool:
        """Whether it sends small messages, as far as can be told."""
        return origin.connection in self._known or origin.is_trusted

    def _hold(self, origin: Origin, *, is_first: bool) -> Place:
        place = Place(self._loop, self._loop.time(), origin, self._room, is_first=is_first)
        self._held[place] = None
        if self._timer is None:
            self._watch()
        return place

    def _serve(self) -> None:
        """Give free places to those who wait: a connection each in turn, those that were late after the others."""
        is_given = True
        while is_given and self._room.free:
            is_given = False
            for connection in sorted(self._waiting, key=self._late.__contains__):
                turns = self._waiting[connection]
                # Those that were cancelled, and could not withdraw yet, are passed over.
                turn = next((turn for turn in turns if not turn.granted.done()), None)
                if turn is None or not self._may(turn.origin):
                    continue
                is_given = True
                turn.granted.set_result(None)
                turns.remove(turn)
                # To the end of the order.
                del self._waiting[connection]
                if turns:
                    self._waiting[connection] = turns

    def _withdraw(self, turn: "_Turn") -> None:
        """Somebody waits no more, who may have been given a place before it could know."""
        if turn.granted.done() and not turn.granted.cancelled():
            self._room.give(turn.origin, 1)
            self._serve()
            return
        turns = self._waiting[turn.origin.connection]
        turns.remove(turn)
        if not turns:
            del self._waiting[turn.origin.connection]

    def _watch(self) -> None:
        """Look again in a part of the patience, as long as there is anything to see."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._bounds.patience_s / 4, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        self._late = {connection: until for connection, until in self._late.items() if until > now}
        wanted = sum(map(len, self._waiting.values()))
        for place in list(self._held):
            age = now - place.since
            if age < self._bounds.patience_s:
                break
            if not place.is_first and self._seats.take(place.origin, 1):
                self._room.give(place.origin, 1)
                place.room = self._seats
                del self._held[place]
            elif place.is_first and age >= self._bounds.message_s:
                self._end(place, now, f"no message came within {self._bounds.message_s:g} s")
            elif wanted > 0 and self._is_in_the_way(place.origin):
                wanted -= 1
                self._end(place, now, "no message came, and other calls wait for the place to receive theirs")
        self._serve()
        self._timer = None
        if self._held or self._waiting or self._late:
            self._watch()

    def _is_in_the_way(self, origin: Origin) -> bool:
        """Whether somebody else waits because too few places are free, and not because it has its share or was late."""
        if origin.is_trusted:
            return not self._room.free
        others = [connection for connection in self._waiting if connection != origin.connection]
        if origin.connection in self._known:
            return not self._room.free and any(connection not in self._late for connection in others)
        return bool(others) and self._room.free <= self._reserve

    def _end(self, place: Place, now: float, why: str) -> None:
        del self._held[place]
        self._late[place.origin.connection] = now + self._bounds.late_s
        self._known.pop(place.origin.connection, None)
        self._refused("MESSAGE_LATE")
        place.error = DeadlineExceeded(why, reason="MESSAGE_LATE")
        place.end()


class _Turn:
    """Somebody who waits; `granted` is set when a place was taken for it."""

    __slots__ = ("granted", "origin")

    def __init__(self, origin: Origin, granted: "asyncio.Future[None]") -> None:
        self.origin = origin
        self.granted = granted


_NONE = Room(0)
