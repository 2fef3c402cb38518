"""Whether a new call may start, and whether all that started have ended. Knows nothing of what calls do.

Belongs to one event loop. The engine's credit (`engine_link.py`) is the other half of admission: it bounds inputs,
this bounds calls, and the life of the server.
"""

import asyncio

from adamix.errors import Overloaded, Unavailable
from adamix_server import retry
from adamix_server.frontend.boundary.bounds import BOUNDS, Bounds
from adamix_server.frontend.boundary.rooms import Origin, Room, TenantParts

# This server does not come back, so there is nothing to measure: time for a client to learn where the next one is.
DRAIN_RETRY_S = 1.0
# What a call takes, until some have been measured; and how much of that is of the newest.
_CALL_S, _NEWEST = 0.1, 0.01


class Admission:
    """Counts running calls, shares them out among connections and tenants, and refuses new ones after `close`."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self._calls = Room(bounds.calls)
        self._tenants = TenantParts(bounds.calls)
        self._call_s = _CALL_S
        self._kept = Room(bounds.kept_calls)
        self._running = 0
        self._closed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Count a call in. Raises Unavailable (`DRAINING`) after `close`."""
        if self._closed.is_set():
            raise draining()
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count a call out that `enter` let in."""
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    def seat(self, origin: Origin, tenant: str, *, is_kept: bool) -> Room:
        """Take room for one call of a tenant and a connection, until grpc has sent the last byte of its answer.

        Args:
            is_kept: some room is kept for calls of this kind.

        Returns:
            where 1 is to be given back.

        Raises:
            Overloaded: this front end has as many calls as it takes, or this connection or tenant its share
                (`CALLS_FULL`).
        """
        if (is_kept or self._tenants.may_take(tenant, 1)) and self._calls.take(origin, 1):
            self._tenants.take(tenant, 1)
            return self._calls
        if is_kept and self._kept.take(origin, 1):
            return self._kept
        raise Overloaded(
            "this connection or its tenant has its share of the calls that run at once, or there is no more room for "
            "any; try again",
            reason="CALLS_FULL",
            # By then what this connection holds now has ended.
            retry_after_s=retry.within(self._call_s),
        )

    def rise(self, seat: Room, origin: Origin, tenant: str, call_s: float) -> None:
        """Give back what `seat` took, after so many seconds."""
        seat.give(origin, 1)
        if seat is self._calls:
            self._tenants.give(tenant, 1)
        self._call_s += _NEWEST * (call_s - self._call_s)

    def close(self) -> None:
        self._closed.set()

    async def closed(self) -> None:
        """Return once `close` was called: for calls that do not end by themselves."""
        await self._closed.wait()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no call runs; False if some still do after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


def draining() -> Unavailable:
    """What a call is told that the server will not start, or not go on with."""
    return Unavailable("the server is shutting down; try again", reason="DRAINING", retry_after_s=DRAIN_RETRY_S)
