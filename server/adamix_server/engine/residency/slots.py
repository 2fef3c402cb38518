"""Which adapter sits in which slot, and where in the arena: holds, pins, eviction and free space. Pure bookkeeping.

Knows no tensors, no devices and no clocks ("recently used" is an order), so that every rule below is tested in
microseconds. Slot 0 is the identity and is never handed out.

    reserve(digest, size)   FREE -> LOADING, evicting slots that nobody holds, least recently used first
    ready(digest)           LOADING -> READY
    hold / release          a request that is queued or running has one hold; a slot that is held is never evicted
    drop(digest)            LOADING or READY -> FREE
    close_one()             no victim left? the least recently used slot takes no new holds and becomes one
    pin / unpin             by an operator: never closed, at most half of the slots and half of the arena
"""

import bisect
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from adamix.errors import InternalError, Overloaded


class SlotState(Enum):
    LOADING = "loading"
    READY = "ready"


@dataclass
class Slot:
    """One occupied slot. `offset` and `num_bytes` are its extent in the arena; one that is `pinned` is never closed."""

    index: int
    digest: str
    offset: int
    num_bytes: int
    state: SlotState = SlotState.LOADING
    holds: int = 0
    closing: bool = False
    pinned: bool = False


@dataclass(eq=False)
class Hold:
    """A claim on one adapter, of a request or of an operator's pin. Made and given back by the loader (`loader.py`).

    `has_slot`: it counts among the holds of the adapter's slot. `waited_s` is how long that took.
    """

    digest: str
    since: float
    has_slot: bool = False
    waited_s: float = 0.0


