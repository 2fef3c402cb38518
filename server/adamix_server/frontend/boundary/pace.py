"""How often one connection may ask for what is no prediction, beside predictions.

Each call costs a front end a fraction of a millisecond, whatever it asks for and also where it is refused. A caller
that asks without pause would take half of what data calls have. So while those run, a connection's other calls are
received at a steady rate, after a few at once. Nobody waits for another's: whoever asks whether the server lives is
told so at once. Knows neither gRPC nor methods.
"""

import asyncio
import time
from collections.abc import Callable

from adamix_server.frontend.boundary.rooms import Origin
from adamix_server.limits.calls import MAX_OTHER_CALLS_PER_S

# So many seconds' worth at once.
BURST_S = 0.2
# However much more one has asked: after this it is told something.
MAX_WAIT_S = 5.0
# While somebody waits: so often is it looked whether data calls still run.
_LOOK_S = 0.1
# Of so many connections it is known when their next one is due; there may be fewer.
_MAX_KNOWN = 2048


class Pace:
    """Belongs to one event loop.

    Args:
        is_shared: whether data calls run now.
        clock: monotonic seconds.
    """

    def __init__(self, is_shared: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_shared = is_shared
        self._clock = clock
        self._next_due: dict[str, float] = {}

    async def turn(self, origin: Origin) -> None:
        """Return when the connection's next call may be received. Those of a unix socket are many callers'."""
        if origin.is_trusted or not self._is_shared():
            return
        due = self.due(origin.connection, self._clock())
        # Data calls have no event for their end: there are thousands a second.
        while (left_s := due - self._clock()) > 0 and self._is_shared():  # noqa: ASYNC110
            await asyncio.sleep(min(left_s, _LOOK_S))

    def due(self, connection: str, now: float) -> float:
        """When that is; the one after it is due later."""
        due = min(max(self._next_due.get(connection, 0.0), now - BURST_S), now + MAX_WAIT_S)
        if len(self._next_due) >= _MAX_KNOWN:
            self._next_due = {who: at for who, at in self._next_due.items() if at > now - BURST_S}
        self._next_due[connection] = due + 1.0 / MAX_OTHER_CALLS_PER_S
        return due
