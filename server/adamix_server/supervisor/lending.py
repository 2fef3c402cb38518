"""Lends tenants' quotas to the front ends, in the supervisor: what is theirs to use is decided in `access/leases.py`.

What is to be said to a front end is said once a turn of the loop. Knows neither children nor catalogs.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from adamix_server.access.leases import Key, Lender, Letter, Loan
from adamix_server.channel.supervisor_frames import Asks, Loans


class Lending:
    """The lender, on the supervisor's event loop.

    Args:
        send: a frame to the front end of a name.
    """

    def __init__(self, send: Callable[[str, Loans], None]) -> None:
        self._send = send
        self._lender = Lender()
        # By front end, one word a quota.
        self._unsent: dict[str, dict[Key, Loan]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, name: str, asks: Asks) -> None:
        """A front end needs something, or gives something back."""
        self._deliver(self._lender.ask(name, asks.asks, time.monotonic()))

    def left(self, name: str) -> None:
        """A front end has ended for certain."""
        self._unsent.pop(name, None)
        self._deliver(self._lender.left(name, time.monotonic()))

    def _look(self) -> None:
        self._timer = None
        self._deliver(self._lender.look(time.monotonic()))

    def _deliver(self, letters: Iterable[Letter]) -> None:
        loop = asyncio.get_running_loop()
        for name, loan in letters:
            if not self._unsent:
                loop.call_soon(self._flush)
            words, key = self._unsent.setdefault(name, {}), loan.key
            words[key] = loan if (earlier := words.get(key)) is None else loan.over(earlier)
        if self._timer is None and (looks_at := self._lender.looks_at) is not None:
            self._timer = loop.call_later(max(looks_at - time.monotonic(), 0.0), self._look)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, {}
        for name, loans in unsent.items():
            self._send(name, Loans(loans=list(loans.values())))
