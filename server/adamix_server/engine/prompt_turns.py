"""Whose prompt a decoder's step goes on or begins with, within one class. Pure: no torch, no clock, no pages, no seats.

Turns go to the tenant with the smallest counter, as in `fair.py`, but what is begun is usually gone on with first: the
first token of all would come late if a step began with a little of every prompt. Its tenant counts as `PROMPT_TURN`
tokens further behind than it is; so longer prompts let others in between.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adamix_server.engine.fair import FairQueue
from adamix_server.engine.request import Request
from adamix_server.engine.sequence import Sequence
from adamix_server.engine.token_counters import Counter

# By so many tokens a tenant may get ahead of others by a prompt that is begun.
PROMPT_TURN = 512
# In so many requests of all tenants together a step looks for one that can begin. From then on it looks only at those
# of tenants that have some which need no seat: many may wait for one.
MOST_MISSES = 128


@dataclass(frozen=True, slots=True)
class Turn:
    """A tenant's: its prompt that is gone on with, or else its requests, oldest first, one of which may begin."""

    counter: Counter
    begun: Sequence | None
    requests: Iterator[Request]


class PromptTurns:
    """The turns of one class in one step. Nothing may be added to its queue or removed until `close`.

    Args:
        begun: the sequences with a prompt to go on with, oldest first.
        seatless: tenants that have requests which need no seat.
    """

    def __init__(self, queue: FairQueue, begun: Iterable[Sequence], seatless: Iterable[str]) -> None:
        self._queue = queue
        self._begun: list[tuple[float, int, Sequence]] = []
        for sequence in begun:
            if (counter := queue.counters.get(sequence.request.row.tenant)) is not None:
                self._begun.append((_place(counter), sequence.request.number, sequence))
        heapq.heapify(self._begun)
        self._seatless = seatless
        self._rests: dict[str, Iterator[Request]] = {}
        self._misses = 0
        # Of tenants in `seatless`, once it is they alone that are looked at.
        self._left: list[tuple[float, int, Counter]] | None = None

    def next(self) -> Turn | None:
        """Whose turn it is; None if nobody is left. To be followed by `end`."""
        counter = self._first()
        while self._begun:
            place, number, sequence = self._begun[0]
            owner = self._queue.counters.get(sequence.request.row.tenant)
            if owner is None or (counter is not None and counter.value < place):
                break
            if _place(owner) > place:
                heapq.heapreplace(self._begun, (_place(owner), number, sequence))
                continue
            heapq.heappop(self._begun)
            return Turn(owner, sequence, iter(()))
        if counter is None:
            return None
        if (rest := self._rests.get(counter.tenant)) is None:
            rest = self._rests[counter.tenant] = self._queue.oldest_first(counter.tenant)
        return Turn(counter, None, rest)

    def end(self, turn: Turn, tokens: int, missed: int) -> None:
        """It brought its tenant so many tokens, after so many requests that could not begin."""
        self._misses += missed
        turn.counter.value += tokens / turn.counter.weight
        if turn.begun is not None:
            return
        if self._left is not None:
            if tokens:
                heapq.heapreplace(self._left, (turn.counter.value, turn.counter.turn, turn.counter))
            else:
                heapq.heappop(self._left)
        elif not tokens:
            self._queue.counters.set_aside(turn.counter)

    def close(self) -> None:
        self._queue.counters.restore()

    def _first(self) -> Counter | None:
        counters = self._queue.counters
        if self._misses < MOST_MISSES:
            return counters.first()
        if self._left is None:
            found = (counters.get(tenant) for tenant in self._seatless)
            self._left = [(each.value, each.turn, each) for each in found if each is not None and each.is_active]
            heapq.heapify(self._left)
        return self._left[0][-1] if self._left else None


def _place(counter: Counter) -> float:
    """Of the tenant of a prompt that is begun."""
    return counter.value - PROMPT_TURN / counter.weight
