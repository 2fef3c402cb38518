"""Quotas over several front ends, the lender's side: what of each has been lent to whom.

The supervisor lends, front ends borrow (`borrowing.py`). Of a rate (`Flow`) a front end is lent slices, of what runs at
once slots, and it gives back what it does not use. So the sum over all front ends is never more than one bucket gives,
or than there are slots. Slots are exact: one that somebody keeps for its next call is called back before anybody is
refused. The lender knows no tenant by itself: who asks says what the quota is, and the newest word counts.

Pure: values in, values out; the clock is the caller's, in seconds of CLOCK_MONOTONIC.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from adamix_server.access.buckets import Bucket
from adamix_server.limits.quotas import FULL_S, SLOT_WAIT_S

# Tenant and quota.
Key = tuple[str, str]

# So long a front end that was called upon keeps no free slots.
RECALL_S = 0.1
_FIRST_SWEEP = 64


class Flow(msgspec.Struct, frozen=True, array_like=True):
    """A rate: units a second, how many of them at once, and how many must be left for anybody to get some."""

    rate: float
    burst: float
    least: float = 0.0


class Ask(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a front end says of one quota of one tenant.

    Attributes:
        limit: the quota: a rate, or how many at once.
        number: of the question; 0 for none. The answer repeats it.
        first: units that the call needs which has waited for longest, and `more` that would be of use beside them; 0 if
            nobody waits yet.
        returned: units given back since the last word.
        held: units of a rate that are not spent, as far as it knows.
        recalled: the newest call for free slots that it has followed; 0 for none.
    """

    tenant: str
    quota: str
    limit: Flow | int
    number: int = 0
    first: float = 0.0
    more: float = 0.0
    returned: float = 0.0
    held: float = 0.0
    recalled: int = 0

    @property
    def key(self) -> Key:
        return self.tenant, self.quota

    def over(self, earlier: "Ask") -> "Ask":
        """Both as one word."""
        asks = self if self.number else earlier
        return msgspec.structs.replace(
            self,
            number=asks.number,
            first=asks.first,
            more=asks.more,
            returned=earlier.returned + self.returned,
            recalled=max(earlier.recalled, self.recalled),
        )


