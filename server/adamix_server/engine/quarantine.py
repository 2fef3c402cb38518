"""Which adapters are refused to whom, because what they computed failed again and again. Pure: no clock, no device.

A request fails by its adapter if computing it alone raises, or gives values that are not finite, while the bare
backbone answers the same tokens: what the whole engine suffers from is held against nobody. Three such failures in ten
minutes, and the (tenant, adapter) is quarantined: other tenants with the same bytes, whose texts may be other ones, go
on. It lasts until it is lifted, or as long as this engine. Knows neither who is told nor how.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adamix.errors import AdamixError, Code, FailedPrecondition
from adamix_server.engine.request import Request
from adamix_server.limits.adapters import FAILURES_TO_QUARANTINE, MAX_QUARANTINED, QUARANTINE_WINDOW_S
from adamix_server.names import adapter_quarantined

# (tenant, digest).
Key = tuple[str, str]

# Of a result that is not finite; as whoever reads it says.
_NOT_FINITE = "NON_FINITE_OUTPUT"


class Quarantine:
    """The quarantined adapters of one engine, and the failures of others."""

    def __init__(self) -> None:
        # With the reason of the last failure. Both: the oldest first.
        self._quarantined: OrderedDict[Key, str] = OrderedDict()
        self._failures: OrderedDict[Key, deque[float]] = OrderedDict()

    @property
    def reasons(self) -> Mapping[Key, str]:
        """What is quarantined, and the reason of the failure that made it so."""
        return self._quarantined

    def error(self, tenant: str, digest: str) -> FailedPrecondition | None:
        """What the requests of a tenant for an adapter are told, if it is quarantined."""
        return adapter_quarantined() if (tenant, digest) in self._quarantined else None

    def failed(self, tenant: str, digest: str, reason: str, now: float) -> bool:
        """Note one failure, at a time in seconds on any clock that goes on. Whether it is quarantined since."""
        key = tenant, digest
        if key in self._quarantined:
            return False
        times = self._failures.setdefault(key, deque())
        self._failures.move_to_end(key)
        times.append(now)
        while times[0] <= now - QUARANTINE_WINDOW_S:
            times.popleft()
        if len(times) < FAILURES_TO_QUARANTINE:
            _bound(self._failures)
            return False
        del self._failures[key]
        self._quarantined[key] = reason
        _bound(self._quarantined)
        return True

    def lift(self, tenant: str, digest: str) -> bool:
        """Forget what is held against an adapter; whether it was quarantined."""
        self._failures.pop((tenant, digest), None)
        return self._quarantined.pop((tenant, digest), None) is not None

    def judge(
        self,
        requests: Sequence[Request],
        outcomes: Sequence[NDArray[np.float32] | AdamixError],
        is_well_without: Callable[[Request], bool],
        now: float,
    ) -> list[Key]:
        """Note the failures of one batch.

        Args:
            outcomes: what computing each request gave.
            is_well_without: whether a request is answered where no adapter is applied. Asked a few times at most.

        Returns:
            what is quarantined since.
        """
        arrays = [outcome for outcome in outcomes if not isinstance(outcome, AdamixError)]
        if len(arrays) == len(outcomes) and np.isfinite(np.concatenate(arrays)).all():
            return []
        newly: list[Key] = []
        asked = 0
        for request, outcome in zip(requests, outcomes, strict=True):
            key = request.row.tenant, request.row.digest
            reason = _fault(outcome)
            if not reason or key in self._quarantined or asked == FAILURES_TO_QUARANTINE:
                continue
            asked += 1
            if is_well_without(request) and self.failed(*key, reason, now):
                newly.append(key)
        return newly


def _fault(outcome: NDArray[np.float32] | AdamixError) -> str:
    """The reason of an outcome that may be its adapter's fault; empty of any other."""
    if isinstance(outcome, AdamixError):
        return outcome.reason if outcome.code is Code.INTERNAL or outcome.reason == _NOT_FINITE else ""
    return "" if np.isfinite(outcome).all() else _NOT_FINITE


def _bound(of: OrderedDict[Key, str] | OrderedDict[Key, deque[float]]) -> None:
    if len(of) > MAX_QUARANTINED:
        of.popitem(last=False)
