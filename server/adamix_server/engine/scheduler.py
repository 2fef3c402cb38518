"""Which requests run in the next batch. Pure: no torch, no clock, no channel.

Batches are formed late, from whatever is ready, up to a budget of tokens. The oldest ready requests fill the first
half of the budget whoever they belong to, so nobody is passed over; the second half goes to requests whose adapter the
batch already needs, because fewer distinct adapters are worth more than any kernel tuning; then to the oldest again.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, KeysView

from adamix.errors import InternalError
from adamix_server.channel.channel import Peer
from adamix_server.engine.request import Batch, Request, Status

# Deadlines of requests that are gone are cleared away once they outnumber the queue by this many.
_SPARE_DEADLINES = 1024


class Scheduler:
    """The queue of one engine.

    Args:
        max_batch_tokens: token budget of a batch. A longer request runs alone.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        # By what a `Cancel` frame calls them, oldest first.
        self._queue: OrderedDict[tuple[Peer, int], Request] = OrderedDict()
        self._by_digest: dict[str, OrderedDict[Request, None]] = {}
        # Soonest first, and of equal ones the oldest. Requests that left the queue stay here until they are soonest.
        self._deadlines: list[tuple[float, int, Request]] = []
        self._arrivals = itertools.count()
        self._queued_tokens = 0

    @property
    def queued_tokens(self) -> int:
        """The tokens of the queued requests. Counted as they come and go: it is asked for at every emit."""
        return self._queued_tokens

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        """The queued requests, oldest first."""
        return iter(self._queue.values())

    @property
    def digests(self) -> KeysView[str]:
        """The adapters that queued requests ask for."""
        return self._by_digest.keys()

    def find(self, peer: Peer, request_id: int) -> Request | None:
        """The queued request that a front end calls so; None if there is none, or it runs already."""
        return self._queue.get((peer, request_id))

    def of(self, digest: str) -> list[Request]:
        """The queued requests of one adapter, oldest first."""
        return list(self._by_digest.get(digest, ()))

    def add(self, request: Request) -> None:
        """Queue a request. Raises KeyError if its front end has queued another one of that id."""
        key = request.peer, request.row.id
        if key in self._queue:
            raise KeyError(f"request {request.row.id} is queued already")
        self._queue[key] = request
        self._queued_tokens += request.num_tokens
        self._by_digest.setdefault(request.row.digest, OrderedDict())[request] = None
        if len(self._deadlines) > 2 * len(self._queue) + _SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[-1].status is Status.QUEUED]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (request.row.deadline, next(self._arrivals), request))

    def end(self, request: Request) -> None:
        """A request has its outcome, whether it runs or is still queued. Raises InternalError the second time."""
        if request.status is Status.ENDED:
            raise InternalError(f"request {request.row.id} ended twice")
        if request.status is Status.QUEUED:
            self._take(request)
        request.status = Status.ENDED

    def expired(self, now: float) -> list[Request]:
        """The queued requests whose deadline has passed. Each is told once, and is to be ended."""
        expired: list[Request] = []
        while self._deadlines:
            deadline, _, request = self._deadlines[0]
            if request.status is Status.QUEUED:
                if deadline > now:
                    break
                expired.append(request)
            heapq.heappop(self._deadlines)
        return expired

    def next_batch(self, is_ready: Callable[[str], bool]) -> Batch | None:
        """Take the next batch out of the queue; None if no request's adapter is ready."""
        chosen = _Chosen(self.max_batch_tokens)
        oldest = (request for request in self._queue.values() if is_ready(request.row.digest))
        waiting = chosen.fill(oldest, self.max_batch_tokens // 2)
        if not chosen.requests:
            return None
        same = itertools.chain.from_iterable(self._by_digest[digest] for digest in list(chosen.digests))
        chosen.fill(same, self.max_batch_tokens)
        chosen.fill(waiting, self.max_batch_tokens)
        for request in chosen.requests:
            self._take(request)
        return Batch.of(chosen.requests)

    def _take(self, request: Request) -> None:
        """Out of the queue."""
        del self._queue[request.peer, request.row.id]
        self._queued_tokens -= request.num_tokens
        same = self._by_digest[request.row.digest]
        del same[request]
        if not same:
            del self._by_digest[request.row.digest]


class _Chosen:
    """A batch being filled. What it takes is RUNNING from then on."""

    # How many requests in a row may be too long for the room that is left before the search for a shorter one stops.
    _MISSES = 32

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.requests: list[Request] = []
        self.digests: dict[str, None] = {}
        self.tokens = 0

    def fill(self, candidates: Iterable[Request], limit: int) -> Iterator[Request]:
        """Take candidates while fewer than `limit` tokens are chosen; returns those not looked at."""
        rest, misses = iter(candidates), 0
        while self.tokens < limit and misses < self._MISSES:
            request = next(rest, None)
            if request is None:
                break
            if request.status is Status.RUNNING:
                continue
            num_tokens = request.num_tokens
            if self.requests and self.tokens + num_tokens > self.budget:
                misses += 1
                continue
            request.status = Status.RUNNING
            self.requests.append(request)
            self.digests[request.row.digest] = None
            self.tokens += num_tokens
        return rest
