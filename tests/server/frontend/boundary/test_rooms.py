"""Shares of a room: nobody takes more than there is, whoever comes new finds some, and nothing is lost."""

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.frontend.boundary.rooms import ADDRESS_SHARE, CONNECTION_SHARE, Origin, Room, TenantParts, origin_of

PROXIES = (ipaddress.ip_network("10.1.0.0/16"),)

origins = st.builds(
    Origin,
    st.sampled_from([f"c{n}" for n in range(8)]),
    st.sampled_from(["", "10.0.0.1", "10.0.0.2"]),
    st.booleans(),
).map(lambda origin: origin if not origin.is_trusted else Origin("unix:", is_trusted=True))


@given(
    st.integers(1, 64),
    st.integers(1, 8),
    st.lists(st.tuples(st.booleans(), origins, st.integers(1, 16), st.integers(0, 32))),
)
def test_a_room_is_never_overdrawn_and_every_share_is_kept(
    size: int, least: int, steps: list[tuple[bool, Origin, int, int]]
) -> None:
    room, held = Room(size, least), Counter[Origin]()
    for takes, origin, amount, extra in steps:
        free = room.free
        if takes:
            need = amount + extra
            mine = sum(n for other, n in held.items() if other.connection == origin.connection)
            beside = sum(n for other, n in held.items() if origin.address and other.address == origin.address)
            fits = need <= free and (
                origin.is_trusted
                or (
                    mine + need <= max(least, free // CONNECTION_SHARE)
                    and (not origin.address or beside + need <= max(least, free // ADDRESS_SHARE))
                )
            )
            assert room.take(origin, amount, need) is fits
            held[origin] += amount * fits
        elif held[origin] >= amount:
            room.give(origin, amount)
            held[origin] -= amount
        assert room.free == size - sum(held.values())
        assert room.free >= 0
    for origin, amount in held.items():
        if amount:
            room.give(origin, amount)
    assert room.free == size
    assert not room._held


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_whoever_comes_new_finds_room_while_any_is_free(size: int, hogs: int) -> None:
    room = Room(size)
    for hog in range(hogs):
        while room.take(Origin(f"hog{hog}"), 1):
            pass
    is_free = room.free > 0
    assert room.take(Origin("new"), 1) is is_free


def test_one_connection_takes_a_fifth_and_one_address_a_third() -> None:
    # A quarter of what the others leave free.
    room = Room(10_000)
    assert sum(room.take(Origin("one"), 1) for _ in range(10_000)) == 2_000
    room = Room(10_000)
    taken = sum(room.take(Origin(f"c{n % 500}", "10.0.0.1"), 1) for n in range(10_000))
    assert taken == 3_333


@pytest.mark.parametrize(
    ("peer", "origin"),
    [
        ("ipv4:127.0.0.1:5000", Origin("ipv4:127.0.0.1:5000")),
        ("ipv6:%5B::1%5D:5000", Origin("ipv6:%5B::1%5D:5000")),
        ("ipv6:[::ffff:127.0.0.1]:5000", Origin("ipv6:[::ffff:127.0.0.1]:5000")),
        ("ipv4:10.0.0.7:5000", Origin("ipv4:10.0.0.7:5000", "10.0.0.7")),
        ("ipv6:%5B2001:db8::7%5D:5000", Origin("ipv6:%5B2001:db8::7%5D:5000", "2001:db8::7")),
        ("ipv6:%5Bfe80::7%25eth0%5D:5000", Origin("ipv6:%5Bfe80::7%25eth0%5D:5000", "fe80::7")),
        ("ipv6:%5B::ffff:10.0.0.7%5D:5000", Origin("ipv6:%5B::ffff:10.0.0.7%5D:5000", "10.0.0.7")),
        ("ipv4:10.1.2.3:5000", Origin("ipv4:10.1.2.3:5000")),
        ("unix:", Origin("unix:", is_trusted=True)),
        ("unix:/run/adamix.sock", Origin("unix:/run/adamix.sock", is_trusted=True)),
    ],
)
def test_where_a_call_comes_from(peer: str, origin: Origin) -> None:
    assert origin_of(peer, PROXIES) == origin


@given(
    st.integers(4, 64),
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "a", "b", "c"]), st.integers(1, 16))),
)
def test_a_tenant_has_a_quarter_while_others_hold_any(size: int, steps: list[tuple[bool, str, int]]) -> None:
    parts, held = TenantParts(size), Counter[str]()
    for takes, tenant, amount in steps:
        if takes:
            others = any(held[other] for other in "abc" if other != tenant)
            may = not tenant or not held[tenant] or not others or held[tenant] + amount <= size // 4
            assert parts.may_take(tenant, amount) is may
            if may:
                parts.take(tenant, amount)
                held[tenant] += amount
        elif held[tenant] >= amount:
            parts.give(tenant, amount)
            held[tenant] -= amount
    for tenant, amount in held.items():
        if amount:
            parts.give(tenant, amount)
    assert not parts._held
