"""Why this front end does not serve, if it does not: the one truth that health, probes and the supervisor are told.

Whoever finds a reason holds it, and lifts it when it is over; a front end serves while nobody holds any. Belongs to
one event loop. Knows neither who holds a reason nor who is told.
"""

from adamix_server.agreement import Bell


class Readiness:
    """The reasons why this front end does not serve, in the order in which they came up.

    A reason is a word of `google.rpc.ErrorInfo.reason`: what a call is told meanwhile.

    Args:
        reasons: that hold from the start.
    """

    def __init__(self, *reasons: str) -> None:
        # A dict for its order.
        self._held: dict[str, None] = dict.fromkeys(reasons)
        self._bell = Bell()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Empty while the front end serves."""
        return tuple(self._held)

    @property
    def is_ready(self) -> bool:
        return not self._held

    def hold(self, reason: str) -> None:
        """From now on this front end does not serve, for `reason`. Held already: nothing happens."""
        if reason not in self._held:
            self._held[reason] = None
            self._bell.ring()

    def lift(self, reason: str) -> None:
        """`reason` is over. Not held: nothing happens."""
        if reason in self._held:
            del self._held[reason]
            self._bell.ring()

    def put(self, reason: str, is_so: bool) -> None:
        """Hold or lift, by what a look at the thing itself has shown."""
        (self.hold if is_so else self.lift)(reason)

    async def changed(self, since: tuple[str, ...]) -> tuple[str, ...]:
        """`reasons`, once they are not `since`. Steps in between may be left out."""
        await self._bell.wait_for(lambda: self.reasons != since)
        return self.reasons
