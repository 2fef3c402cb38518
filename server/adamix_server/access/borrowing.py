"""Quotas in one front end: what it may use of each now, and what it asks of the lender (`leases.py`).

`Part` asks nobody: it has all of every quota, or a fixed part. `Borrower` has what it was lent; a lender that does not
answer is not waited for: until it does, the part counts. Whoever takes something is admitted, refused, or waits until a
lender answers. Pure: values in, values out; the clock is the caller's, in seconds of CLOCK_MONOTONIC.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from adamix_server.access.buckets import Bucket
from adamix_server.access.leases import RECALL_S, Ask, Flow, Key, Loan
from adamix_server.limits.quotas import LEASE_S, LENDER_SILENCE_S

Limit = Flow | int

_FIRST_SWEEP = 64


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something cannot be had now.

    Attributes:
        retry_after_s: until it is worth to ask again; None for never.
        used: of the quota, as a share of it.
    """

    retry_after_s: float | None
    used: float = 1.0


_NEVER = Refusal(None, 0.0)


class Waiting:
    """Somebody who waits for the lender's answer.

    Attributes:
        units: that it needs.
    """

    def __init__(self) -> None:
        self.units = 1.0

    def settle(self, refusal: Refusal | None) -> None:
        """What came of it; None: what it needs is taken for it."""
        raise NotImplementedError


class Holder(Protocol):
    """A front end's side of all quotas."""

    def take(self, key: Key, limit: Limit, units: float, now: float, waiting: Waiting) -> Refusal | Waiting | None:
        """Take units of a rate, or a slot: None if they are taken; `waiting` if that is not known yet."""

    def look(self, key: Key, limit: Limit, now: float) -> Refusal | None:
        """Why nobody would get anything now, as far as that is known. Takes nothing: it is about to be wanted."""

    def give(self, key: Key, units: float, now: float) -> None:
        """Put back units that were taken and not used, or a slot."""

    def reserve(self, key: Key, units: float) -> None:
        """What was just taken is not used yet: `settle` says what came of it."""

    def settle(self, key: Key, units: float, unused: float, now: float) -> None:
        """Of what was reserved so many units were not used; they are put back."""

    def withdraw(self, key: Key, waiting: Waiting) -> None:
        """Somebody waits no more. Does nothing if it has been settled."""


class Part:
    """A fixed part of every quota, without asking anybody. The parts of all numbers are the whole.

    Args:
        number: of this one, from 0 on.
        of: how many there are.
    """

    def __init__(self, number: int = 0, of: int = 1) -> None:
        self._number = number
        self._of = of
        self._buckets: dict[Key, Bucket] = {}
        self._used: dict[Key, int] = {}
        self._sweep_at = _FIRST_SWEEP

    def take(
        self,
        key: Key,
        limit: Limit,
        units: float,
        now: float,
        waiting: Waiting | None = None,  # noqa: ARG002 - nobody waits here
    ) -> Refusal | None:
        if isinstance(limit, Flow):
            bucket = self._bucket(key, limit, now)
            if bucket.take(units, now):
                return None
            return _refusal_of(bucket, now)
        used = self._used.get(key, 0)
        if used >= self.slots(limit):
            return Refusal(0.0) if limit else _NEVER
        self._used[key] = used + 1
        return None

    def look(self, key: Key, limit: Limit, now: float) -> Refusal | None:
        if not isinstance(limit, Flow):
            return None
        bucket = self._bucket(key, limit, now)
        return _refusal_of(bucket, now) if bucket.closed_s(now) != 0.0 else None

    def give(self, key: Key, units: float, now: float) -> None:
        if (bucket := self._buckets.get(key)) is not None:
            bucket.level(now)
            bucket.give(units)
        elif (used := self._used.get(key, 0)) > 1:
            self._used[key] = used - 1
        else:
            self._used.pop(key, None)

    def reserve(self, key: Key, units: float) -> None:
        pass

    def settle(self, key: Key, units: float, unused: float, now: float) -> None:  # noqa: ARG002 - nobody asks for it
        self.give(key, unused, now)

    def slots(self, limit: int) -> int:
        """How many of a limit are this part's."""
        return limit * (self._number + 1) // self._of - limit * self._number // self._of

    def withdraw(self, key: Key, waiting: Waiting) -> None:
        pass

    def _bucket(self, key: Key, limit: Flow, now: float) -> Bucket:
        rate, burst = limit.rate / self._of, limit.burst / self._of
        if (bucket := self._buckets.get(key)) is not None:
            bucket.reshape(rate, burst, now)
            return bucket
        if len(self._buckets) >= self._sweep_at:
            # One that is full is as good as a new one.
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.is_full(now)}
            self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._buckets))
        bucket = self._buckets[key] = Bucket(rate, burst, now, limit.least)
        return bucket


