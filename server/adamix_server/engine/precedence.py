"""Who gives way to whom, where seats or pages of a decoder are too few. Pure: no torch, no clock, no queue.

A tenant's *share* is what its weight is among all of its class that want something now. Nobody has to keep to it while
nobody else wants more; but who has less than others gets its part from them at once, not when their texts have ended.

What gives way is computed again later. It is the youngest of its tenant, and never the oldest that runs. (All younger
ones give way to one that is older and was passed over for long; see `step.py`. So the oldest request of all always
comes to its end, and then another one is the oldest.) After who took a seat has it, nobody has less of them than who
gave it up: no seat goes to and fro. With one seat each, tenants take turns in them instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

from adamix_server.access.quotas import Shares
from adamix_server.engine.running import Running
from adamix_server.engine.sequence import Sequence
from adamix_server.engine.service_classes import OWED

# Whose only text is so many tokens ahead, by weight, lets a tenant that has none have its seat.
TURN_TOKENS = 512
# Of so many seats one stays free for tenants within their share, so that not every text of theirs takes another's.
_SPARE_SEATS = 8


@dataclass(frozen=True)
class _Seats:
    """Who has seats, of one class. Valid while nothing begins to run or ends.

    Attributes:
        left: how many each would have without one of them, by its weight; most first.
        ahead: the counters of those with one seat, most first.
    """

    left: list[tuple[float, str]]
    ahead: list[tuple[float, str]]


class Precedence:
    """As it is in one step.

    Args:
        shares: a tenant's weight and class.
        counter_of: a tenant's tokens by weight, as `token_counters.py` counts them.
        weights: of all interactive tenants that want something together, and of all others.
    """

    def __init__(
        self,
        running: Running,
        shares: Callable[[str], Shares],
        counter_of: Callable[[str], float],
        weights: tuple[float, float],
    ) -> None:
        self._running = running
        self._shares = shares
        self._counter_of = counter_of
        self._weights = weights
        # Of all seats, what the class `batch` keeps while interactive texts want more.
        self._few_seats = -(-int(OWED * 1000) * running.max_seats // 1000)
        self._seats: tuple[_Seats, _Seats] | None = None
        self._batch_seats = 0
        self._seats_of = -1

    def is_batch(self, tenant: str) -> bool:
        return self._shares(tenant).service_class == "batch"

    def is_within_seats(self, tenant: str) -> bool:
        """Whether a tenant may have one seat more while others want some: within its share, or if enough are free."""
        seats, most = self._running.seats[tenant], self._running.max_seats
        is_within = not seats or seats + 1 <= self._part(tenant) * most
        return is_within or most - self._running.num_seats > max(most // _SPARE_SEATS, 1)

    def is_within_pages(self, tenant: str, num_pages: int) -> bool:
        """Whether so many pages more are within a tenant's share. For whom nothing runs, they are."""
        return not self._running.has(tenant) or self._excess(tenant) + num_pages <= 0

    def can_sit(self, tenant: str) -> bool:
        """Whether there is a seat for a tenant, be it one that is free or another's."""
        return self._running.num_seats < self._running.max_seats or self.seat_giver(tenant) is not None

    def seat_giver(self, tenant: str) -> Sequence | None:
        """Who gives its seat to a tenant, where none is free.

        Of the tenant with the most for its weight, if it still has as many then as the other one will. Of the class
        `batch` all but a few seats go to interactive texts; those few it gets from them.
        """
        interactive, batch = self._ranks()
        wanted = (self._running.seats[tenant] + 1) / self._shares(tenant).weight
        if is_batch := self.is_batch(tenant):
            orders = [(batch, wanted)]
            if self._batch_seats < self._few_seats:
                # Of those that have another one.
                orders.append((interactive, 1e-9))
        else:
            orders = [(interactive, wanted)]
            if self._batch_seats > self._few_seats:
                orders.insert(0, (batch, 0.0))
        for ranks, least in orders:
            for left, name in ranks.left:
                if left < least:
                    break
                if name != tenant and (giver := self._running.youngest(name, has_seat=True)) is not None:
                    return giver
        return None if self._running.seats[tenant] else self._ahead(tenant, batch if is_batch else interactive)

    def page_giver(self, tenant: str, lacking: int) -> Sequence | None:
        """Who gives pages to another tenant: of the one with the most for its weight, if it has `lacking` more than its
        share. Interactive requests get them from the class `batch` in any case."""
        others = (name for name in self._page_givers(tenant, lacking) if name != tenant)
        return next(filter(None, map(self._running.youngest, others)), None)

    def gives_way(self, sequence: Sequence) -> Sequence:
        """Who gives its pages so that a running sequence can go on: of the tenant that has the most for its weight, if
        that is more than its share, else the youngest of all. It may be the sequence itself."""
        names = self._page_givers(sequence.request.row.tenant, 1)
        *_, youngest = self._running
        return next(filter(None, map(self._running.youngest, names)), youngest)

    def _page_givers(self, tenant: str, lacking: int) -> list[str]:
        givers: list[tuple[bool, float, str]] = []
        is_batch = self.is_batch(tenant)
        for name, pages in self._running.page_counts.items():
            is_below = self.is_batch(name) and not is_batch
            if is_below or self._excess(name) >= lacking:
                givers.append((is_below, pages / self._shares(name).weight, name))
        return [name for _, _, name in sorted(givers, reverse=True)]

    def _excess(self, tenant: str) -> float:
        """How many pages a tenant has beyond its share."""
        return self._running.page_counts[tenant] - self._part(tenant) * (self._running.pages.count - 1)

    def _part(self, tenant: str) -> float:
        shares = self._shares(tenant)
        return shares.weight / max(self._weights[shares.service_class == "batch"], float(shares.weight))

    def _ranks(self) -> tuple[_Seats, _Seats]:
        running = self._running
        if self._seats is None or self._seats_of != running.changes:
            self._seats = interactive, batch = _Seats([], []), _Seats([], [])
            self._seats_of, self._batch_seats = running.changes, 0
            for name, seats in running.seats.items():
                shares = self._shares(name)
                is_batch = shares.service_class == "batch"
                ranks = batch if is_batch else interactive
                ranks.left.append(((seats - 1) / shares.weight, name))
                if seats == 1:
                    ranks.ahead.append((self._counter_of(name), name))
                self._batch_seats += seats * is_batch
            for ranks in self._seats:
                ranks.left.sort(reverse=True)
                ranks.ahead.sort(reverse=True)
        return self._seats

    def _ahead(self, tenant: str, ranks: _Seats) -> Sequence | None:
        """The only text of a tenant that is far ahead of one that has none. It has got a token in its seat."""
        least = self._counter_of(tenant) + TURN_TOKENS
        for value, name in ranks.ahead:
            if value < least:
                break
            giver = self._running.youngest(name, has_seat=True)
            if giver is not None and giver.num_generated and giver.num_pending == 1:
                return giver
        return None
