"""Places to receive in: shares, turns by connection, and nobody without a message in the way of others."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import AdamixError
from adamix_server.frontend.boundary.bounds import BOUNDS
from adamix_server.frontend.boundary.places import Place, Places
from adamix_server.frontend.boundary.rooms import Origin

QUICK = replace(BOUNDS, message_s=0.4, turn_s=0.2, patience_s=0.04, late_s=5.0)
NEVER = replace(BOUNDS, message_s=60.0, turn_s=60.0, patience_s=60.0)


@contextmanager
def places_of(size: int, seats: int = 0, bounds: object = NEVER) -> Iterator[Places]:
    places = Places(size, seats, bounds)  # type: ignore[arg-type]
    try:
        yield places
    finally:
        places.close()


def make_known(places: Places, *names: str) -> None:
    """Connections whose last message was small."""
    for name in names:
        place = places.take(Origin(name), is_first=True)
        assert place is not None
        places.give(place, is_small=True)


async def receive(places: Places, name: str, seconds: float = 60.0, *, is_first: bool = True) -> str:
    """Read for so long; how it ended."""
    origin = Origin(name)
    try:
        place = places.take(origin, is_first=is_first) or await places.turn(origin, is_first=is_first)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if place.error is not None and place.was_ended():
                raise place.error from None
            raise
        finally:
            places.give(place)
    except AdamixError as error:
        return error.reason
    return "read"


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places_and_shares() -> None:
    assert (BOUNDS.reading, BOUNDS.reading_uploads, BOUNDS.reading_kept) == (64, 16, 32)
    with places_of(64) as places:
        # Of strangers, a connection takes a quarter of what is free, and all of them half.
        assert sum(places.take(Origin("one"), is_first=True) is not None for _ in range(64)) == 13
        taken = sum(places.take(Origin(f"c{n}"), is_first=True) is not None for n in range(64))
        assert 13 + taken == 32
        held = list(places._held)
        for place in held:
            places.give(place)
        make_known(places, *(f"c{n}" for n in range(64)))
        assert sum(places.take(Origin(f"c{n}"), is_first=True) is not None for n in range(64)) == 64
        assert places.take(Origin("c1"), is_first=True) is None


async def test_a_large_message_makes_a_stranger_of_its_connection() -> None:
    with places_of(2) as places:
        make_known(places, "a", "b")
        first = places.take(Origin("a"), is_first=True)
        assert first is not None
        second = places.take(Origin("b"), is_first=True)
        assert second is not None
        places.give(second, is_small=False)
        assert places.take(Origin("b"), is_first=True) is None


async def test_connections_take_turns() -> None:
    order = []

    async def wait(name: str) -> None:
        place = await places.turn(Origin(name), is_first=True)
        order.append(name)
        await asyncio.sleep(0.001)
        places.give(place, is_small=True)

    with places_of(1) as places:
        make_known(places, "hog", "a", "b", "z")
        place = places.take(Origin("z"), is_first=True)
        assert place is not None
        waiting = [asyncio.create_task(wait(name)) for name in ("hog",) * 4 + ("a", "b", "b")]
        await settled()
        places.give(place)
        await asyncio.gather(*waiting)
    assert order == ["hog", "a", "b", "hog", "b", "hog", "hog"]


async def test_who_sends_nothing_makes_way_for_who_waits() -> None:
    with places_of(8, bounds=QUICK) as places:
        hostile = [asyncio.create_task(receive(places, f"h{n}")) for n in range(12)]
        await settled()
        assert await receive(places, "good", 0.001) == "read"
        # A connection that was late is served after the others.
        assert set(await asyncio.gather(*hostile)) <= {"MESSAGE_LATE", "READING_FULL"}


async def test_nobody_is_hurried_while_nobody_waits() -> None:
    with places_of(8, bounds=QUICK) as places:
        assert await receive(places, "slow", 0.2) == "read"
        assert await receive(places, "slower") == "MESSAGE_LATE"


async def test_who_waits_for_its_own_connections_share_hurries_nobody() -> None:
    with places_of(8, bounds=QUICK) as places:
        slow = asyncio.create_task(receive(places, "other", 0.2))
        mine = [asyncio.create_task(receive(places, "mine", 0.2)) for _ in range(3)]
        await settled()
        outcomes = await asyncio.gather(slow, *mine)
    assert outcomes[0] == "read"
    assert "MESSAGE_LATE" not in outcomes


async def test_who_waits_too_long_is_refused() -> None:
    bounds = replace(NEVER, turn_s=0.02)
    with places_of(2, bounds=bounds) as places:
        place = places.take(Origin("a"), is_first=True)
        assert place is not None
        assert await receive(places, "b") == "READING_FULL"
        places.give(place)
        # It waits no more, and kept nothing.
        assert places._room.free == 2


async def test_a_stream_that_waits_moves_to_a_seat() -> None:
    assert (BOUNDS.seats, BOUNDS.upload_seats) == (512, 64)
    with places_of(2, 4, QUICK) as places:
        idle = [asyncio.create_task(receive(places, "idle", is_first=False)) for _ in range(2)]
        await asyncio.sleep(0.15)
        # One has a seat, the other the seat's connection share at most; nobody was ended.
        assert not any(task.done() for task in idle)
        assert await receive(places, "good", 0.001) == "read"
        for task in idle:
            task.cancel()
        await asyncio.gather(*idle, return_exceptions=True)
        assert (places._room.free, places._seats.free) == (2, 4)


async def test_streams_of_small_messages_have_seats_at_once() -> None:
    with places_of(8, 64) as places:
        make_known(places, "gateway")
        seats = [places.take(Origin("gateway"), is_first=False) for _ in range(12)]
        assert None not in seats
        # They keep no place from a call of the same connection, and are never in anybody's way.
        assert places._room.free == 8
        assert not places._held
        # Of a connection whose messages are large, each counts as one.
        large = places.take(Origin("large"), is_first=False)
        assert large is not None
        assert places._room.free == 7
        for place in (large, *filter(None, seats)):
            places.give(place)
        assert (places._room.free, places._seats.free) == (8, 64)


async def test_a_place_granted_to_who_was_cancelled_is_not_lost() -> None:
    with places_of(1) as places:
        make_known(places, "a", "b")
        place = places.take(Origin("a"), is_first=True)
        assert place is not None
        waiting = asyncio.create_task(receive(places, "b"))
        await settled()
        places.give(place)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert places._room.free == 1
        assert not places._waiting


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcde"), st.booleans()), max_size=60))
def test_no_place_is_lost_whatever_happens(steps: list[tuple[int, str, bool]]) -> None:
    async def play() -> None:
        with places_of(4, 2) as places:
            held: list[Place] = []
            waiting: list[asyncio.Task[Place]] = []
            for act, name, flag in steps:
                if act == 0 and (place := places.take(Origin(name), is_first=flag)) is not None:
                    held.append(place)
                elif act == 1:
                    waiting.append(asyncio.create_task(places.turn(Origin(name), is_first=flag)))
                elif act == 2 and held:
                    places.give(held.pop(0), is_small=flag)
                elif act == 3 and waiting:
                    waiting[0].cancel()
                    if not flag:
                        await settled()
                for task in [task for task in waiting if task.done()]:
                    waiting.remove(task)
                    if not task.cancelled():
                        held.append(task.result())
                assert 0 <= places._room.free <= 4
            for _ in range(100):
                await settled()
                for task in [task for task in waiting if task.done()]:
                    waiting.remove(task)
                    if not task.cancelled():
                        held.append(task.result())
                if not held and not waiting:
                    break
                while held:
                    places.give(held.pop(), is_small=True)
            assert not waiting, "somebody waits while all places are free"
            assert places._room.free == 4
            assert not places._held

    asyncio.run(play())


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_unix_socket_has_no_share(trusted: bool) -> None:
    with places_of(64) as places:
        origin = Origin("unix:", is_trusted=trusted)
        assert sum(places.take(origin, is_first=True) is not None for _ in range(70)) == (64 if trusted else 13)
