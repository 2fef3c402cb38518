"""What the live front ends agree on of the catalog: one protocol, the supervisor's side and a front end's.

Two revisions go up (`Seen`): the one that a front end's calls resolve at from now on, and the oldest one that a running
call of it has resolved at. What all of them have reached comes down (`Agreed`): the smallest of each over all live
front ends. A change of the catalog is acknowledged once nobody serves less than it; the bytes of a retired version go
once nobody uses a catalog that still had it.

A front end that joins is told at once what has been agreed on without it: it must reach that before it answers its
first call, since others have been promised that nobody serves less. One that has gone holds nobody up any more.
Knows numbers and frames; neither the catalog nor who carries the frames.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from adamix_server.channel.supervisor_frames import Agreed, Refresh, Seen

# To whom, and what.
Letter = tuple[str, Refresh | Agreed]


class Books:
    """The supervisor's side: what each front end has said. Front ends are known by their names.

    Pure: numbers and names in, frames to send out.
    """

    def __init__(self) -> None:
        self._parties: dict[str, Seen] = {}
        self._highest = -1
        self._agreed = Agreed(revision=-1, oldest=-1)

    @property
    def agreed(self) -> Agreed:
        """Neither number ever falls: what has been promised stays true."""
        return self._agreed

    def seen(self, name: str, seen: Seen) -> list[Letter]:
        """A front end says where it is; the first time, it joins."""
        before = self._parties.get(name)
        self._parties[name] = seen if before is None else _later(before, seen)
        letters: list[Letter] = []
        if seen.revision > self._highest:
            self._highest = seen.revision
            letters += self._to(self._behind())
        elif before is None and seen.revision < self._highest:
            letters += self._to([name])
        advanced = self._settle()
        return letters + (advanced or ([] if before is not None else [(name, self._agreed)]))

    def left(self, name: str) -> list[Letter]:
        """A front end has ended for certain: no call runs in it any more."""
        self._parties.pop(name, None)
        return self._settle()

    def _behind(self) -> list[str]:
        return [name for name, seen in self._parties.items() if seen.revision < self._highest]

    def _to(self, names: Iterable[str]) -> list[Letter]:
        return [(name, Refresh(revision=self._highest)) for name in names]

    def _settle(self) -> list[Letter]:
        """The new agreement for everyone, if there is one."""
        if not self._parties:
            return []
        everyone = self._parties.values()
        reached = Agreed(
            # One that has just joined may be behind what was agreed on; it answers nobody until it has caught up.
            revision=max(self._agreed.revision, min(seen.revision for seen in everyone)),
            oldest=max(self._agreed.oldest, min(seen.oldest for seen in everyone)),
        )
        if reached == self._agreed:
            return []
        self._agreed = reached
        return [(name, reached) for name in self._parties]


class Party:
    """A front end's side: what it serves and still uses, and what all together do. Belongs to one event loop."""

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


def _later(one: Seen, other: Seen) -> Seen:
    """Two frames of one front end may arrive in any order; its numbers never fall."""
    return Seen(revision=max(one.revision, other.revision), oldest=max(one.oldest, other.oldest))
