"""Slots: the bookkeeping that decides who is on the device."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from adamix.errors import InternalError, Overloaded
from adamix_server.engine.residency.slots import Extents, Slots, SlotState

CAPACITY = 4096


class TestExtents:
    def test_neighbours_join_again(self) -> None:
        extents = Extents(1024)
        offsets = [extents.allocate(256) for _ in range(4)]
        assert offsets == [0, 256, 512, 768]
        assert extents.allocate(1) is None
        for offset in (256, 768, 512, 0):
            extents.release(offset, 256)
        assert extents.allocate(1024) == 0

    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 1500)), max_size=60))
    def test_ranges_never_overlap_and_nothing_is_lost(self, steps: list[tuple[bool, int]]) -> None:
        extents, held = Extents(CAPACITY), []
        for allocate, number in steps:
            if allocate:
                offset = extents.allocate(number, at_end=number % 2 == 0)
                if offset is not None:
                    held.append((offset, number))
            elif held:
                extents.release(*held.pop(number % len(held)))
            spans = sorted((start, start + extents.rounded(size)) for start, size in held)
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            assert all(start >= 0 and stop <= CAPACITY for start, stop in spans)
            assert extents.free_bytes == CAPACITY - sum(stop - start for start, stop in spans)


def filled(*digests: str, count: int = 2, size: int = 256) -> Slots:
    slots = Slots(count, CAPACITY)
    for digest in digests:
        slot, evicted = slots.reserve(digest, size)
        assert slot is not None
        assert not evicted
        slots.ready(digest)
    return slots


class TestEviction:
    def test_the_least_recently_used_goes_first(self) -> None:
        slots = filled("a", "b")
        slots.hold("a")
        slots.release("a")
        slot, evicted = slots.reserve("c", 256)
        assert slot is not None
        assert [s.digest for s in evicted] == ["b"]
        assert "a" in slots

    def test_a_held_slot_is_never_taken(self) -> None:
        slots = filled("a", "b")
        slots.hold("a")
        slots.hold("b")
        assert slots.reserve("c", 256) == (None, [])
        slots.release("b")
        slot, evicted = slots.reserve("c", 256)
        assert slot is not None
        assert [s.digest for s in evicted] == ["b"]

    def test_a_large_adapter_takes_the_place_of_several_small_ones(self) -> None:
        slots = filled("a", "b", "c", "d", count=4, size=1024)
        slot, evicted = slots.reserve("big", 3000)
        assert slot is not None
        assert [s.digest for s in evicted] == ["a", "b", "c"]

    def test_an_adapter_larger_than_the_arena_never_waits(self) -> None:
        with pytest.raises(InternalError, match="larger than the arena"):
            filled().reserve("huge", CAPACITY + 1)

    def test_slots_run_out_before_bytes_do(self) -> None:
        slots = filled("a", "b", count=2, size=256)
        slots.hold("a")
        slots.hold("b")
        assert slots.reserve("c", 256)[0] is None

    def test_a_closing_slot_takes_no_new_holds_so_that_a_waiting_adapter_gets_in(self) -> None:
        slots = filled("a", "b")
        slots.hold("a")
        slots.hold("b")
        slots.close_one()
        assert slots.hold("a") is None
        assert slots.hold("b") is not None
        slots.close_one()
        assert slots.hold("b") is not None, "one at a time"
        slots.release("a")
        slot, evicted = slots.reserve("c", 256)
        assert slot is not None
        assert [s.digest for s in evicted] == ["a"]

    def test_slots_that_are_spared_are_closed_last(self) -> None:
        slots = filled("a", "b")
        for digest in "ab":
            slots.hold(digest)
        slots.close_one(spared={"a"})
        assert slots.hold("a") is not None
        assert slots.hold("b") is None
        # One that is spared by now does not count, so another one closes beside it.
        slots.close_one(spared={"b"})
        assert slots.hold("a") is None

    def test_where_all_are_spared_the_least_recently_used_one_is_closed(self) -> None:
        slots = filled("a", "b")
        for digest in "ab":
            slots.hold(digest)
        slots.close_one(spared={"a", "b"})
        slots.close_one(spared={"a", "b"})
        assert slots.hold("a") is None
        assert slots.hold("b") is not None

    def test_unbalanced_releases_are_bugs(self) -> None:
        slots = filled("a")
        with pytest.raises(InternalError, match="more often than held"):
            slots.release("a")
        slots.hold("a")
        with pytest.raises(InternalError, match="freed while held"):
            slots.drop("a")


class TestPinning:
    def test_a_pinned_slot_is_never_closed(self) -> None:
        slots = filled("a", "b", count=2)
        for digest in "ab":
            slots.hold(digest)
        slots.pin("a")
        slots.close_one()
        assert slots.hold("a") is not None
        assert slots.hold("b") is None
        slots.unpin("a")
        slots.unpin("unknown")

    def test_a_closing_slot_that_is_pinned_opens_again(self) -> None:
        slots = filled("a", "b", count=2)
        for digest in "ab":
            slots.hold(digest)
        slots.close_one()
        slots.pin("a")
        assert slots.hold("a") is not None
        slots.close_one()
        assert slots.hold("b") is None, "another one closes instead"

    @pytest.mark.parametrize(
        ("count", "sizes", "pinned"),
        [(4, (256, 256, 256), 2), (8, (1024, 1024, 256), 2), (8, (2048, 1), 1), (1, (256,), 0), (8, (2049,), 0)],
    )
    def test_at_most_half_of_the_slots_and_half_of_the_arena(
        self, count: int, sizes: tuple[int, ...], pinned: int
    ) -> None:
        slots = Slots(count, CAPACITY)
        for i, size in enumerate(sizes):
            slots.reserve(str(i), size)
            slots.ready(str(i))
        for i in range(pinned):
            slots.pin(str(i))
            slots.pin(str(i))
        with pytest.raises(Overloaded, match="unpin another version") as refused:
            slots.pin(str(pinned))
        assert (refused.value.reason, refused.value.retry_after_s) == ("TOO_MANY_PINNED", None)

    def test_what_will_be_pinned_gathers_at_the_end_and_leaves_the_rest_whole(self) -> None:
        slots = Slots(8, CAPACITY)
        for i in range(6):
            slot, _ = slots.reserve(str(i), 256, at_end=i % 2 == 0)
            assert slot is not None
            slots.ready(str(i))
            if i % 2 == 0:
                slots.pin(str(i))
        assert [slot.offset for slot in slots if slot.pinned] == [CAPACITY - 256, CAPACITY - 512, CAPACITY - 768]
        assert slots.can_have_room(CAPACITY - 768)
        assert not slots.can_have_room(CAPACITY - 767)


class SlotsMachine(RuleBasedStateMachine):
    """Any order of calls keeps every promise of the module's docstring."""

    digests = Bundle("digests")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(4, CAPACITY)
        self.holds: dict[str, int] = {}
        self.pinned: set[str] = set()

    @rule(target=digests, name=st.sampled_from("abcdefgh"))
    def name(self, name: str) -> str:
        return name

    @rule(digest=digests, size=st.integers(1, CAPACITY))
    def reserve(self, digest: str, size: int) -> None:
        if digest in self.slots:
            return
        before = {slot.digest for slot in self.slots}
        has_room, can_have_room = self.slots.has_room(size), self.slots.can_have_room(size)
        slot, evicted = self.slots.reserve(digest, size, at_end=size % 2 == 0)
        assert (slot is not None) == has_room <= can_have_room
        assert all(self.holds.get(old.digest, 0) == 0 and old.digest not in self.pinned for old in evicted)
        assert {old.digest for old in evicted} <= before
        if slot is not None:
            assert slot.state is SlotState.LOADING
            self.slots.ready(digest)

    @rule(digest=digests)
    def hold(self, digest: str) -> None:
        slot = self.slots.get(digest)
        held = self.slots.hold(digest)
        assert (held is None) == (slot is None or slot.closing)
        if held is not None:
            self.holds[digest] = self.holds.get(digest, 0) + 1

    @precondition(lambda self: any(self.holds.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(d for d, n in self.holds.items() if n)))
        self.slots.release(digest)
        self.holds[digest] -= 1

    @rule(digest=digests)
    def pin(self, digest: str) -> None:
        if digest not in self.slots or digest in self.pinned or self.slots.hold(digest) is None:
            return
        slots = [slot for slot in self.slots if slot.digest in {digest, *self.pinned}]
        total = sum(-(-slot.num_bytes // 256) * 256 for slot in slots)
        if len(slots) <= 4 // 2 and total <= CAPACITY // 2:
            self.slots.pin(digest)
            self.pinned.add(digest)
        else:
            with pytest.raises(Overloaded):
                self.slots.pin(digest)
            self.slots.release(digest)

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        digest = self.pinned.pop()
        self.slots.unpin(digest)
        self.slots.release(digest)

    @rule(size=st.integers(1, CAPACITY))
    def everybody_leaves(self, size: int) -> None:
        for digest, holds in self.holds.items():
            for _ in range(holds):
                self.slots.release(digest)
        self.holds.clear()
        assert self.slots.can_have_room(size) == self.slots.has_room(size)

    @rule()
    def close_one(self) -> None:
        self.slots.close_one()
        assert sum(slot.closing for slot in self.slots) <= 1
        assert not any(slot.closing and slot.pinned for slot in self.slots)

    @invariant()
    def slots_are_disjoint_and_held_ones_stay(self) -> None:
        held = list(self.slots)
        assert len({slot.index for slot in held}) == len(held) <= 4
        assert all(1 <= slot.index <= 4 for slot in held)
        spans = sorted((slot.offset, slot.offset + slot.num_bytes) for slot in held)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        for digest in {*self.holds, *self.pinned}:
            holds = self.holds.get(digest, 0) + (digest in self.pinned)
            if holds:
                slot = self.slots.get(digest)
                assert slot is not None
                assert slot.holds == holds
                assert slot.pinned == (digest in self.pinned)


TestSlotsMachine = SlotsMachine.TestCase
