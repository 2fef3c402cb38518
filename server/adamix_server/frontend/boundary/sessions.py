"""Open streams, which end with the credential that they were opened with: when it is revoked, or expires.

Who was recognised is asked for again, when that may have changed: a few hundred microseconds after a key was revoked
for each dozen of streams, and nothing for a call that is no stream. Belongs to one event loop. Knows neither
credentials nor methods.
"""

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections.abc import Callable

from adamix.errors import AdamixError
from adamix_server.access.principal import ANYONE, NOBODY, Principal
from adamix_server.access.refusal import unauthenticated
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.boundary.patience import Wait

log = logging.getLogger(__name__)

# Between two looks at what streams stand on; they end within a second.
LOOK_S = 0.25
# Streams that are looked at before others have their turn.
_AT_ONCE = 64

Basis = tuple[object, ...]


class Session(Wait):
    """One open stream.

    Attributes:
        error: that it ends with, once it was ended.
    """

    __slots__ = ("call", "error", "recognise")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Call, recognise: Callable[[], Principal]) -> None:
        super().__init__(loop, loop.time())
        self.call = call
        self.recognise = recognise
        self.error: AdamixError | None = None

    def end_with(self, error: AdamixError) -> None:
        self.error = error
        self.end()

    async def settle(self) -> None:
        """The task is ending: take the cancellation that `end` has sent, if it has not arrived yet."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not self.was_ended():
                raise


class Sessions:
    """The open streams of a front end.

    Args:
        basis: by which callers are recognised now; another object in it once that has changed.
        clock: seconds since 1970 UTC, which may jump.

    Attributes:
        basis: as given.
    """

    def __init__(self, basis: Callable[[], Basis] = lambda: (), clock: Callable[[], float] = time.time) -> None:
        self.basis = basis
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._seen = basis()
        self._open: dict[Session, None] = {}
        # The soonest first; those that have ended meanwhile are passed over.
        self._expiring: list[tuple[float, int, Session]] = []
        self._numbers = itertools.count()

    def open(self, call: Call, recognise: Callable[[], Principal]) -> Session | None:
        """A stream of this task begins; None where its caller is nobody who could be forgotten.

        Args:
            recognise: tells anew who its caller is. Raises AdamixError if nobody knows, or it may not call any more.
        """
        principal = call.principal
        if principal is ANYONE or principal is NOBODY:
            return None
        session = Session(self._loop, call, recognise)
        self._open[session] = None
        if principal.expire_time_s < math.inf:
            heapq.heappush(self._expiring, (principal.expire_time_s, next(self._numbers), session))
        return session

    def close(self, session: Session) -> None:
        """The stream has ended."""
        self._open.pop(session, None)

    def has_expired(self, principal: Principal) -> bool:
        """Whether it is nobody any more, by the time alone."""
        return principal.expire_time_s <= self._clock()

    async def run(self) -> None:
        """End streams, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """End what nobody is known for any more."""
        newest = self.basis()
        if has_changed(newest, self._seen):
            self._seen = newest
            for number, session in enumerate(list(self._open)):
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
                self._look_at(session)
        now_s = self._clock()
        while self._expiring and self._expiring[0][0] <= now_s:
            self._look_at(heapq.heappop(self._expiring)[2])
        if len(self._expiring) > 2 * len(self._open) + _AT_ONCE:
            # Of credentials that live on, while their streams have ended.
            self._expiring = [entry for entry in self._expiring if entry[2] in self._open]
            heapq.heapify(self._expiring)

    def _look_at(self, session: Session) -> None:
        if session not in self._open or session.is_over:
            return
        # For those that are told of a refusal.
        calls.enter(session.call)
        try:
            principal = session.recognise()
        except AdamixError as error:
            session.end_with(error)
        except Exception:
            # Whoever cannot be recognised is nobody; and the others' streams must be looked at all the same.
            log.exception("the caller of a stream could not be recognised again")
            session.end_with(unauthenticated())
        else:
            if principal != session.call.principal:
                session.end_with(unauthenticated())


def has_changed(basis: Basis, since: Basis) -> bool:
    """Whether somebody who was recognised by `since` may not be by `basis`."""
    return any(new is not old for new, old in zip(basis, since, strict=True))