class Loan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a front end is told of one quota of one tenant.

    Attributes:
        number: of the newest question that this answers; 0 if it answers none.
        lent: units it may use from now on.
        opens_at: when it is worth to ask again; 0 for now.
        recall: number of this call for free slots, since another front end has none; 0 for none. It is followed for a
            while.
    """

    tenant: str
    quota: str
    number: int = 0
    lent: float = 0.0
    opens_at: float = 0.0
    recall: int = 0

    @property
    def key(self) -> Key:
        return self.tenant, self.quota

    def over(self, earlier: "Loan") -> "Loan":
        """Both as one word."""
        answers = self if self.number else earlier
        return msgspec.structs.replace(
            self,
            number=answers.number,
            lent=earlier.lent + self.lent,
            opens_at=answers.opens_at,
            recall=max(earlier.recall, self.recall),
        )


Word = TypeVar("Word", Ask, Loan)


def joined(earlier: Iterable[Word], later: Iterable[Word]) -> list[Word]:
    """One word a quota, of all of these."""
    words = {word.key: word for word in earlier}
    for word in later:
        before = words.get(word.key)
        words[word.key] = word if before is None else word.over(before)
    return list(words.values())


# To whom, and what.
Letter = tuple[str, Loan]


class Lender:
    """What has been lent to whom. Front ends are known by their names."""

    def __init__(self) -> None:
        self._rates: dict[Key, _Rate] = {}
        self._slots: dict[Key, _Slots] = {}
        # Those of them that somebody waits for.
        self._wanted: dict[Key, _Slots] = {}
        self._recalls = itertools.count(1)
        self._sweep_at = _FIRST_SWEEP

    @property
    def looks_at(self) -> float | None:
        """When `look` is to be called; None for not before somebody asks."""
        since = (turn.since for slots in self._wanted.values() for turn in slots.waiting.values())
        return min((each + SLOT_WAIT_S for each in since), default=None)

    def ask(self, name: str, asks: Iterable[Ask], now: float) -> list[Letter]:
        """A front end says how it stands, and what it needs."""
        letters: list[Letter] = []
        for ask in asks:
            letters += self._ask(name, ask, now)
        if len(self._rates) >= self._sweep_at:
            self._rates = {key: rate for key, rate in self._rates.items() if not rate.is_at_rest(now)}
            self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._rates))
        return letters

    def look(self, now: float) -> list[Letter]:
        """Refuse those for whom nobody had a slot to spare."""
        letters: list[Letter] = []
        for key, slots in list(self._wanted.items()):
            letters += slots.refuse(key, now)
            self._note(key, slots)
        return letters

    def left(self, name: str, now: float) -> list[Letter]:
        """A front end has ended for certain: what it held by its last word is there again."""
        letters: list[Letter] = []
        for rate in self._rates.values():
            rate.bucket.give(rate.held.pop(name, 0.0))
        for key, slots in list(self._slots.items()):
            slots.waiting.pop(name, None)
            slots.heard(name, slots.lent.get(name, 0), recalled=0)
            letters += self._serve(key, slots, now)
        return letters

    def _ask(self, name: str, ask: Ask, now: float) -> list[Letter]:
        if isinstance(ask.limit, Flow):
            if (rate := self._rates.get(ask.key)) is None:
                rate = self._rates[ask.key] = _Rate(Bucket(ask.limit.rate, ask.limit.burst, now, ask.limit.least))
            loan = rate.ask(name, ask, ask.limit, now)
            return [] if loan is None else [(name, loan)]
        slots = self._slots.setdefault(ask.key, _Slots())
        slots.limit = ask.limit
        slots.heard(name, round(ask.returned), ask.recalled)
        if ask.number:
            slots.waiting[name] = _Turn(ask.number, round(ask.first + ask.more), now)
        return self._serve(ask.key, slots, now)

    def _serve(self, key: Key, slots: "_Slots", now: float) -> list[Letter]:
        letters = slots.serve(key, self._recalls, now)
        self._note(key, slots)
        return letters

    def _note(self, key: Key, slots: "_Slots") -> None:
        if slots.waiting:
            self._wanted[key] = slots
            return
        self._wanted.pop(key, None)
        if not slots.lent:
            self._slots.pop(key, None)


@dataclass(slots=True)
class _Rate:
    """One rate. `held`: what front ends have been lent and not spent, as they last said."""

    bucket: Bucket
    held: dict[str, float] = field(default_factory=dict)

    def ask(self, name: str, ask: Ask, limit: Flow, now: float) -> Loan | None:
        bucket = self.bucket
        bucket.reshape(limit.rate, limit.burst, now)
        bucket.level(now)
        bucket.give(ask.returned)
        # What nobody waits for is not taken from the last that there is: whoever comes next needs it to get in.
        is_scarce = ask.first <= 0 and bucket.level(now) < 2 * ask.more
        lent = bucket.lend(ask.first, ask.first + ask.more, now) if ask.number and not is_scarce else 0.0
        if held := max(ask.held, 0.0) + lent:
            self.held[name] = held
        else:
            self.held.pop(name, None)
        if not ask.number:
            return None
        closed_s = 0.0 if lent else bucket.closed_s(now) or 0.0
        opens_at = now + closed_s if closed_s else 0.0
        return Loan(tenant=ask.tenant, quota=ask.quota, number=ask.number, lent=lent, opens_at=opens_at)

    def is_at_rest(self, now: float) -> bool:
        return not self.held and self.bucket.is_full(now)


@dataclass(slots=True)
class _Turn:
    """A front end that waits for slots.

    Attributes:
        awaited: calls for free slots that others have not followed yet, by their names; None: not called yet.
    """

    number: int
    need: int
    since: float
    awaited: dict[str, int] | None = None


@dataclass(slots=True)
class _Slots:
    """One limit on what runs at once. `waiting`: front ends in the order in which they asked."""

    limit: int = 0
    lent: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, _Turn] = field(default_factory=dict)

    def heard(self, name: str, returned: int, recalled: int) -> None:
        """A front end gives slots back, and has followed calls for them."""
        if left := self.lent.get(name, 0) - returned:
            self.lent[name] = left
        else:
            self.lent.pop(name, None)
        for turn in self.waiting.values():
            awaited = turn.awaited
            if awaited is not None and name in awaited and (not left or awaited[name] <= recalled):
                del awaited[name]

    def serve(self, key: Key, recalls: Iterator[int], now: float) -> list[Letter]:
        """Lend what there is; who gets none is refused once nobody else has one to spare."""
        letters: list[Letter] = []
        for name, turn in list(self.waiting.items()):
            if (count := min(turn.need, self.limit - sum(self.lent.values()))) > 0:
                del self.waiting[name]
                self.lent[name] = self.lent.get(name, 0) + count
                letters.append((name, _answer(key, turn, lent=count)))
                continue
            if turn.awaited is None:
                # Numbered anew, since what others had free when they were last called says nothing.
                turn.awaited = {other: next(recalls) for other in self.lent if other != name}
                letters += [
                    (other, Loan(tenant=key[0], quota=key[1], recall=recall)) for other, recall in turn.awaited.items()
                ]
            if not turn.awaited:
                del self.waiting[name]
                letters.append((name, _answer(key, turn, opens_at=now + FULL_S)))
        return letters

    def refuse(self, key: Key, now: float) -> list[Letter]:
        """Refuse whoever has waited for too long for others that say nothing."""
        late = {name: turn for name, turn in self.waiting.items() if not turn.since <= now < turn.since + SLOT_WAIT_S}
        for name in late:
            del self.waiting[name]
        return [(name, _answer(key, turn, opens_at=now + FULL_S)) for name, turn in late.items()]


def _answer(key: Key, turn: _Turn, lent: float = 0.0, opens_at: float = 0.0) -> Loan:
    return Loan(tenant=key[0], quota=key[1], number=turn.number, lent=lent, opens_at=opens_at)
