"""Carries what this front end asks of the supervisor's lender, and what it is lent: `access/borrowing.py` on a loop.

At most one frame a turn of the loop, and nothing ever waits for the supervisor to read it.
"""

import asyncio
import time
from collections.abc import Callable

from adamix_server.access.borrowing import Borrower
from adamix_server.channel.supervisor_frames import Asks, Loans

_TIDY_S = 0.05


class Borrowing:
    """One front end's borrower, on its event loop.

    Args:
        number, of: which of how many front ends this is.
        send: a frame to the supervisor.

    Attributes:
        holder: what is asked for quotas; `poke` has to be called afterwards.
    """

    def __init__(self, number: int, of: int, send: Callable[[Asks], None]) -> None:
        self.holder = Borrower(number, of)
        self._send = send
        self._is_flushing = False
        self._timer: asyncio.TimerHandle | None = None

    def poke(self) -> None:
        """Whatever the holder has to say is sent at the end of this turn of the loop."""
        if self.holder.has_said and not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        if self._timer is None and not self.holder.is_idle:
            self._timer = asyncio.get_running_loop().call_later(_TIDY_S, self._tidy)

    def take(self, loans: Loans) -> None:
        """The supervisor has lent something, or refused it."""
        self.holder.lent(loans.loans, time.monotonic())
        self.poke()

    def close(self) -> None:
        """Look after nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _flush(self) -> None:
        self._is_flushing = False
        if self.holder.has_said:
            self._send(Asks(asks=self.holder.said()))

    def _tidy(self) -> None:
        self._timer = None
        self.holder.tidy(time.monotonic())
        self.poke()
