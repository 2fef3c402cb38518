"""The sequences that run, their pages, and what each tenant has of both. Pure: no torch, no clock.

A *seat* is one of the texts that are generated at once; what is answered by a head takes none. Pages are shared within
one tenant alone, so each page that is referenced is exactly one tenant's.
"""

import bisect
from collections import Counter
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Ordered
from itertools import takewhile

from adamix_server.engine.pages import Pages, first_key, next_key
from adamix_server.engine.request import Request
from adamix_server.engine.sequence import Sequence


class Running:
    """See the module's docstring.

    Args:
        max_seats: texts that are generated at once.
        backbone: its fingerprint.

    Attributes:
        seats: that each tenant has, and `page_counts`, of those that have any.
        num_seats: that are taken.
        changes: how often anything began to run, or ended.
    """

    def __init__(self, pages: Pages, max_seats: int, backbone: str) -> None:
        self.pages = pages
        self.max_seats = max_seats
        self._backbone = backbone
        # Oldest first.
        self._sequences: list[Sequence] = []
        self._sizes: Counter[str] = Counter()
        self.seats: Counter[str] = Counter()
        self.page_counts: Counter[str] = Counter()
        self.num_seats = 0
        self.changes = 0
        self._by_digest: dict[str, Counter[str]] = {}
        # How many texts each adapter has.
        self._texts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Oldest first."""
        return iter(self._sequences)

    @property
    def text_adapters(self) -> Collection[str]:
        """Those that are held by texts that run."""
        return self._texts.keys()

    def tenants_of(self, digest: str) -> Collection[str]:
        """Those that have something running with an adapter."""
        return self._by_digest.get(digest, {}).keys()

    @property
    def tenants(self) -> set[str]:
        return set(self._sizes)

    def has(self, tenant: str) -> bool:
        return tenant in self._sizes

    def is_oldest(self, sequence: Sequence) -> bool:
        return bool(self._sequences) and self._sequences[0] is sequence

    def youngest(self, tenant: str, *, has_seat: bool = False) -> Sequence | None:
        """The youngest of a tenant, unless it is the oldest of all."""
        for sequence in reversed(self._sequences[1:]):
            if sequence.request.row.tenant == tenant and (sequence.params is not None or not has_seat):
                return sequence
        return None

    def younger(self, request: Request) -> Iterator[Sequence]:
        """Those that came after a request, youngest first."""
        return takewhile(lambda each: each.request.number > request.number, reversed(self._sequences))

    def add(self, sequence: Sequence, found: Ordered[int]) -> None:
        """It runs from now on, and shares the pages in which its first tokens were `found`."""
        tenant, before = sequence.request.row.tenant, self.pages.num_referenced
        bisect.insort(self._sequences, sequence, key=_number)
        self._sizes[tenant] += 1
        self._by_digest.setdefault(sequence.request.row.digest, Counter())[tenant] += 1
        if sequence.params is not None:
            self.seats[tenant] += 1
            self.num_seats += 1
            if sequence.request.row.digest:
                self._texts[sequence.request.row.digest] += 1
        self.changes += 1
        for page in found:
            self.pages.share(page)
        sequence.pages = list(found)
        sequence.num_published = len(found)
        sequence.num_computed = len(found) * self.pages.page_tokens
        self.page_counts[tenant] += self.pages.num_referenced - before

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
        has_seat = sequence.params is not None
        self.num_seats -= has_seat
        self.changes += 1
        for counter, less in (
            (self._sizes, 1),
            (self._by_digest[digest], 1),
            (self.seats, int(has_seat)),
            (self.page_counts, before - self.pages.num_referenced),
        ):
            counter[tenant] -= less
            if not counter[tenant]:
                del counter[tenant]
        if not self._by_digest[digest]:
            del self._by_digest[digest]
        if has_seat and digest:
            self._texts[digest] -= 1
            if not self._texts[digest]:
                del self._texts[digest]

    def grow(self, sequence: Sequence, num_new: int) -> bool:
        """Pages for so many tokens more; False, and none at all, if there are too few."""
        missing = self.pages.needed(sequence.num_computed + num_new) - len(sequence.pages)
        if missing > 0:
            if missing > self.pages.num_available:
                return False
            sequence.pages += [self.pages.take() for _ in range(missing)]
            self.page_counts[sequence.request.row.tenant] += missing
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
