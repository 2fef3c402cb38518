"""Turns of control calls: what keeps a caller of the control plane from taking the data plane's time.

Both planes share one interpreter, and a list of a thousand rows costs it as much as dozens of predictions. So only a
few control calls are at work at once, and a party has at most half of those places; the others wait, the oldest
first. While data calls run, all control calls together get a fortieth of a core: who has had more than a moment
of it waits until its share has made up for that. Among those that wait, the party that has had the least comes
first, so that one that calls without pause shuts nobody out. Without data calls nobody waits for that.

Registrations cost a hundred times as much as other calls, most of it in a process of their own. So they have a share of
their own, and wait for it before their bytes are read: neither does one hold up a look at a task, nor does one that
waits keep a place from anybody.

A party is a tenant, however many connections it has; where nobody is asked who they are, each connection is one.

Knows neither gRPC nor what the calls do; what they have cost stands in `Call.work_s`.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from adamix.errors import Overloaded
from adamix_server import retry
from adamix_server.frontend.boundary import call as calls
from adamix_server.limits.control import MAX_CONTROL_CALLS, MAX_WAITING_CONTROL_CALLS
from adamix_server.telemetry.metrics import Recorder

# Of one core, beside data calls: of all control calls, and besides of registrations, until they are to be committed.
SHARE = 0.025
REGISTRATION_SHARE = 0.08
# CPU seconds that a party, and all of them, may be ahead of their share.
MAX_AHEAD_S = 0.1
MAX_ALL_AHEAD_S = 0.3
# What any call costs besides the work that is measured: receiving, checking, answering, counting.
CALL_S = 0.001
# While somebody waits for its share: so often is it looked whether data calls still run.
_LOOK_S = 0.1


class Accounts:
    """How far ahead of its share everybody is, in CPU seconds. Pure: the time comes from outside.

    Args:
        share: of one core, for all together.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._ahead_s: dict[str, float] = {}
        self._settled_at = 0.0

    def settle(self, now: float, *, is_shared: bool) -> None:
        """Grant the share of the time since the last call, in equal parts; all there is while nobody else wants any."""
        granted_s = (now - self._settled_at) * self.share if is_shared else math.inf
        self._settled_at = now
        for count, (who, ahead_s) in enumerate(sorted(self._ahead_s.items(), key=lambda item: item[1])):
            part_s = min(ahead_s, granted_s / (len(self._ahead_s) - count))
            granted_s -= part_s
            self._ahead_s[who] = ahead_s - part_s
        self._ahead_s = {who: ahead_s for who, ahead_s in self._ahead_s.items() if ahead_s > 0}

    def spend(self, who: str, seconds: float) -> None:
        """Charge `who`; what was charged too much, negative, ends at nothing."""
        self._ahead_s[who] = max(self._ahead_s.get(who, 0.0) + seconds, 0.0)

    def ahead_s(self, who: str) -> float:
        return self._ahead_s.get(who, 0.0)

    def wait_s(self, who: str) -> float:
        """Seconds until `who` may begin something, at the soonest; 0 for now."""
        all_s = sum(self._ahead_s.values())
        return max(all_s - MAX_ALL_AHEAD_S, self.ahead_s(who) - MAX_AHEAD_S, 0.0) / self.share


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A call that waits; the future ends when its turn has come."""

    party: str
    connection: str
    turn: asyncio.Future[None]


class Turns:
    """The places of one kind of work. Belongs to one event loop.

    Args:
        accounts: of all kinds of work together.
        is_shared: whether data calls run now.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        accounts: Accounts,
        is_shared: Callable[[], bool],
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = accounts
        self._is_shared = is_shared
        self._recorder = recorder
        self._clock = clock
        self._at_work: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        # Smoothed: how long a call keeps its place, and what it costs.
        self._turn_s = self._cost_s = CALL_S

    @asynccontextmanager
    async def turn(self, *, is_bounded: bool = False) -> AsyncIterator[None]:
        """A place for the length of the block, and the current call's work in it charged to its party.

        Args:
            is_bounded: however many wait already. For callers of which there are few anyhow.

        Raises:
            Overloaded: too many wait (`TOO_MANY_CONTROL_CALLS`).
            Unauthenticated: meanwhile its caller is known no more.
        """
        call = calls.current()
        party = _party_of(call)
        await self._enter(party, call.origin.connection, is_bounded)
        began, before_s = self._clock(), call.work_s
        try:
            # It may have waited for long.
            call.check()
            yield
        finally:
            self._at_work[party] -= 1
            self._turn_s += 0.1 * (self._clock() - began - self._turn_s)
            self.charge(party, call.work_s - before_s + CALL_S)
            self._look()

    @asynccontextmanager
    async def prepaid(self, expected_s: float) -> AsyncIterator[None]:
        """Wait for a share of the block's work, without a place for its length and however many wait already.

        Args:
            expected_s: CPU seconds that it will probably cost. They are charged before it begins, so that not all that
                wait begin at once, and corrected by what it did cost.
        """
        call = calls.current()
        party = _party_of(call)
        await self._enter(party, call.origin.connection, is_bounded=True)
        self._at_work[party] -= 1
        self._accounts.spend(party, expected_s)
        before_s = call.work_s
        self._look()
        try:
            call.check()
            yield
        finally:
            self._accounts.spend(party, call.work_s - before_s + CALL_S - expected_s)
            self._look()

    def charge(self, party: str, seconds: float) -> None:
        """What a party has had outside of a turn, or in one."""
        self._cost_s += 0.1 * (seconds - self._cost_s)
        self._accounts.spend(party, seconds)

    async def _enter(self, party: str, connection: str, is_bounded: bool) -> None:
        waiting = _Waiting(party, connection, asyncio.get_running_loop().create_future())
        if not is_bounded:
            self._check_room(party, connection)
        self._waiting.append(waiting)
        self._look()
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.cancelled():
                self._waiting.remove(waiting)
            else:  # its turn came at the same moment
                self._at_work[party] -= 1
                self._look()
            raise

    def _check_room(self, party: str, connection: str) -> None:
        """Raises Overloaded."""
        free = MAX_WAITING_CONTROL_CALLS - len(self._waiting)
        of_party = sum(waiting.party == party for waiting in self._waiting)
        of_connection = sum(waiting.connection == connection for waiting in self._waiting)
        if party == connection:
            has_room = free > 0 and of_connection < MAX_WAITING_CONTROL_CALLS // 2
        else:
            # Alone a tenant has half of the room, n of them 1/(n + 1) each: whoever is new finds some.
            has_room = of_party < free and of_connection < MAX_WAITING_CONTROL_CALLS // 4
        if has_room:
            return
        self._recorder.inc("adamix_rejected_total", "TOO_MANY_CONTROL_CALLS")
        who = "connection" if party == connection else "tenant"
        raise Overloaded(
            f"{of_party} calls of this {who} and {len(self._waiting)} in all wait for their turn already",
            reason="TOO_MANY_CONTROL_CALLS",
            retry_after_s=self._retry_s(party),
        )

    def _retry_s(self, party: str) -> float:
        """Until those that wait have had their turn, one after the other or as the share allows."""
        count = len(self._waiting)
        paced_s = (
            self._accounts.wait_s(party) + count * self._cost_s / self._accounts.share if self._is_shared() else 0.0
        )
        return retry.within(max(count * self._turn_s / MAX_CONTROL_CALLS, paced_s))

    def _look(self) -> None:
        """Give places to those whose turn it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._accounts.settle(self._clock(), is_shared=self._is_shared())
        self._at_work = +self._at_work
        while self._waiting and self._at_work.total() < MAX_CONTROL_CALLS:
            # The task of a cancelled one has yet to take it away.
            there = (each for each in self._waiting if not each.turn.done())
            may = [each for each in there if self._at_work[each.party] < MAX_CONTROL_CALLS // 2]
            if not may:
                return
            # Of equals the first: the one that has waited longest.
            first = min(may, key=lambda each: self._accounts.ahead_s(each.party))
            if (wait_s := self._accounts.wait_s(first.party)) > 0:
                self._timer = asyncio.get_running_loop().call_later(min(wait_s, _LOOK_S), self._look)
                return
            self._waiting.remove(first)
            self._at_work[first.party] += 1
            first.turn.set_result(None)


def _party_of(call: calls.Call) -> str:
    """Whose share a call takes."""
    return f"tenants/{call.known_tenant}" if call.known_tenant else call.origin.connection


class Shares:
    """The places of the control plane of one front end.

    Attributes:
        calls: that read the catalog or change it.
        orders: to the engine, which may take it long; calls do not wait for them.
        registrations: of which `prepaid` is used, until they order something.
    """

    def __init__(self, is_shared: Callable[[], bool], recorder: Recorder) -> None:
        accounts = Accounts(SHARE)
        self.calls = Turns(accounts, is_shared, recorder)
        self.orders = Turns(accounts, is_shared, recorder)
        self.registrations = Turns(Accounts(REGISTRATION_SHARE), is_shared, recorder)
