"""The sequences that run: what each tenant has of seats and pages, and who gives way to whom. Pure: no torch, no clock.

A *seat* is one of the texts that are generated at once; what is answered by a head takes none. Pages are shared within
one tenant alone, so each page that is referenced is exactly one tenant's.

Who gives way is recomputed later. It is always the youngest of its tenant, and never the oldest of all: that one gets
done, whatever comes, and then another one is the oldest. A tenant with one seat keeps it.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Ordered

from adamix_server.access.quotas import Shares
from adamix_server.engine.pages import Pages, first_key, next_key
from adamix_server.engine.sequence import Sequence
from adamix_server.engine.service_classes import OWED


class Running:
    """See the module's docstring.

    Args:
        max_seats: texts that are generated at once.
        shares: a tenant's weight and class.
        backbone: its fingerprint.
    """

    def __init__(self, pages: Pages, max_seats: int, shares: Callable[[str], Shares], backbone: str) -> None:
        self.pages = pages
        self.max_seats = max_seats
        self._shares = shares
        self._backbone = backbone
        # Oldest first.
        self._sequences: list[Sequence] = []
        self._seats: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._pages: Counter[str] = Counter()
        self._by_digest: dict[str, Counter[str]] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Oldest first."""
        return iter(self._sequences)

    def __contains__(self, sequence: Sequence) -> bool:
        at = bisect.bisect_left(self._sequences, sequence.request.number, key=_number)
        return at < len(self._sequences) and self._sequences[at] is sequence

    @property
    def num_seats(self) -> int:
        """Texts that are being generated."""
        return self._seats.total()

    @property
    def num_adapters(self) -> int:
        """Those that are held by what runs. Without one is one of them."""
        return len(self._by_digest)

    def tenants_of(self, digest: str) -> Collection[str]:
        """Those that have something running with an adapter."""
        return self._by_digest.get(digest, {}).keys()

    @property
    def tenants(self) -> set[str]:
        return set(self._sizes)

    def has(self, tenant: str) -> bool:
        return tenant in self._sizes

    def seats_of(self, tenant: str) -> int:
        return self._seats[tenant]

    def pages_of(self, tenant: str) -> int:
        return self._pages[tenant]

    def is_oldest(self, sequence: Sequence) -> bool:
        return bool(self._sequences) and self._sequences[0] is sequence

    def add(self, sequence: Sequence, found: Ordered[int]) -> None:
        """It runs from now on, and shares the pages in which its first tokens were `found`."""
        tenant, before = sequence.request.row.tenant, self.pages.num_referenced
        bisect.insort(self._sequences, sequence, key=_number)
        self._sizes[tenant] += 1
        self._by_digest.setdefault(sequence.request.row.digest, Counter())[tenant] += 1
        self._seats[tenant] += sequence.params is not None
        for page in found:
            self.pages.share(page)
        sequence.pages = list(found)
        sequence.num_published = len(found)
        sequence.num_computed = len(found) * self.pages.page_tokens
        self._pages[tenant] += self.pages.num_referenced - before

    def remove(self, sequence: Sequence) -> None:
        """It runs no more, and nothing of it counts as computed; what it published may be found again."""
        tenant, before = sequence.request.row.tenant, self.pages.num_referenced
        del self._sequences[bisect.bisect_left(self._sequences, sequence.request.number, key=_number)]
        # The last one first: without its beginning, nothing of a text can be found again.
        for page in reversed(sequence.pages):
            self.pages.drop(page)
        sequence.pages = []
        sequence.num_computed = sequence.num_published = 0
        digest = sequence.request.row.digest
        for counter, less in (
            (self._sizes, 1),
            (self._by_digest[digest], 1),
            (self._seats, int(sequence.params is not None)),
            (self._pages, before - self.pages.num_referenced),
        ):
            counter[tenant] -= less
            if not counter[tenant]:
                del counter[tenant]
        if not self._by_digest[digest]:
            del self._by_digest[digest]

    def grow(self, sequence: Sequence, num_new: int) -> bool:
        """Pages for so many tokens more; False, and none at all, if there are too few."""
        missing = self.pages.needed(sequence.num_computed + num_new) - len(sequence.pages)
        if missing > 0:
            if missing > self.pages.num_available:
                return False
            sequence.pages += [self.pages.take() for _ in range(missing)]
            self._pages[sequence.request.row.tenant] += missing
        return True

    def found(self, sequence: Sequence) -> list[int]:
        """The pages in which its first tokens lie computed. Never the last token, which tells what is next."""
        found: list[int] = []
        for number in range((sequence.num_tokens - 1) // self.pages.page_tokens):
            if (page := self.pages.find(self._key(sequence, number))) is None:
                break
            found.append(page)
        return found

    def publish(self, sequence: Sequence) -> None:
        """Its pages that are full of computed tokens can be found from now on."""
        while sequence.num_published < sequence.num_computed // self.pages.page_tokens:
            number = sequence.num_published
            self.pages.publish(sequence.pages[number], self._key(sequence, number))
            sequence.num_published += 1

    def withdraw(self, sequence: Sequence) -> None:
        """Nothing of it is found any more."""
        for page in sequence.pages:
            self.pages.withdraw(page)

    def seat_giver(self, tenant: str) -> Sequence | None:
        """Who gives a seat to a tenant, where none is free: of the one with the most for its weight, if what is left to
        it is still as many for its weight as the other one will have.

        Of the class `batch` all but a few seats go to interactive texts; those few it gets from them.
        """
        mine, is_batch = self._shares(tenant), self._is_batch(tenant)
        few = -(-int(OWED * 1000) * self.max_seats // 1000)
        batch_seats = sum(seats for name, seats in self._seats.items() if self._is_batch(name))
        wanted = (self._seats[tenant] + 1) / mine.weight
        givers: list[tuple[bool, float, str]] = []
        for name, seats in self._seats.items():
            left = (seats - 1) / self._shares(name).weight
            if name == tenant:
                continue
            if self._is_batch(name) == is_batch:
                gives = left >= wanted
            elif is_batch:
                gives = seats > 1 and batch_seats < few
            else:
                gives = batch_seats > few
            if gives:
                givers.append((self._is_batch(name), left, name))
        for _, _, name in sorted(givers, reverse=True):
            if (youngest := self._youngest(name, has_seat=True)) is not None:
                return youngest
        return None

    def page_giver(self, tenant: str, missing: int, weights: tuple[float, float]) -> Sequence | None:
        """Who gives pages to another tenant: of the one with the most for its weight, if it has `missing` more than its
        share. Interactive requests get them from the class `batch` in any case.

        Args:
            weights: of all interactive tenants that want pages together, and of all others.
        """
        others = (name for name in self._page_givers(tenant, missing, weights) if name != tenant)
        return next(filter(None, map(self._youngest, others)), None)

    def gives_way(self, sequence: Sequence, weights: tuple[float, float]) -> Sequence:
        """Who gives its pages so that a running sequence can go on: of the tenant that has the most for its weight, if
        that is more than its share, else the youngest of all. It may be the sequence itself."""
        names = self._page_givers(sequence.request.row.tenant, 1, weights)
        return next(filter(None, map(self._youngest, names)), self._sequences[-1])

    def _page_givers(self, tenant: str, missing: int, weights: tuple[float, float]) -> list[str]:
        givers: list[tuple[bool, float, str]] = []
        for name, pages in self._pages.items():
            is_below = self._is_batch(name) and not self._is_batch(tenant)
            if is_below or pages - self.share(name, weights) >= missing:
                givers.append((is_below, pages / self._shares(name).weight, name))
        return [name for _, _, name in sorted(givers, reverse=True)]

    def share(self, tenant: str, weights: tuple[float, float]) -> float:
        """How many pages are a tenant's, while others want some."""
        return (self.pages.count - 1) * self._shares(tenant).weight / max(weights[self._is_batch(tenant)], 1.0)

    def _is_batch(self, tenant: str) -> bool:
        return self._shares(tenant).service_class == "batch"

    def _youngest(self, tenant: str, *, has_seat: bool = False) -> Sequence | None:
        """The youngest of a tenant, unless it is the oldest of all."""
        for sequence in reversed(self._sequences[1:]):
            if sequence.request.row.tenant == tenant and (sequence.params is not None or not has_seat):
                return sequence
        return None

    def _key(self, sequence: Sequence, number: int) -> bytes:
        """What the page of this number is found by."""
        keys, size = sequence.keys, self.pages.page_tokens
        while len(keys) <= number:
            row, at = sequence.request.row, len(keys) * size
            before = keys[-1] if keys else first_key(row.tenant, row.digest, self._backbone)
            keys.append(next_key(before, sequence.buffer[at : at + size]))
        return keys[number]


def _number(sequence: Sequence) -> int:
    return sequence.request.number
