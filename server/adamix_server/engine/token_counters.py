"""Virtual token counters: whose turn it is among tenants that want the same device. Pure: no clock, no requests.

Each tenant has a counter of the tokens it was given, divided by its weight. Who is *active*, having something that
could run now, and has the smallest counter is next; of equal ones, who has been active for longer. A tenant that
becomes active is lifted to the smallest active counter: time away saves up nothing. One that is not active and not
ahead of that is like a new one, and forgotten; with nobody active there is nobody to be ahead of. After Sheng et al.,
"Fairness in serving large language models", OSDI 2024.
"""

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Counters begin anew from here, long before a float could no longer tell one token at the largest weight.
REBASED_AT = float(1 << 40)
# Entries of heaps that say nothing any more are cleared away once there are so many more of them than others.
_SPARE = 64


@dataclass(eq=False, slots=True)
class Counter:
    """One tenant's.

    Attributes:
        value: tokens by weight.
        turn: when it became active, as a running number.
    """

    tenant: str
    weight: float
    value: float
    turn: int = 0
    is_active: bool = False


# By counter, then by who has been active for longer. An entry may be out of date, and is then corrected when it comes
# first: counters only grow, so it is never behind where it belongs.
_Heap = list[tuple[float, int, Counter]]


def runner_up(heap: Sequence[tuple[float, *tuple[Any, ...]]]) -> float:
    """The second smallest number of a heap; without end if it has none."""
    if len(heap) < 2:
        return math.inf
    return min(heap[1][0], heap[2][0]) if len(heap) > 2 else heap[1][0]


class TokenCounters:
    """The counters of tenants that share a device."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        # Of tenants whose weight is not 1, whether they have a counter or not.
        self._weights: Mapping[str, float] = {}
        self._active: _Heap = []
        self._num_active = 0
        # Those that have nothing that fits into the batch being filled. They are active all the same.
        self._aside: list[Counter] = []
        # Not active, but ahead.
        self._ahead: _Heap = []
        # The smallest counter of any active tenant, which never falls while somebody is active.
        self._floor = 0.0
        self._turns = itertools.count(1)
        self._active_weight = 0.0

    def __len__(self) -> int:
        """How many tenants are remembered."""
        return len(self._counters)

    @property
    def active_weight(self) -> float:
        """Of all active tenants together."""
        return self._active_weight

    @property
    def floor(self) -> float:
        """The smallest active counter."""
        self.first()
        return self._floor

    def get(self, tenant: str) -> Counter | None:
        """The counter of a tenant that is active or ahead."""
        return self._counters.get(tenant)

    def enter(self, tenant: str) -> Counter:
        """A tenant that was not active has something that could run now."""
        self._forget()
        if (counter := self._counters.get(tenant)) is None:
            counter = self._counters[tenant] = Counter(tenant, self._weights.get(tenant, 1.0), self._floor)
        counter.is_active, counter.turn = True, next(self._turns)
        self._num_active += 1
        self._active_weight += counter.weight
        self._push(self._active, counter, self._num_active)
        return counter

    def leave(self, counter: Counter) -> None:
        """An active tenant has nothing more that could run now."""
        counter.is_active = False
        self._num_active -= 1
        self._active_weight -= counter.weight
        if not self._num_active:
            self._counters.clear()
            self._active.clear()
            self._ahead.clear()
            self._floor = self._active_weight = 0.0
            return
        self._push(self._ahead, counter, len(self._counters))
        self._forget()

    def charge(self, tenant: str, tokens: float) -> None:
        """A tenant was given so many tokens, whether or not it has something queued."""
        self._forget()
        if (counter := self._counters.get(tenant)) is not None:
            counter.value += tokens / counter.weight
        elif self._num_active:
            weight = self._weights.get(tenant, 1.0)
            counter = Counter(tenant, weight, self.floor + tokens / weight, next(self._turns))
            self._counters[tenant] = counter
            self._push(self._ahead, counter, len(self._counters))

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Of all tenants whose weight is not 1, from the next charge on. What one is ahead stays the same in tokens."""
        self._forget()
        floor = self._floor
        self._weights = weights
        for counter in self._counters.values():
            weight = weights.get(counter.tenant, 1.0)
            if weight != counter.weight:
                counter.value = floor + (counter.value - floor) * counter.weight / weight
                if counter.is_active:
                    self._active_weight += weight - counter.weight
                counter.weight = weight
        self._rebuild()

    def first(self) -> Counter | None:
        """Whose turn it is, of those that are not set aside."""
        active = self._active
        while active:
            value, turn, counter = active[0]
            if not counter.is_active or counter.turn != turn:
                heapq.heappop(active)
            elif counter.value != value:
                heapq.heapreplace(active, (counter.value, turn, counter))
            else:
                if not self._aside and value > self._floor:
                    self._floor = value
                return counter
        return None

    def until(self) -> float:
        """Whose turn it is keeps it while its counter is below this, at least."""
        return runner_up(self._active)

    def set_aside(self, counter: Counter) -> None:
        """Whose turn it is has none until `restore`."""
        heapq.heappop(self._active)
        self._aside.append(counter)

    def restore(self) -> None:
        """Who was set aside has turns again."""
        for counter in self._aside:
            heapq.heappush(self._active, (counter.value, counter.turn, counter))
        self._aside.clear()
        self._forget()
        if self._floor >= REBASED_AT:
            self._rebase()

    def _push(self, heap: _Heap, counter: Counter, num_valid: int) -> None:
        if len(heap) > 2 * num_valid + _SPARE:
            self._rebuild()  # with this one
        else:
            heapq.heappush(heap, (counter.value, counter.turn, counter))

    def _forget(self) -> None:
        """Find the smallest active counter, and forget those that are no longer ahead of it."""
        floor, ahead = self.floor, self._ahead
        while ahead and ahead[0][0] <= floor:
            _, turn, counter = heapq.heappop(ahead)
            if counter.is_active or counter.turn != turn or self._counters.get(counter.tenant) is not counter:
                continue
            if counter.value <= floor:
                del self._counters[counter.tenant]
            else:
                heapq.heappush(ahead, (counter.value, turn, counter))

    def _rebase(self) -> None:
        for counter in self._counters.values():
            counter.value -= self._floor
        self._floor = 0.0
        self._rebuild()

    def _rebuild(self) -> None:
        """Both heaps, of what the counters are now."""
        aside = set(self._aside)
        entries = [(c.value, c.turn, c) for c in self._counters.values() if c not in aside]
        self._active = [entry for entry in entries if entry[2].is_active]
        self._ahead = [entry for entry in entries if not entry[2].is_active]
        heapq.heapify(self._active)
        heapq.heapify(self._ahead)