def _refusal_of(bucket: Bucket, now: float) -> Refusal:
    return Refusal(bucket.closed_s(now), bucket.used(now))


@dataclass(slots=True)
class _Account:
    """What is held of one quota of one tenant.

    Attributes:
        free: units of a rate that are not spent, or slots that are lent and not used; below 0: used beside what is
            lent.
        used: slots in use.
        reserved: units of a rate that are taken and not used yet.
        asked_at: when the question was asked that is not answered yet; None for none.
        opens_at: until then the lender has nothing.
        keeps_from: until then, what is free is not kept for later.
    """

    limit: Limit
    used_at: float
    free: float = 0.0
    used: int = 0
    reserved: float = 0.0
    asked_at: float | None = None
    opens_at: float = 0.0
    keeps_from: float = 0.0
    waiting: deque[Waiting] = field(default_factory=deque)


class Borrower:
    """What one of several front ends holds. `said` is to be sent to the lender whenever there is anything in it.

    Args:
        number, of: of the part that counts while the lender is silent.
    """

    def __init__(self, number: int, of: int) -> None:
        self._number, self._of = number, of
        self._part: Part | None = None
        self._accounts: dict[Key, _Account] = {}
        self._unsaid: dict[Key, Ask] = {}
        self._numbers = itertools.count(1)

    @property
    def has_said(self) -> bool:
        return bool(self._unsaid)

    @property
    def is_idle(self) -> bool:
        """Whether `tidy` has nothing to look at."""
        return not self._accounts

    @property
    def is_alone(self) -> bool:
        """Whether the lender does not answer."""
        return self._part is not None

    def said(self) -> list[Ask]:
        """What is to be said to the lender now."""
        asks, self._unsaid = list(self._unsaid.values()), {}
        return asks

    def take(self, key: Key, limit: Limit, units: float, now: float, waiting: Waiting) -> Refusal | Waiting | None:
        if limit == 0 or (isinstance(limit, Flow) and limit.rate == 0):
            return _NEVER
        account = self._account(key, limit, now)
        account.used_at = now
        if not account.waiting and _takes(account, units):
            self._ask_ahead(key, account, now)
            return None
        if self._part is not None:
            return self._of_part(self._part, key, account, units, now)
        if now < account.opens_at:
            return _closed(account, now)
        waiting.units = units
        account.waiting.append(waiting)
        if account.asked_at is None:
            self._ask(key, account, now)
        return waiting

    def look(self, key: Key, limit: Limit, now: float) -> Refusal | None:
        if not isinstance(limit, Flow):
            return None
        if limit.rate == 0:
            return _NEVER
        account = self._account(key, limit, now)
        account.used_at = now
        self._ask_ahead(key, account, now)
        return None if account.free > 0 or now >= account.opens_at else _closed(account, now)

    def give(self, key: Key, units: float, now: float) -> None:
        if (account := self._accounts.get(key)) is None:
            return
        account.free += units
        if isinstance(account.limit, int):
            account.used -= 1
            account.used_at = now
        self._serve(account, now)
        if isinstance(account.limit, Flow):
            # More than a lease came back: the others need not wait until this front end is idle.
            if account.free > 2 * _lease(account.limit):
                self._return(key, account, account.free - _lease(account.limit))
        elif now < account.keeps_from and account.free > 0:
            self._return(key, account, account.free)

    def reserve(self, key: Key, units: float) -> None:
        if (account := self._accounts.get(key)) is not None:
            account.reserved += units

    def settle(self, key: Key, units: float, unused: float, now: float) -> None:
        if (account := self._accounts.get(key)) is None:
            return
        account.reserved -= units
        # What is not held any more is worth a word: it does not come back if this process ends.
        self._say(key, account)
        self.give(key, unused, now)

    def withdraw(self, key: Key, waiting: Waiting) -> None:
        account = self._accounts.get(key)
        if account is not None and waiting in account.waiting:
            account.waiting.remove(waiting)

    def lent(self, loans: Iterable[Loan], now: float) -> None:
        """The lender has spoken."""
        self._part = None
        for loan in loans:
            # One whose question is open is not forgotten; without one, nothing is called back from it.
            if (account := self._accounts.get(loan.key)) is not None:
                self._lent(loan, account, now)

    def tidy(self, now: float) -> None:
        """To be called now and then: give back what nobody uses, and see whether the lender is silent."""
        for key, account in list(self._accounts.items()):
            if account.asked_at is not None and now - account.asked_at >= LENDER_SILENCE_S:
                self._part = part = self._part or Part(self._number, self._of)
                while account.waiting:
                    waiting = account.waiting.popleft()
                    waiting.settle(self._of_part(part, key, account, waiting.units, now))
            if account.free > 0 and now - account.used_at >= LEASE_S and not account.waiting:
                self._return(key, account, account.free)
            is_at_rest = not (account.free or account.used or account.reserved or account.waiting)
            if is_at_rest and account.asked_at is None and now >= account.opens_at:
                del self._accounts[key]

    def _lent(self, loan: Loan, account: _Account, now: float) -> None:
        key = loan.key
        account.free += loan.lent
        if loan.recall:
            account.keeps_from = now + RECALL_S
        if loan.number:
            account.asked_at, account.opens_at = None, loan.opens_at
        self._serve(account, now)
        if loan.number and account.waiting:
            if now < account.opens_at:
                while account.waiting:
                    account.waiting.popleft().settle(_closed(account, now))
            else:
                self._ask(key, account, now)
        if now < account.keeps_from and account.free > 0:
            self._return(key, account, account.free)
        if loan.recall:
            self._say(key, account, recalled=loan.recall)

    def _account(self, key: Key, limit: Limit, now: float) -> _Account:
        if (account := self._accounts.get(key)) is None:
            account = self._accounts[key] = _Account(limit, now)
        elif account.limit != limit:
            # What was lent, or refused, under another limit says nothing about this one.
            account.limit, account.opens_at = limit, 0.0
            if account.free > 0:
                self._return(key, account, account.free)
        return account

    def _serve(self, account: _Account, now: float) -> None:
        while account.waiting and _takes(account, account.waiting[0].units):
            account.used_at = now
            account.waiting.popleft().settle(None)

    def _of_part(self, part: Part, key: Key, account: _Account, units: float, now: float) -> Refusal | None:
        if isinstance(account.limit, Flow):
            return part.take(key, account.limit, units, now)
        if account.used >= part.slots(account.limit):
            return Refusal(0.0)
        account.used += 1
        account.free -= 1
        return None

    def _ask_ahead(self, key: Key, account: _Account, now: float) -> None:
        """Ask for more before anybody has to wait for it."""
        if account.asked_at is None and now >= account.opens_at and _is_low(account):
            self._ask(key, account, now)

    def _ask(self, key: Key, account: _Account, now: float) -> None:
        units = [waiting.units for waiting in account.waiting]
        if isinstance(account.limit, Flow):
            # Less than one unit is of no use to anybody.
            lease = each if (each := _lease(account.limit)) >= 1.0 else 0.0
            first = units[0] - max(account.free, 0.0) if units else 0.0
            more = sum(units[1:]) + (lease if units else lease - account.free)
        else:
            first, more = len(units) - min(account.free, 0.0), 0.0
        account.asked_at = now
        self._say(key, account, number=next(self._numbers), first=first, more=more)

    def _return(self, key: Key, account: _Account, units: float) -> None:
        account.free -= units
        self._say(key, account, returned=units)

    def _say(
        self,
        key: Key,
        account: _Account,
        *,
        number: int = 0,
        first: float = 0.0,
        more: float = 0.0,
        returned: float = 0.0,
        recalled: int = 0,
    ) -> None:
        ask = Ask(
            tenant=key[0],
            quota=key[1],
            limit=account.limit,
            number=number,
            first=first,
            more=more,
            returned=returned,
            recalled=recalled,
            held=max(account.free, 0.0) + account.reserved if isinstance(account.limit, Flow) else 0.0,
        )
        earlier = self._unsaid.get(key)
        self._unsaid[key] = ask if earlier is None else ask.over(earlier)


def _takes(account: _Account, units: float) -> bool:
    """Take what is free, if it is enough."""
    if account.free < units:
        return False
    account.free -= units
    if isinstance(account.limit, int):
        account.used += 1
    return True


def _lease(limit: Flow) -> float:
    return limit.rate * LEASE_S


def _is_low(account: _Account) -> bool:
    """Whether less than half a lease is left, of one that is worth asking for."""
    return isinstance(account.limit, Flow) and 1.0 <= _lease(account.limit) > 2 * account.free


def _closed(account: _Account, now: float) -> Refusal:
    """What is told until the lender has something again."""
    after_s = max(account.opens_at - now, 0.0)
    if not isinstance(account.limit, Flow):
        return Refusal(after_s)
    return Refusal(after_s, 1.0 + after_s * account.limit.rate / account.limit.burst)
