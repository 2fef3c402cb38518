"""What is written down of calls that have ended: all of the control plane, and everyone who was turned away.

Entries wait here, a bounded number, until they are told to the supervisor, whose writer brings them to the audit: no
call waits for that. Of one source so many are written down each for itself; the others are counted, and told as one
entry ("and 1,234 more"). A change of the catalog has written its own entry, in its own transaction. Knows calls;
neither grpc nor the catalog.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from adamix_server.access.entries import Entry
from adamix_server.frontend.boundary.call import Call
from adamix_server.limits.audit import MAX_AUDIT_BURST, MAX_AUDIT_BURST_OF_TENANT, MAX_WAITING_ENTRIES
from adamix_server.names import is_name

# With a right to nothing, one is told apart by its address alone, and there may be many of these.
_REFUSALS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
# How many seconds until a source may have another entry of its own.
_ENTRY_S = 2.0
_TENANT_TIMES = MAX_AUDIT_BURST_OF_TENANT // MAX_AUDIT_BURST
# How often those that were only counted are told.
MORE_S = 10.0
_MAX_SOURCES = 8_192
# All those whom nobody knows, together.
_ANYBODY = ""
_TENANTS = "tenants/"


@dataclass(slots=True)
class _Budget:
    """Of entries that a source may still have: full again after a while. A tenant has `times` what one caller has."""

    left: float
    since: float
    times: int

    def at(self, now: float) -> float:
        """What is left by then."""
        return min(self.times * MAX_AUDIT_BURST, self.left + self.times * (now - self.since) / _ENTRY_S)

    def is_full(self, now: float) -> bool:
        return self.at(now) >= self.times * MAX_AUDIT_BURST


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is alike in calls that are counted as one entry."""

    tenant: str
    principal: str
    host: str
    method: str
    code: str
    reason: str


class Witness:
    """Sees calls end. Thread-safe, since another thread takes what was seen.

    Args:
        clock: seconds, such as CLOCK_MONOTONIC's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._budgets: dict[str, _Budget] = {}
        self._more: dict[_Kind, int] = {}
        self._told_at = clock()

    @staticmethod
    def is_turned_away(code: str) -> bool:
        """Whether a call that ended so is written down, whatever was called."""
        return code in _REFUSALS

    def saw(self, call: Call, method: str, code: str, reason: str = "") -> None:
        """A call has ended.

        Args:
            method: what was called, by a name that callers cannot invent.
        """
        if code == "OK" and call.actor.entries:
            return
        principal, own, peer = call.principal.name, call.tenant, call.origin.connection
        host = call.origin.address or peer.rpartition(":")[0]
        tenant = _tenant_of(call)
        with self._lock:
            if len(self._entries) < MAX_WAITING_ENTRIES and self._may_have(principal, own, host):
                self._entries.append(
                    Entry.of(
                        time.time_ns() // 1_000,
                        tenant=tenant,
                        principal=principal,
                        peer=peer,
                        method=method,
                        resource=call.resource,
                        digest=call.digest,
                        code=code,
                        reason=reason,
                        detail=call.detail,
                    )
                )
                return
            kind = _Kind(tenant, principal, host, method, code, reason)
            if kind not in self._more and len(self._more) >= MAX_WAITING_ENTRIES:
                # Of too many kinds even the kinds are not told apart.
                kind = _Kind("", "", "", "", code, "")
            self._more[kind] = self._more.get(kind, 0) + 1

    def drain(self, *, is_last: bool = False) -> list[Entry]:
        """What is to be written down since the last time; with those that were only counted, if their time has come."""
        now = self._clock()
        with self._lock:
            entries, self._entries = self._entries, []
            more: dict[_Kind, int] = {}
            if is_last or now - self._told_at >= MORE_S:
                self._told_at = now
                more, self._more = self._more, {}
        time_us = time.time_ns() // 1_000
        for kind, number in more.items():
            entries.append(
                Entry.of(
                    time_us,
                    tenant=kind.tenant,
                    principal=kind.principal,
                    peer=kind.host,
                    method=kind.method,
                    code=kind.code,
                    reason=kind.reason,
                    detail=f"and {number:,} more",
                )
            )
        return entries

    def _may_have(self, principal: str, tenant: str, host: str) -> bool:
        """Whether a source has an entry left, which it then has no more. Of those nobody knows, all together, too; and
        all callers of a tenant, which may make itself any number of keys.
        """
        if principal:
            return self._take(f"@{principal}") and self._take(f"#{tenant}", _TENANT_TIMES)
        return self._take(_ANYBODY) and self._take(host)

    def _take(self, source: str, times: int = 1) -> bool:
        now = self._clock()
        budget = self._budgets.get(source)
        if budget is None:
            if len(self._budgets) >= _MAX_SOURCES:
                self._forget(now)
            if len(self._budgets) >= _MAX_SOURCES:
                return False
            budget = self._budgets[source] = _Budget(times * MAX_AUDIT_BURST, now, times)
        budget.left, budget.since = budget.at(now), now
        if budget.left < 1:
            return False
        budget.left -= 1
        return True

    def _forget(self, now: float) -> None:
        """Those who could have as many as somebody new."""
        for source in [source for source, budget in self._budgets.items() if budget.is_full(now)]:
            del self._budgets[source]


def _tenant_of(call: Call) -> str:
    """Whose matter a call is: its caller's, or that of the tenant for whom an operator acts."""
    if call.principal.is_admin and call.resource.startswith(_TENANTS):
        tenant = call.resource.removeprefix(_TENANTS).partition("/")[0]
        if is_name(tenant):
            return tenant
    return call.tenant
