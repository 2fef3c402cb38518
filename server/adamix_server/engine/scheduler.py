"""Which requests run in the next batch. Pure: no torch, no clock, no channel.

Batches are formed late, from whatever is ready, up to a budget of tokens. The oldest ready requests fill the first
half of the budget whoever they belong to, so nobody is passed over; the second half goes to requests whose adapter the
batch already needs, because fewer distinct adapters are worth more than any kernel tuning; then to the oldest again.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from adamix_server.channel import Peer
from adamix_server.engine.request import Batch, Request

Key = tuple[Peer, int]

# Deadlines of requests that are gone are cleared away once they outnumber the queue by this many.
_SPARE_DEADLINES = 1024


class Scheduler:
    """The queue of one engine.

    Args:
        max_batch_tokens: token budget of a batch. A longer request runs alone.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self._queue: OrderedDict[Key, Request] = OrderedDict()
        self._by_digest: dict[str, OrderedDict[Key, Request]] = {}
        # Soonest first. Requests that left the queue stay here until their time comes.
        self._deadlines: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, key: Key) -> bool:
        return key in self._queue

    def __iter__(self) -> Iterator[Request]:
        """The queued requests, oldest first."""
        return iter(self._queue.values())

    def add(self, request: Request) -> None:
        """Queue a request; its key must not be queued already."""
        if request.key in self._queue:
            raise KeyError(f"request {request.id} is queued already")
        self._queue[request.key] = request
        self._by_digest.setdefault(request.digest, OrderedDict())[request.key] = request
        if len(self._deadlines) > 2 * len(self._queue) + _SPARE_DEADLINES:
            self._deadlines = [(queued.deadline, key) for key, queued in self._queue.items()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (request.deadline, request.key))

    def remove(self, key: Key) -> Request | None:
        """Take a request out (cancelled, expired, failed); None if it is not queued."""
        request = self._queue.pop(key, None)
        if request is not None:
            same = self._by_digest[request.digest]
            del same[key]
            if not same:
                del self._by_digest[request.digest]
        return request

    def remove_digest(self, digest: str) -> list[Request]:
        """Take out every request of one adapter (it cannot be loaded)."""
        keys = list(self._by_digest.get(digest, ()))
        return [request for key in keys if (request := self.remove(key)) is not None]

    def remove_expired(self, now: float) -> list[Request]:
        """Take out every request whose deadline has passed."""
        expired: list[Request] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, key = heapq.heappop(self._deadlines)
            if (request := self._queue.get(key)) is not None and request.deadline <= now:
                expired.append(request)
                self.remove(key)
        return expired

    def next_batch(self, is_ready: Callable[[str], bool]) -> Batch | None:
        """Take the next batch out of the queue; None if no request's adapter is ready."""
        chosen = _Chosen(self.max_batch_tokens)
        oldest = (request for request in self._queue.values() if is_ready(request.digest))
        waiting = chosen.fill(oldest, self.max_batch_tokens // 2)
        if not chosen.requests:
            return None
        same = itertools.chain.from_iterable(self._by_digest[digest].values() for digest in list(chosen.digests))
        chosen.fill(same, self.max_batch_tokens)
        chosen.fill(waiting, self.max_batch_tokens)
        for request in chosen.requests.values():
            self.remove(request.key)
        return Batch.of(list(chosen.requests.values()))


class _Chosen:
    """A batch being filled."""

    # How many requests in a row may be too long for the room that is left before the search for a shorter one stops.
    _MISSES = 32

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.requests: dict[Key, Request] = {}
        self.digests: dict[str, None] = {}
        self.tokens = 0

    def fill(self, candidates: Iterable[Request], limit: int) -> Iterator[Request]:
        """Take candidates while fewer than `limit` tokens are chosen; returns those not looked at."""
        rest, misses = iter(candidates), 0
        while self.tokens < limit and misses < self._MISSES:
            request = next(rest, None)
            if request is None:
                break
            if request.key in self.requests:
                continue
            if self.requests and self.tokens + request.num_tokens > self.budget:
                misses += 1
                continue
            self.requests[request.key] = request
            self.digests[request.digest] = None
            self.tokens += request.num_tokens
        return rest
