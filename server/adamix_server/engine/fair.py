"""The requests of one service class that could run now, and which of them a batch takes. Pure: no clock, no torch.

A batch is filled in three parts. Up to half of its tokens go by turn (`token_counters.py`): to the tenant with the
smallest counter, its oldest request first. Then those have precedence whose adapter the batch needs already, because
fewer adapters are worth more than any kernel tuning: by counter again, and only while a tenant stays within its share
of one batch ahead of the smallest. What is left goes by turn. All parts are charged.

The order is the same whenever the calls were: tenants by (counter, active for longer), requests of a tenant by
arrival; in the second part by (adapter in the order in which the batch came to it, arrival).

A request too long for what is left of a batch does not end its tenant's turn; shorter ones behind it are looked at. One
that was passed over so in several batches lets none of its tenant pass any more. The tenant's counter then stays until
it is the smallest, and the one that begins a batch finds it empty.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from adamix_server.engine.request import Request, Status
from adamix_server.engine.token_counters import Counter, TokenCounters, runner_up

# How many requests of a tenant may be too long for the room that is left before the search for a shorter one stops.
MISSES = 32
# The same of all tenants together: a batch that has room for so few is full.
ALL_MISSES = 2 * MISSES
# In how many batches a tenant's oldest request may be passed over by shorter ones.
MOST_PASSED = 16

_QUEUED, _RUNNING = Status.QUEUED, Status.RUNNING
# The rest of a tenant whose oldest request keeps the others back.
_NOTHING: Iterator[Request] = iter(())


class Chosen:
    """A batch being filled. What it takes is RUNNING from then on.

    Args:
        is_ready: whether an adapter, by its digest, can be computed with now.

    Attributes:
        digests: the adapters that it needs, in the order in which it came to them.
        lost: adapters of requests that were looked at, and are no longer ready.
    """

    def __init__(self, is_ready: Callable[[str], bool]) -> None:
        self._is_ready = is_ready
        self.requests: list[Request] = []
        self.digests: dict[str, None] = {}
        self.tokens = 0
        self.lost: set[str] = set()

    def can_take(self, digest: str) -> bool:
        """Whether the batch may come to need this adapter."""
        if digest in self.lost:
            return False
        if not self._is_ready(digest):
            self.lost.add(digest)
            return False
        return True


@dataclass(eq=False, slots=True)
class _Ready:
    """A tenant's requests that could run now, oldest first.

    Attributes:
        left: how many of them are not taken by the batch that is being filled. With any, the tenant is active.
        newest: the largest number of any.
        late: the smallest number of those that were added behind newer ones, and are not sorted yet.
    """

    counter: Counter
    requests: OrderedDict[Request, None] = field(default_factory=OrderedDict)
    tokens: int = 0
    left: int = 0
    newest: int = -1
    late: int | None = None


class FairQueue:
    """See the module's docstring. Requests that wait for their adapter are elsewhere: their tenant counts as away."""

    def __init__(self) -> None:
        self.counters = TokenCounters()
        self._tenants: dict[str, _Ready] = {}
        self._by_digest: dict[str, dict[str, OrderedDict[Request, None]]] = {}
        # Those to which older requests than the last were added.
        self._unsorted: list[_Ready] = []
        self.tokens = 0

    def __contains__(self, digest: str) -> bool:
        """Whether requests of this adapter are here."""
        return digest in self._by_digest

    @property
    def is_active(self) -> bool:
        """Whether any request could run now."""
        return self.counters.active_weight > 0

    def tokens_of(self, tenant: str) -> int:
        return 0 if (ready := self._tenants.get(tenant)) is None else ready.tokens

    def of(self, digest: str) -> list[Request]:
        """The requests of one adapter, each tenant's oldest first."""
        return list(chain.from_iterable(self._by_digest.get(digest, {}).values()))

    def tenants_of(self, digest: str) -> Collection[str]:
        """Those that have requests of one adapter."""
        return self._by_digest.get(digest, {}).keys()

    def has(self, request: Request) -> bool:
        return request in self._by_digest.get(request.row.digest, {}).get(request.row.tenant, ())

    def oldest_first(self, tenant: str) -> Iterator[Request]:
        """The requests of a tenant. Nothing may be added or removed while somebody looks through them."""
        return iter(() if (ready := self._tenants.get(tenant)) is None else ready.requests)

    def of_tenant(self, tenant: str) -> list[Request]:
        return [] if (ready := self._tenants.get(tenant)) is None else list(ready.requests)

    def add(self, request: Request) -> None:
        """A request that could run. Call `sort` before the next `fill` if it may be older than others of its tenant."""
        tenant, digest = request.row.tenant, request.row.digest
        if (ready := self._tenants.get(tenant)) is None:
            ready = self._tenants[tenant] = _Ready(self.counters.enter(tenant))
        ready.requests[request] = None
        ready.tokens += request.num_tokens
        ready.left += 1
        if request.number > ready.newest:
            ready.newest = request.number
        elif ready.late is None:
            ready.late = request.number
            self._unsorted.append(ready)
        self.tokens += request.num_tokens
        if (same := self._by_digest.get(digest)) is None:
            same = self._by_digest[digest] = {}
        if (mine := same.get(tenant)) is None:
            mine = same[tenant] = OrderedDict()
        mine[request] = None

    def sort(self) -> None:
        """Every tenant's requests by arrival. Late ones were added by arrival, so the first of them is the oldest."""
        for ready in self._unsorted:
            moved: list[Request] = []
            while ready.requests and (last := next(reversed(ready.requests))).number >= (ready.late or 0):
                del ready.requests[last]
                moved.append(last)
            moved.sort(key=lambda request: request.number)
            ready.requests.update(dict.fromkeys(moved))
            ready.late = None
        self._unsorted.clear()

    def remove(self, request: Request) -> None:
        """One that is not to run from here."""
        ready = self._tenants[request.row.tenant]
        ready.left -= 1
        if not ready.left:
            self.counters.leave(ready.counter)
        self._drop([request])

    def fill(self, chosen: Chosen, limit: int, budget: int) -> None:
        """Take requests until a batch has `limit` tokens; no more than `budget`, unless the first one alone has."""
        if chosen.tokens >= limit or not self.is_active:
            return
        share, num_chosen = budget / self.counters.active_weight, len(chosen.requests)
        rests: dict[str, Iterator[Request]] = {}
        self._by_turn(chosen, rests, chosen.tokens + (limit - chosen.tokens) // 2, budget)
        if chosen.requests:
            self._same_adapters(chosen, rests, limit, budget, self.counters.floor + share)
            self._by_turn(chosen, rests, limit, budget)
        # Not before: nothing may change under those who look through it.
        self._drop(chosen.requests[num_chosen:])

    def _drop(self, requests: Iterable[Request]) -> None:
        for request in requests:
            row = request.row
            tenant, digest = row.tenant, row.digest
            ready = self._tenants[tenant]
            del ready.requests[request]
            ready.tokens -= request.num_tokens
            self.tokens -= request.num_tokens
            if not ready.requests:
                del self._tenants[tenant]
            same = self._by_digest[digest]
            mine = same[tenant]
            del mine[request]
            if not mine:
                del same[tenant]
                if not same:
                    del self._by_digest[digest]

    def _by_turn(self, chosen: Chosen, rests: dict[str, Iterator[Request]], limit: int, budget: int) -> None:
        """Take by turn. `rests`: what has not been looked at of each tenant for this batch."""
        counters = self.counters
        misses: dict[str, int] = {}
        all_missed = 0
        while chosen.tokens < limit and all_missed < ALL_MISSES and (counter := counters.first()) is not None:
            tenant = counter.tenant
            ready = self._tenants[tenant]
            if is_fresh := (rest := rests.get(tenant)) is None:
                rest = rests[tenant] = iter(ready.requests)
            before = misses.get(tenant, 0)
            missed = self._one_turn(ready, rest, chosen, limit, budget, before, is_fresh=is_fresh)
            if missed is None:
                rests[tenant] = _NOTHING
                missed = before + 1
            misses[tenant] = missed
            all_missed += missed - before
        counters.restore()

    def _one_turn(
        self,
        ready: _Ready,
        rest: Iterator[Request],
        chosen: Chosen,
        limit: int,
        budget: int,
        missed: int,
        *,
        is_fresh: bool,
    ) -> int | None:
        """Take from whose turn it is while it stays that tenant's; how many requests were too long by then.

        None if the tenant's oldest one is among them, and has been passed over too often. `is_fresh`: it comes now.
        """
        until, digests = self.counters.until(), chosen.digests
        for request in rest:
            if request.status is not _QUEUED:
                continue
            digest = request.row.digest
            if digest not in digests and not chosen.can_take(digest):
                continue
            if chosen.tokens + request.num_tokens > budget and chosen.requests:
                if is_fresh:
                    is_fresh = False
                    request.passed += 1
                    if request.passed > MOST_PASSED:
                        self.counters.set_aside(ready.counter)
                        return None
                missed += 1
                if missed < MISSES:
                    continue
                break
            is_fresh = False
            if not self._take(ready, request, chosen) or chosen.tokens >= limit or ready.counter.value >= until:
                return missed
        self.counters.set_aside(ready.counter)
        return missed

    def _same_adapters(
        self, chosen: Chosen, rests: dict[str, Iterator[Request]], limit: int, budget: int, most: float
    ) -> None:
        """Take what needs the adapters that the batch needs, while a tenant's counter stays within `most`."""
        wanted: dict[str, list[OrderedDict[Request, None]]] = {}
        for digest in chosen.digests:
            for tenant, requests in self._by_digest.get(digest, {}).items():
                wanted.setdefault(tenant, []).append(requests)
        turns: list[tuple[float, int, _Ready, Iterator[Request]]] = []
        for tenant, parts in wanted.items():
            ready = self._tenants[tenant]
            if ready.left and rests.get(tenant) is not _NOTHING:
                turns.append((ready.counter.value, ready.counter.turn, ready, chain.from_iterable(parts)))
        heapq.heapify(turns)
        while turns and chosen.tokens < limit:
            _, turn, ready, rest = turns[0]
            if self._take_same(ready, rest, chosen, limit, budget, most, runner_up(turns)):
                heapq.heapreplace(turns, (ready.counter.value, turn, ready, rest))
            else:
                heapq.heappop(turns)

    def _take_same(
        self, ready: _Ready, rest: Iterator[Request], chosen: Chosen, limit: int, budget: int, most: float, until: float
    ) -> bool:
        """Take from one tenant while its counter is below `until`; whether it may have more."""
        counter, missed = ready.counter, 0
        for request in rest:
            if request.status is not _QUEUED:
                continue
            if chosen.tokens + request.num_tokens > budget:
                missed += 1
                if missed < MISSES:
                    continue
                return False
            if counter.value + request.num_tokens / counter.weight > most:
                return False
            if not self._take(ready, request, chosen):
                return False
            if chosen.tokens >= limit or counter.value >= until:
                return True
        return False

    def _take(self, ready: _Ready, request: Request, chosen: Chosen) -> bool:
        """Into the batch; whether its tenant has more that could run."""
        num_tokens = request.num_tokens
        request.status = _RUNNING
        chosen.requests.append(request)
        chosen.digests[request.row.digest] = None
        chosen.tokens += num_tokens
        counter = ready.counter
        counter.value += num_tokens / counter.weight
        ready.left -= 1
        if not ready.left:
            self.counters.leave(counter)
        return ready.left > 0
