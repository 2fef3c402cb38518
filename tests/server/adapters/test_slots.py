"""Slots: the bookkeeping that decides who is on the device."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from adamix.errors import InternalError, Overloaded
from adamix_server.adapters.slots import Extents, Slots, SlotState

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
        slots.pin("a")
        slots.unpin("a")
        slot, evicted = slots.reserve("c", 256)
        assert slot is not None
        assert [s.digest for s in evicted] == ["b"]
        assert "a" in slots

    def test_a_pinned_slot_is_never_taken(self) -> None:
        slots = filled("a", "b")
        slots.pin("a")
        slots.pin("b")
        assert slots.reserve("c", 256) == (None, [])
        slots.unpin("b")
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
        slots.pin("a")
        slots.pin("b")
        assert slots.reserve("c", 256)[0] is None

    def test_a_closing_slot_takes_no_new_pins_so_that_a_waiting_adapter_gets_in(self) -> None:
        slots = filled("a", "b")
        slots.pin("a")
        slots.pin("b")
        slots.close_one()
        assert slots.pin("a") is None
        assert slots.pin("b") is not None
        slots.close_one()
        assert slots.pin("b") is not None, "one at a time"
        slots.unpin("a")
        slot, evicted = slots.reserve("c", 256)
        assert slot is not None
        assert [s.digest for s in evicted] == ["a"]

    def test_unbalanced_releases_are_bugs(self) -> None:
        slots = filled("a")
        with pytest.raises(InternalError, match="more often than pinned"):
            slots.unpin("a")
        slots.pin("a")
        with pytest.raises(InternalError, match="freed while pinned"):
            slots.drop("a")


class TestKeeping:
    def test_a_kept_slot_is_never_closed(self) -> None:
        slots = filled("a", "b", count=2)
        for digest in "ab":
            slots.pin(digest)
        slots.keep("a")
        slots.close_one()
        assert slots.pin("a") is not None
        assert slots.pin("b") is None
        slots.let_go("a")
        slots.let_go("unknown")

    def test_a_closing_slot_that_is_kept_opens_again(self) -> None:
        slots = filled("a", "b", count=2)
        for digest in "ab":
            slots.pin(digest)
        slots.close_one()
        slots.keep("a")
        assert slots.pin("a") is not None
        slots.close_one()
        assert slots.pin("b") is None, "another one closes instead"

    @pytest.mark.parametrize(
        ("count", "sizes", "kept"),
        [(4, (256, 256, 256), 2), (8, (1024, 1024, 256), 2), (8, (2048, 1), 1), (1, (256,), 0), (8, (2049,), 0)],
    )
    def test_at_most_half_of_the_slots_and_half_of_the_arena(
        self, count: int, sizes: tuple[int, ...], kept: int
    ) -> None:
        slots = Slots(count, CAPACITY)
        for i, size in enumerate(sizes):
            slots.reserve(str(i), size)
            slots.ready(str(i))
        for i in range(kept):
            slots.keep(str(i))
            slots.keep(str(i))
        with pytest.raises(Overloaded, match="unpin another version") as refused:
            slots.keep(str(kept))
        assert (refused.value.reason, refused.value.retry_after_s) == ("TOO_MANY_PINNED", None)

    def test_what_will_be_kept_gathers_at_the_end_and_leaves_the_rest_whole(self) -> None:
        slots = Slots(8, CAPACITY)
        for i in range(6):
            slot, _ = slots.reserve(str(i), 256, at_end=i % 2 == 0)
            assert slot is not None
            slots.ready(str(i))
            if i % 2 == 0:
                slots.keep(str(i))
        assert [slot.offset for slot in slots if slot.kept] == [CAPACITY - 256, CAPACITY - 512, CAPACITY - 768]
        assert slots.can_have_room(CAPACITY - 768)
        assert not slots.can_have_room(CAPACITY - 767)


class SlotsMachine(RuleBasedStateMachine):
    """Any order of calls keeps every promise of the module's docstring."""

    digests = Bundle("digests")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(4, CAPACITY)
        self.pins: dict[str, int] = {}
        self.kept: set[str] = set()

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
        assert all(self.pins.get(old.digest, 0) == 0 and old.digest not in self.kept for old in evicted)
        assert {old.digest for old in evicted} <= before
        if slot is not None:
            assert slot.state is SlotState.LOADING
            self.slots.ready(digest)

    @rule(digest=digests)
    def pin(self, digest: str) -> None:
        slot = self.slots.get(digest)
        pinned = self.slots.pin(digest)
        assert (pinned is None) == (slot is None or slot.closing)
        if pinned is not None:
            self.pins[digest] = self.pins.get(digest, 0) + 1

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(d for d, n in self.pins.items() if n)))
        self.slots.unpin(digest)
        self.pins[digest] -= 1

    @rule(digest=digests)
    def keep(self, digest: str) -> None:
        if digest not in self.slots or digest in self.kept or self.slots.pin(digest) is None:
            return
        slots = [slot for slot in self.slots if slot.digest in {digest, *self.kept}]
        total = sum(-(-slot.num_bytes // 256) * 256 for slot in slots)
        if len(slots) <= 4 // 2 and total <= CAPACITY // 2:
            self.slots.keep(digest)
            self.kept.add(digest)
        else:
            with pytest.raises(Overloaded):
                self.slots.keep(digest)
            self.slots.unpin(digest)

    @precondition(lambda self: self.kept)
    @rule()
    def let_go(self) -> None:
        digest = self.kept.pop()
        self.slots.let_go(digest)
        self.slots.unpin(digest)

    @rule(size=st.integers(1, CAPACITY))
    def everybody_leaves(self, size: int) -> None:
        for digest, pins in self.pins.items():
            for _ in range(pins):
                self.slots.unpin(digest)
        self.pins.clear()
        assert self.slots.can_have_room(size) == self.slots.has_room(size)

    @rule()
    def close_one(self) -> None:
        self.slots.close_one()
        assert sum(slot.closing for slot in self.slots) <= 1
        assert not any(slot.closing and slot.kept for slot in self.slots)

    @invariant()
    def slots_are_disjoint_and_pinned_ones_stay(self) -> None:
        held = list(self.slots)
        assert len({slot.index for slot in held}) == len(held) <= 4
        assert all(1 <= slot.index <= 4 for slot in held)
        spans = sorted((slot.offset, slot.offset + slot.num_bytes) for slot in held)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        for digest in {*self.pins, *self.kept}:
            pins = self.pins.get(digest, 0) + (digest in self.kept)
            if pins:
                slot = self.slots.get(digest)
                assert slot is not None
                assert slot.pins == pins
                assert slot.kept == (digest in self.kept)


TestSlotsMachine = SlotsMachine.TestCase
