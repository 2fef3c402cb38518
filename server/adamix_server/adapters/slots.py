"""Which adapter sits in which slot, and where in the arena: pins, eviction and free space. Pure bookkeeping.

Knows no tensors, no devices and no clocks ("recently used" is a counter), so that every rule below is tested in
microseconds. Slot 0 is the identity and is never handed out.

    reserve(digest, size)   FREE -> LOADING, evicting unpinned slots, least recently used first
    ready(digest)           LOADING -> READY
    pin / unpin             a request that is queued or running holds one pin; a pinned slot is never evicted
    drop(digest)            LOADING or READY -> FREE
    close_one()             no victim left? the least recently used slot takes no new pins and becomes one
"""

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from adamix.errors import InternalError


class SlotState(Enum):
    LOADING = "loading"
    READY = "ready"


@dataclass
class Slot:
    """One occupied slot. `offset` and `num_bytes` are its extent in the arena."""

    index: int
    digest: str
    offset: int
    num_bytes: int
    state: SlotState = SlotState.LOADING
    pins: int = 0
    last_used: int = 0
    closing: bool = False


class Extents:
    """First-fit allocation of byte ranges, with neighbouring free ranges joined again."""

    def __init__(self, capacity: int, alignment: int = 256) -> None:
        self._alignment = alignment
        self._free: list[tuple[int, int]] = [(0, capacity // alignment * alignment)]  # sorted (start, stop)

    def rounded(self, num_bytes: int) -> int:
        return -(-num_bytes // self._alignment) * self._alignment

    def allocate(self, num_bytes: int) -> int | None:
        """The offset of a free range of at least `num_bytes`, or None."""
        size = self.rounded(num_bytes)
        for i, (start, stop) in enumerate(self._free):
            if stop - start >= size:
                self._free[i : i + 1] = [(start + size, stop)] if stop - start > size else []
                return start
        return None

    def release(self, offset: int, num_bytes: int) -> None:
        """Give back exactly a range that `allocate` returned."""
        start, stop = offset, offset + self.rounded(num_bytes)
        i = bisect.bisect(self._free, (start, stop))
        if i < len(self._free) and self._free[i][0] == stop:
            stop = self._free.pop(i)[1]
        if i > 0 and self._free[i - 1][1] == start:
            i -= 1
            start = self._free.pop(i)[0]
        self._free.insert(i, (start, stop))

    @property
    def free_bytes(self) -> int:
        return sum(stop - start for start, stop in self._free)


class Slots:
    """At most `count` adapters in an arena of `capacity_bytes`."""

    def __init__(self, count: int, capacity_bytes: int) -> None:
        self.count = count
        self._extents = Extents(capacity_bytes)
        self.capacity_bytes = self._extents.free_bytes
        self._by_digest: dict[str, Slot] = {}
        self._free_indices = list(range(count, 0, -1))
        self._tick = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_digest)

    def __contains__(self, digest: str) -> bool:
        return digest in self._by_digest

    def get(self, digest: str) -> Slot | None:
        return self._by_digest.get(digest)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._by_digest.values())

    def pin(self, digest: str, *, even_closing: bool = False) -> Slot | None:
        """Hold the adapter's slot for one request; None if it has none or (unless told so) takes no new pins."""
        slot = self._by_digest.get(digest)
        if slot is None or (slot.closing and not even_closing):
            return None
        slot.pins += 1
        slot.last_used = next(self._tick)
        return slot

    def unpin(self, digest: str) -> None:
        slot = self._by_digest[digest]
        if slot.pins == 0:
            raise InternalError(f"slot {slot.index} released more often than pinned")
        slot.pins -= 1

    def reserve(self, digest: str, num_bytes: int) -> tuple[Slot | None, list[Slot]]:
        """A slot in state LOADING (None while pins leave no room), and the slots evicted on the way.

        Raises:
            InternalError: it has a slot already, or is larger than the whole arena and would wait for ever.
        """
        if digest in self._by_digest:
            raise InternalError(f"adapter {digest[:12]} has a slot already")
        if self._extents.rounded(num_bytes) > self.capacity_bytes:
            raise InternalError(f"adapter {digest[:12]} is larger than the arena")
        evictable = (s for s in self._by_digest.values() if s.pins == 0 and s.state is SlotState.READY)
        victims = sorted(evictable, key=lambda s: s.last_used, reverse=True)
        evicted: list[Slot] = []
        while (offset := self._extents.allocate(num_bytes) if self._free_indices else None) is None:
            if not victims:
                return None, evicted
            victim = victims.pop()
            self.drop(victim.digest)
            evicted.append(victim)
        slot = Slot(self._free_indices.pop(), digest, offset, num_bytes, last_used=next(self._tick))
        self._by_digest[digest] = slot
        return slot, evicted

    def ready(self, digest: str) -> None:
        self._by_digest[digest].state = SlotState.READY

    def drop(self, digest: str) -> None:
        """Free an unpinned slot. Raises InternalError while it is pinned."""
        slot = self._by_digest[digest]
        if slot.pins:
            raise InternalError(f"slot {slot.index} freed while pinned")
        del self._by_digest[digest]
        self._extents.release(slot.offset, slot.num_bytes)
        self._free_indices.append(slot.index)

    def close_one(self) -> None:
        """Stop the least recently used pinned slot from taking new pins, unless one is closing already.

        Without this, adapters in constant use would keep a waiting one out for ever.
        """
        slots = self._by_digest.values()
        if not any(slot.closing for slot in slots):
            candidates = [slot for slot in slots if slot.state is SlotState.READY]
            if candidates:
                min(candidates, key=lambda slot: slot.last_used).closing = True
