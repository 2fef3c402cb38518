"""Shares of a front end's part of the queue: whoever comes new finds room, and nobody takes what there is not."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.access.quotas import DEFAULT_SHARES, Shares
from adamix_server.frontend.queue_room import MOST_WEIGHT, Room

BATCH = Shares(service_class="batch")
FULL = 512


def room_of(tokens: int, inputs: int | None = None, least_tokens: int = FULL) -> Room:
    room = Room(least_tokens)
    room.grant(tokens, tokens if inputs is None else inputs)
    return room


def fill(room: Room, *tenants: str, shares: Shares = DEFAULT_SHARES, tokens: int = 1) -> list[int]:
    """In turns take inputs of so many tokens until none of these finds more room; the tokens that each has then."""
    asking = list(tenants)
    while asking:
        for tenant in list(asking):
            if room.lack(tenant, shares, tokens):
                asking.remove(tenant)
            else:
                room.take(tenant, shares, tokens)
    return [room.tokens_of(tenant) for tenant in tenants]


def test_the_share_of_a_tenant_is_met_exactly() -> None:
    room = room_of(1000, least_tokens=0)
    assert room.lack("a", DEFAULT_SHARES, 500, 500) == ""
    assert room.lack("a", DEFAULT_SHARES, 501) == "share"
    assert room.lack("a", DEFAULT_SHARES, 1, 501) == "share"
    assert room.lack("a", Shares(weight=3), 750) == ""
    assert room.lack("a", Shares(weight=3), 751) == "share"
    for weight in (MOST_WEIGHT, 1000):
        assert room.lack("a", Shares(weight=weight), 888) == ""
        assert room.lack("a", Shares(weight=weight), 889) == "share"
    room.take("a", DEFAULT_SHARES, 500, 3)
    assert room.lack("a", DEFAULT_SHARES, 1) == "share"
    assert room.lack("b", DEFAULT_SHARES, 250) == ""
    assert room.lack("b", DEFAULT_SHARES, 251) == "share"
    assert room.lack("b", DEFAULT_SHARES, 501) == "credit"
    # What has ended is free only when it is granted again.
    room.end("a", 100)
    assert room.lack("a", DEFAULT_SHARES, 50) == ""
    assert room.lack("a", DEFAULT_SHARES, 51) == "share"
    room.grant(100, 1)
    assert room.lack("a", DEFAULT_SHARES, 100) == ""
    assert room.lack("a", DEFAULT_SHARES, 101) == "share"


@given(st.integers(1, 12), st.integers(500, 100_000))
def test_equal_tenants_each_end_near_their_part(tenants: int, size: int) -> None:
    unit = max(size // 500, 1)
    held = fill(room_of(size, least_tokens=0), *(f"t{n}" for n in range(tenants)), tokens=unit)
    assert held == pytest.approx([size / (tenants + 1)] * tenants, abs=2 * unit)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 5_000)), max_size=30))
def test_whoever_comes_new_finds_room_whatever_the_others_ask_for(asked: list[tuple[int, int]]) -> None:
    room = room_of(10_000, least_tokens=0)
    for weight, tokens in asked:
        tenant, shares = f"t{weight % 7}", Shares(weight=weight)
        if not room.lack(tenant, shares, tokens):
            room.take(tenant, shares, tokens)
            # It has left an eighth of what it has, of which a newcomer may have half.
            assert MOST_WEIGHT * room.free_tokens >= room.tokens_of(tenant)
            assert room.lack("new", DEFAULT_SHARES, room.free_tokens // 2) == ""


def test_who_holds_nothing_fits_one_input_of_full_length_whatever_the_room() -> None:
    room = room_of(2 * FULL + 10)
    room.take("a", DEFAULT_SHARES, FULL)
    assert room.lack("b", DEFAULT_SHARES, FULL) == ""
    room.take("b", DEFAULT_SHARES, FULL)
    assert room.lack("c", BATCH, 10) == ""
    assert room.lack("c", DEFAULT_SHARES, FULL) == "credit"
    assert room.lack("b", DEFAULT_SHARES, 10) == "share"


def test_the_only_tenant_there_is_may_have_all_of_it() -> None:
    room = room_of(1000, inputs=8)
    room.take("a", BATCH, 900, 7)
    assert room.lack("a", BATCH, 100, is_shared=False) == ""
    assert room.lack("a", BATCH, 101, is_shared=False) == "credit"
    assert room.lack("a", BATCH, 1, 2, is_shared=False) == "credit"


def test_the_class_batch_has_half_of_the_room_together_however_full_it_is_of_others() -> None:
    room = room_of(16_000, least_tokens=0)
    held = fill(room, *(f"b{n}" for n in range(8)), shares=BATCH, tokens=10)
    assert sum(held) == pytest.approx(8_000, abs=20)
    assert room.lack("new", DEFAULT_SHARES, 4_000) == ""
    # Floods of the other class leave less than half of the room, and this class still gets in.
    room = room_of(16_000, least_tokens=0)
    fill(room, *(f"i{n}" for n in range(5)), tokens=10)
    assert room.tokens > 0.8 * 16_000
    assert fill(room, "b", shares=BATCH, tokens=10)[0] > 1_000
    # A tenant that changes its class takes what it holds along.
    room = room_of(1_000, least_tokens=0)
    room.take("a", DEFAULT_SHARES, 400)
    room.take("a", BATCH, 100)
    assert room.lack("b", BATCH, 10) == "share"
    room.put_back("a", 10)
    assert room.lack("b", BATCH, 10) == ""
    room.take("b", BATCH, 10)
    assert room.lack("c", BATCH, 10) == "share"
    room.take("a", DEFAULT_SHARES, 1)
    assert room.lack("c", BATCH, 10) == ""


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "end", "put_back", "grant"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 60),
        st.integers(1, 4),
        st.sampled_from([DEFAULT_SHARES, BATCH, Shares(weight=3), Shares(weight=1000)]),
        st.booleans(),
    ),
    max_size=60,
)


@given(st.integers(0, 300), st.integers(0, 12), steps)
def test_there_is_never_more_taken_than_was_granted_and_nothing_is_lost(tokens: int, inputs: int, steps: list) -> None:  # type: ignore[type-arg] # as above
    room = room_of(tokens, inputs, least_tokens=40)
    held: list[tuple[str, int, int]] = []
    for what, tenant, size, count, shares, is_shared in steps:
        if what == "grant":
            room.grant(size, count)
            tokens, inputs = tokens + size, inputs + count
        elif what == "take" and not room.lack(tenant, shares, size, count, is_shared=is_shared):
            room.take(tenant, shares, size, count)
            held.append((tenant, size, count))
        elif what in ("end", "put_back") and held:
            tenant, size, count = held.pop(size % len(held))
            (room.end if what == "end" else room.put_back)(tenant, size, count)
            if what == "end":
                # Kept by who granted it.
                tokens, inputs = tokens - size, inputs - count
        assert room.free_tokens >= 0
        assert room.free_inputs >= 0
        assert room.free_tokens + room.tokens == tokens
        assert room.free_inputs + room.inputs == inputs
        of_tenants: Counter[str] = Counter()
        for tenant, size, _ in held:
            of_tenants[tenant] += size
        assert {name: room.tokens_of(name) for name in "abc"} == {name: of_tenants[name] for name in "abc"}
    for each in held:
        room.end(*each)
    assert (room.tokens, room.inputs, room._holders, room._batch.tokens, room._batch.inputs) == (0, 0, {}, 0, 0)


def test_shares_of_all_the_room_would_let_a_flood_have_a_whole_front_end() -> None:
    """The trap: thresholds over the whole queue, while each of three front ends has a third of its credit."""
    whole, front_ends, steps = 60_000, 3, 2_000
    elsewhere = whole - whole // front_ends

    def refused(*, is_of_its_own: bool) -> float:
        here, count = room_of(whole // front_ends, least_tokens=0), 0

        def fits(tenant: str, tokens: int) -> bool:
            if is_of_its_own:
                return not here.lack(tenant, DEFAULT_SHARES, tokens)
            free = here.free_tokens - tokens
            return free >= 0 and here.tokens_of(tenant) + tokens <= free + elsewhere

        for step in range(steps):
            # One call of the victim in five comes in the moment after a batch, before the flood has its room again.
            if step and step % 5 == 0:
                here.put_back("flood", 64)
            else:
                while fits("flood", 64):
                    here.take("flood", DEFAULT_SHARES, 64)
            count += not fits("victim", 40)
        return count / steps

    assert refused(is_of_its_own=False) == pytest.approx(0.8, abs=0.01)
    assert refused(is_of_its_own=True) == 0
