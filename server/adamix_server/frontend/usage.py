"""What the callers of one front end use: counted in passing, and told to the supervisor every second.

Two look-ups and a sum a call: nobody waits for the disk. What has not been told yet is lost with this process, and
nothing else. Knows names and numbers; neither calls nor the catalog.
"""

import threading
import time

from adamix_server.access.principal import Principal
from adamix_server.access.sums import Sums
from adamix_server.limits.audit import MAX_COUNTED_TENANTS


class _Tenant:
    __slots__ = ("calls", "generated_tokens", "input_tokens", "rejected")

    def __init__(self) -> None:
        self.calls = self.input_tokens = self.generated_tokens = 0
        self.rejected: dict[str, int] = {}


class Meter:
    """Counts by tenant. Thread-safe, since another thread takes what was counted.

    Of more than `MAX_COUNTED_TENANTS` tenants between two drains, those that came last are not counted: a token may
    name any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tenants: dict[str, _Tenant] = {}
        self._keys: set[str] = set()

    def called(self, principal: Principal) -> None:
        """One call of somebody who was let in."""
        with self._lock:
            self._of(principal.tenant).calls += 1
            if principal.key_id:
                self._keys.add(principal.key_id)

    def computed(self, tenant: str, input_tokens: int, generated_tokens: int = 0) -> None:
        """Tokens of inputs that were answered, and of answers."""
        with self._lock:
            counts = self._of(tenant)
            counts.input_tokens += input_tokens
            counts.generated_tokens += generated_tokens

    def rejected(self, tenant: str, reason: str, number: int = 1) -> None:
        """Inputs or calls that were refused."""
        with self._lock:
            rejected = self._of(tenant).rejected
            rejected[reason] = rejected.get(reason, 0) + number

    def drain(self) -> tuple[list[Sums], dict[str, str]]:
        """What was counted since the last time, and the keys that were used, with the day (`YYYY-MM-DD`, UTC)."""
        with self._lock:
            tenants, self._tenants = self._tenants, {}
            keys, self._keys = self._keys, set()
        sums = [
            Sums(
                tenant=tenant,
                calls=counts.calls,
                input_tokens=counts.input_tokens,
                generated_tokens=counts.generated_tokens,
                rejected=counts.rejected,
            )
            for tenant, counts in tenants.items()
            if tenant
        ]
        return sums, dict.fromkeys(keys, time.strftime("%Y-%m-%d", time.gmtime()))

    def _of(self, tenant: str) -> _Tenant:
        counts = self._tenants.get(tenant)
        if counts is None:
            counts = _Tenant()
            # Of nobody known, and of too many, it is counted where nobody looks.
            if len(self._tenants) < MAX_COUNTED_TENANTS:
                self._tenants[tenant] = counts
        return counts