class Extents:
    """First-fit allocation of byte ranges, from either end, with neighbouring free ranges joined again."""

    def __init__(self, capacity: int, alignment: int = 256) -> None:
        self._alignment = alignment
        self._free: list[tuple[int, int]] = [(0, capacity // alignment * alignment)]  # sorted (start, stop)

    def rounded(self, num_bytes: int) -> int:
        return -(-num_bytes // self._alignment) * self._alignment

    def allocate(self, num_bytes: int, *, at_end: bool = False) -> int | None:
        """The offset of a free range of at least `num_bytes`, or None. The first that fits, or (`at_end`) the last."""
        size = self.rounded(num_bytes)
        for i in reversed(range(len(self._free))) if at_end else range(len(self._free)):
            start, stop = self._free[i]
            if stop - start >= size:
                offset = stop - size if at_end else start
                left = (start, offset) if at_end else (start + size, stop)
                self._free[i : i + 1] = [left] if stop - start > size else []
                return offset
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
        self._by_digest: OrderedDict[str, Slot] = OrderedDict()  # least recently used first
        self._free_indices = list(range(count, 0, -1))

    def __len__(self) -> int:
        return len(self._by_digest)

    def __contains__(self, digest: str) -> bool:
        return digest in self._by_digest

    def get(self, digest: str) -> Slot | None:
        return self._by_digest.get(digest)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._by_digest.values())

    def hold(self, digest: str, *, even_closing: bool = False) -> Slot | None:
        """Hold the adapter's slot for one request; None if it has none or (unless told so) takes no new holds."""
        slot = self._by_digest.get(digest)
        if slot is None or (slot.closing and not even_closing):
            return None
        slot.holds += 1
        self._by_digest.move_to_end(digest)
        return slot

    def release(self, digest: str) -> None:
        slot = self._by_digest[digest]
        if slot.holds == 0:
            raise InternalError(f"slot {slot.index} released more often than held")
        slot.holds -= 1

    def reserve(self, digest: str, num_bytes: int, *, at_end: bool = False) -> tuple[Slot | None, list[Slot]]:
        """A slot in state LOADING (None while holds leave no room), and the slots evicted on the way.

        Args:
            at_end: for an adapter that will be pinned: those gather at one end of the arena, and leave the rest whole.

        Raises:
            InternalError: it has a slot already, or is larger than the whole arena and would wait for ever.
        """
        if digest in self._by_digest:
            raise InternalError(f"adapter {digest[:12]} has a slot already")
        if self._extents.rounded(num_bytes) > self.capacity_bytes:
            raise InternalError(f"adapter {digest[:12]} is larger than the arena")
        evicted: list[Slot] = []
        while (offset := self._extents.allocate(num_bytes, at_end=at_end) if self._free_indices else None) is None:
            idle = (s for s in self._by_digest.values() if s.holds == 0 and s.state is SlotState.READY)
            if (victim := next(idle, None)) is None:
                return None, evicted
            self.drop(victim.digest)
            evicted.append(victim)
        slot = Slot(self._free_indices.pop(), digest, offset, num_bytes)
        self._by_digest[digest] = slot
        return slot, evicted

    def ready(self, digest: str) -> None:
        self._by_digest[digest].state = SlotState.READY

    def drop(self, digest: str) -> None:
        """Free a slot that nobody holds. Raises InternalError while it is held."""
        slot = self._by_digest[digest]
        if slot.holds:
            raise InternalError(f"slot {slot.index} freed while held")
        del self._by_digest[digest]
        self._extents.release(slot.offset, slot.num_bytes)
        self._free_indices.append(slot.index)

    def close_one(self, spared: Collection[str] = ()) -> None:
        """Stop the least recently used slot from taking new holds, unless one is closing already.

        Without this, adapters in constant use would keep a waiting one out for ever.

        Args:
            spared: adapters whose slots are closed only if there are no others; nor do those count as closing.
        """
        slots = [slot for slot in self if slot.state is SlotState.READY and not slot.pinned]
        first = [slot for slot in slots if slot.digest not in spared] or slots
        if first and not any(slot.closing for slot in first):
            first[0].closing = True

    def has_room(self, num_bytes: int) -> bool:
        """Whether `reserve` would find a slot now, by evicting nothing that is held."""
        return self._fits_beside([s for s in self if s.holds or s.state is SlotState.LOADING], num_bytes)

    def can_have_room(self, num_bytes: int) -> bool:
        """Whether `reserve` will find a slot once nothing is held that is not pinned."""
        return self._fits_beside([s for s in self if s.pinned], num_bytes)

    def pin(self, digest: str) -> None:
        """Never close this READY slot, until `unpin`. The hold that keeps it from eviction is the caller's.

        Raises:
            Overloaded: more than half of the slots, or of the arena, would be pinned (`TOO_MANY_PINNED`).
        """
        slot = self._by_digest[digest]
        if slot.pinned:
            return
        pinned = [s for s in self if s.pinned]
        self.check_pinnable(len(pinned) + 1, sum(self._extents.rounded(s.num_bytes) for s in [*pinned, slot]))
        slot.pinned, slot.closing = True, False

    def unpin(self, digest: str) -> None:
        """The slot may be closed again. One that is not pinned, or no longer there, is left alone."""
        if (slot := self._by_digest.get(digest)) is not None:
            slot.pinned = False

    def check_pinnable(self, count: int, num_bytes: int = 0) -> None:
        """Whether so many slots with so many bytes in all may be pinned. Raises Overloaded (`TOO_MANY_PINNED`)."""
        if count > self.count // 2 or num_bytes > self.capacity_bytes // 2:
            # No hint when to try again: waiting does not help.
            raise Overloaded(
                f"pinned versions may take at most half of this server's {self.count} slots and half of its arena of "
                f"{self.capacity_bytes} bytes; unpin another version first, or raise --slots and --arena-mib",
                reason="TOO_MANY_PINNED",
            )

    def _fits_beside(self, others: list[Slot], num_bytes: int) -> bool:
        """Whether an adapter has a slot and an extent if none but `others` had one."""
        if len(others) >= self.count:
            return False
        start, size = 0, self._extents.rounded(num_bytes)
        for slot in sorted(others, key=lambda slot: slot.offset):
            if slot.offset - start >= size:
                return True
            start = slot.offset + self._extents.rounded(slot.num_bytes)
        return self.capacity_bytes - start >= size
