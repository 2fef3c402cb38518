"""What the live front ends agree on: the supervisor's books, and nothing but the books.

Every front end says which catalog revision it serves and which is the oldest that its calls still use. What all of
them have reached is told to all. A front end that joins is told at once what has been agreed on without it: it must
reach that before it answers its first call, since others have been promised that nobody serves less. One that has gone
holds nobody up any more. Pure: numbers and names in, frames to send out.
"""

from collections.abc import Iterable

from adamix_server.frames import Agreed, AnyFrame, Refresh, Seen

# To whom, and what.
Letter = tuple[str, AnyFrame]


class Agreement:
    """The books of one server. Front ends are known by their names."""

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


def _later(one: Seen, other: Seen) -> Seen:
    """Two frames of one front end may arrive in any order; its numbers never fall."""
    return Seen(revision=max(one.revision, other.revision), oldest=max(one.oldest, other.oldest))
