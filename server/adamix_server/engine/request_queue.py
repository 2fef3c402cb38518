"""The requests of one engine, and where each of them waits. Pure: no torch, no clock, no channel.

Requests wait for their adapter in `parked`, where they count as their tenant's but give it no turn; from there they
come, in the order of arrival, to the fair queue of their tenant's class (`fair.py`). Knows no batches: what runs next
is said by `scheduler.py` for encoders, and by `decoder_scheduler.py`.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import attrgetter

from adamix.errors import InternalError
from adamix_server.access.quotas import Shares
from adamix_server.channel.channel import Peer
from adamix_server.channel.engine_frames import QueueState
from adamix_server.engine.fair import FairQueue
from adamix_server.engine.request import Request, Status
from adamix_server.engine.service_classes import ServiceClasses
from adamix_server.engine.tenants import Tenants

# Deadlines of requests that are gone are cleared away once they outnumber the queue by this many.
_SPARE_DEADLINES = 1024
# Beside somebody with more than so many full batches queued, others wait for short ones: of so much work.
SHORT_S = 0.04
HOG_BATCHES = 2
# A batch is never shorter for that than one usual text: what a batch takes beside its tokens would be all it takes.
_LEAST_SHORT_TOKENS = 64
# With more tenants than these in its queues, a front end is told only of those whose number has just changed.
_MOST_TENANTS_TOLD = 64
# A generated token counts as so many of a prompt.
GENERATED_COST = 2.0

_NUMBER = attrgetter("number")


class RequestQueue:
    """The queue of one engine.

    Args:
        max_batch_tokens: token budget of a batch. A longer request runs alone.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        # By what a `Cancel` frame calls them, oldest first.
        self._queue: OrderedDict[tuple[Peer, int], Request] = OrderedDict()
        # By adapter, oldest first: those for which it had no slot when they came and was not ready when last asked for.
        # It is asked for before every batch; of others it is found out when they are looked at.
        self._parked: dict[str, dict[Request, None]] = {}
        self._classes = ServiceClasses()
        self._tenants = Tenants(HOG_BATCHES * max_batch_tokens)
        # Soonest first, and of equal ones the oldest. Requests that left the queue stay here until they are soonest.
        self._deadlines: list[tuple[float, int, Request]] = []
        self._arrivals = itertools.count()

    @property
    def queued_tokens(self) -> int:
        """The tokens of the queued requests."""
        return self._tenants.queued_tokens

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        """The queued requests, oldest first."""
        return iter(self._queue.values())

    def can_run(self, is_ready: Callable[[str], bool]) -> bool:
        """Whether there is a next batch."""
        classes = self._classes
        return classes.interactive.is_active or classes.batch.is_active or any(map(is_ready, self._parked))

    def find(self, peer: Peer, request_id: int) -> Request | None:
        """The queued request that a front end calls so; None if there is none, or it runs already."""
        return self._queue.get((peer, request_id))

    def of(self, digest: str) -> list[Request]:
        """The queued requests of one adapter, oldest first."""
        found = [*self._parked.get(digest, ()), *self._classes.interactive.of(digest), *self._classes.batch.of(digest)]
        return sorted(found, key=_NUMBER)

    def tenants_of(self, digest: str) -> Collection[str]:
        """Those that have queued requests of an adapter."""
        if (parked := self._parked.get(digest)) is not None:
            return {request.row.tenant for request in parked}
        interactive, batch = self._classes.interactive.tenants_of(digest), self._classes.batch.tenants_of(digest)
        return {*interactive, *batch} if interactive and batch else interactive or batch

    def weight_of(self, tenant: str) -> float:
        return float(self._tenants.shares(tenant).weight)

    @property
    def is_shared(self) -> bool:
        """Whether several tenants have something queued, or asked lately."""
        return len(self._tenants) > 1

    def tokens_by_tenant(self) -> dict[str, int]:
        """The tokens of the queued requests of each tenant that has any."""
        return {tenant.name: tenant.tokens for tenant in self._tenants.queued()}

    def state(self, peer: Peer, tokens_per_s: float, changed: Iterable[str] = ()) -> QueueState:
        """What is queued, for one front end.

        Args:
            tokens_per_s: measured.
            changed: tenants some of whose requests this front end has back now.
        """
        tenants = self._tenants
        return QueueState(
            tokens_per_s=tokens_per_s,
            queued_tokens=tenants.queued_tokens,
            batch_tokens=tenants.batch_tokens,
            active_weight=float(tenants.queued_weight),
            tenants=tenants.tokens_for(peer, _MOST_TENANTS_TOLD, changed),
        )

    def set_shares(self, shares: Mapping[str, Shares]) -> None:
        """Weights and classes of tenants from now on. Who is not named is of weight 1 and interactive."""
        for counters in (self._classes.interactive.counters, self._classes.batch.counters):
            counters.set_weights({tenant: float(each.weight) for tenant, each in shares.items()})
        for tenant in self._tenants.change(shares):
            here, there = self._fair(tenant.name), self._fair(tenant.name, other=True)
            for request in there.of_tenant(tenant.name):
                there.remove(request)
                here.add(request)

    def charge_generated(self, tenant: str, num_tokens: int) -> None:
        """Tokens that were generated for a tenant, beside what its requests were charged when they were taken."""
        self._fair(tenant).counters.charge(tenant, GENERATED_COST * num_tokens)

    def add(self, request: Request) -> None:
        """Queue a request. Raises KeyError if its front end has queued another one of that id."""
        row = request.row
        key = request.peer, row.id
        if key in self._queue:
            raise KeyError(f"request {row.id} is queued already")
        self._queue[key] = request
        request.number = next(self._arrivals)
        is_batch = self._tenants.came(request).is_batch
        classes, digest = self._classes, row.digest
        if (parked := self._parked.get(digest)) is not None:
            parked[request] = None
        elif not digest or request.hold.has_slot or digest in classes.interactive or digest in classes.batch:
            (classes.batch if is_batch else classes.interactive).add(request)
        else:
            self._parked[digest] = {request: None}
        if len(self._deadlines) > 2 * len(self._queue) + _SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if self._has(entry[-1])]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (row.deadline, request.number, request))

    def end(self, request: Request) -> None:
        """A request has its outcome, whether it runs or is still queued. Raises InternalError the second time."""
        if request.status is Status.ENDED:
            raise InternalError(f"request {request.row.id} ended twice")
        if request.status is Status.QUEUED:
            self._take(request)
        request.status = Status.ENDED

    def expired(self, now: float) -> list[Request]:
        """The requests here whose deadline has passed. Each is told once, and is to be ended."""
        expired: list[Request] = []
        while self._deadlines:
            deadline, _, request = self._deadlines[0]
            if self._has(request):
                if deadline > now:
                    break
                expired.append(request)
            heapq.heappop(self._deadlines)
        return expired

    def _has(self, request: Request) -> bool:
        """Whether it is still to be found here."""
        return self._queue.get((request.peer, request.row.id)) is request

    def _budget(self, tokens_per_s: float) -> int:
        """How many tokens the next batch may have."""
        if not self._tenants.is_light_beside_hog(self.max_batch_tokens, self._classes.interactive.tokens_of):
            return self.max_batch_tokens
        return min(self.max_batch_tokens, max(int(SHORT_S * tokens_per_s), _LEAST_SHORT_TOKENS))

    def _fair(self, tenant: str, *, other: bool = False) -> FairQueue:
        """The fair queue of a tenant's class, or the other one."""
        is_batch = self._tenants.shares(tenant).service_class == "batch"
        return self._classes.batch if is_batch is not other else self._classes.interactive

    def _wake(self, is_ready: Callable[[str], bool]) -> None:
        """Queue those whose adapter has become ready."""
        ready = [digest for digest in self._parked if is_ready(digest)]
        if not ready:
            return
        woken = [request for digest in ready for request in self._parked.pop(digest)]
        if len(ready) > 1:
            woken.sort(key=_NUMBER)
        for request in woken:
            self._fair(request.row.tenant).add(request)
        self._sort()

    def _sort(self) -> None:
        self._classes.interactive.sort()
        self._classes.batch.sort()

    def _park(self, digest: str) -> None:
        """Those of an adapter that is no longer ready wait for it."""
        requests = self.of(digest)
        for request in requests:
            if (fair := self._fair(request.row.tenant)).has(request):
                fair.remove(request)
        self._parked[digest] = dict.fromkeys(requests)

    def _take(self, request: Request) -> None:
        """Out of the queue, without having run."""
        del self._queue[request.peer, request.row.id]
        tenant, digest = self._tenants.went(request), request.row.digest
        if (parked := self._parked.get(digest)) is None:
            (self._classes.batch if tenant.is_batch else self._classes.interactive).remove(request)
        else:
            del parked[request]
            if not parked:
                del self._parked[digest]
