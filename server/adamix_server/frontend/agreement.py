"""What this front end serves and still uses of the catalog, and what all front ends together do.

Two revisions go up to the supervisor (`Seen`): the one that calls resolve at from now on, and the oldest one that a
running call has resolved at. Two come down (`Agreed`): the smallest of each over all live front ends. A change of the
catalog is acknowledged once nobody serves less than it; the bytes of a retired version go once nobody uses a catalog
that still had it. Knows numbers; neither the catalog nor the supervisor.

Everything belongs to one event loop.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adamix_server.frames import Agreed, Seen


class Bell:
    """Wakes everyone who waits for a condition, so that each looks at its own."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait_for(self, is_met: Callable[[], bool]) -> None:
        """Return once `is_met()`; asked now, and after every ring."""
        while not is_met():
            await self._rung.wait()


class Agreement:
    """One front end's part in the agreement of all."""

    def __init__(self) -> None:
        self._served = -1
        # Revision -> running calls that resolved at it. A call resolves at the newest, so the first key is the oldest.
        self._readings: dict[int, int] = {}
        self._said: Seen | None = None
        self._agreed: Agreed | None = None
        self._bell = Bell()

    @property
    def seen(self) -> Seen:
        """What is to be said to the supervisor. Neither number ever falls."""
        return Seen(revision=self._served, oldest=next(iter(self._readings), self._served))

    @property
    def is_admitted(self) -> bool:
        """Whether every agreement waits for this front end, and it serves no less than the others have agreed on."""
        return self._agreed is not None and self._served >= self._agreed.revision

    def serve(self, revision: int) -> None:
        """From now on calls resolve at `revision`, which is not below the last one."""
        self._served = revision
        self._bell.ring()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A call that has resolved, in this turn of the loop, what it may still ask the engine to load."""
        revision = self._served
        self._readings[revision] = self._readings.get(revision, 0) + 1
        try:
            yield
        finally:
            left = self._readings[revision] - 1
            if left:
                self._readings[revision] = left
            else:
                del self._readings[revision]
                # Of the revision that is served, the end of a call changes nothing.
                if revision != self._served:
                    self._bell.ring()

    async def news(self) -> Seen:
        """`seen`, once it is not what the last `news` was. For one caller."""
        await self._bell.wait_for(lambda: self.seen != self._said)
        self._said = self.seen
        return self._said

    def take(self, agreed: Agreed) -> None:
        """What all front ends agree on now."""
        self._agreed = agreed
        self._bell.ring()

    async def all_serve(self, revision: int, timeout_s: float) -> bool:
        """Wait until every front end serves `revision` or a later one; False if that takes too long."""
        return await self._wait(lambda agreed: agreed.revision >= revision, timeout_s)

    async def none_uses_less(self, revision: int, timeout_s: float) -> bool:
        """Wait until no running call of any front end has resolved below `revision`; False if that takes too long."""
        return await self._wait(lambda agreed: agreed.oldest >= revision, timeout_s)

    async def _wait(self, is_met: Callable[[Agreed], bool], timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._bell.wait_for(lambda: self._agreed is not None and is_met(self._agreed))
        except TimeoutError:
            return False
        return True
