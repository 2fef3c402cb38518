"""Streams that end with their credential: revoked, expired by whatever clock, or good for something else now."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from adamix.errors import AdamixError, PermissionDenied, Unauthenticated
from adamix_protos.v1 import inference_pb2
from adamix_server.access.principal import ANYONE, NOBODY, Principal
from adamix_server.access.refusal import unauthenticated
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.boundary.gate import Gate
from adamix_server.frontend.boundary.quota import Quota, Seat
from adamix_server.frontend.boundary.sessions import Session, Sessions
from adamix_testing.bare_boundary import PREDICT, PREDICT_STREAM, BareBoundary
from adamix_testing.credentials import make_clock
from adamix_testing.event_loop import clean_loop
from adamix_testing.refusals import refusal


@pytest.fixture(autouse=True)
async def each_test_leaves_a_clean_loop() -> AsyncIterator[None]:
    async with clean_loop():
        yield


class Streams:
    """Sessions over a world that a test changes."""

    def __init__(self) -> None:
        self.hands, clock = make_clock()
        self.basis: tuple[object, ...] = (object(),)
        self.world: dict[str, Principal | AdamixError] = {}
        self.asked: list[str] = []
        self.ended: dict[str, str] = {}
        self.sessions = Sessions(lambda: self.basis, clock)

    def recognise(self, name: str) -> Principal:
        self.asked.append(name)
        found = self.world[name]
        if isinstance(found, AdamixError):
            raise found
        return found

    async def start(self, name: str, expire_time_s: float = float("inf")) -> "asyncio.Task[None]":
        principal = Principal(name, "acme", frozenset({"infer"}), expire_time_s=expire_time_s)
        self.world[name] = principal
        opened = asyncio.Event()

        async def stream() -> None:
            call = Call("1", "/m", float("inf"), principal=principal)
            session = self.sessions.open(call, lambda: self.recognise(name))
            assert isinstance(session, Session)
            opened.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.sessions.close(session)
                if session.error is None or not session.was_ended():
                    raise
                self.ended[name] = session.error.reason

        task = asyncio.create_task(stream())
        await opened.wait()
        return task

    async def look(self) -> dict[str, str]:
        await self.sessions.look()
        await asyncio.sleep(0)
        return self.ended


async def gone(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_callers_are_asked_for_again_once_something_has_changed_and_only_then() -> None:
    streams = Streams()
    tasks = [await streams.start(name) for name in ("a", "b", "c", "d")]
    assert await streams.look() == {}
    assert streams.asked == []
    streams.world["a"] = unauthenticated()
    streams.world["b"] = PermissionDenied("no", reason="RIGHT_MISSING")
    streams.world["c"] = Principal("c", "another", frozenset({"infer"}))
    streams.basis = (object(),)
    assert await streams.look() == {"a": "KEY_INVALID", "b": "RIGHT_MISSING", "c": "KEY_INVALID"}
    assert streams.asked == ["a", "b", "c", "d"]
    await streams.look()
    assert streams.asked == ["a", "b", "c", "d"]
    await gone(*tasks)


async def test_one_who_cannot_be_recognised_is_nobody_and_the_others_are_looked_at() -> None:
    streams = Streams()
    tasks = [await streams.start(name) for name in ("a", "b")]
    del streams.world["a"]
    streams.world["b"] = unauthenticated()
    streams.basis = (object(),)
    assert await streams.look() == {"a": "KEY_INVALID", "b": "KEY_INVALID"}
    await gone(*tasks)


async def test_expiry_is_a_matter_of_the_clock_however_it_jumps() -> None:
    streams = Streams()
    tasks = [await streams.start("late", 5_000.0), await streams.start("soon", 1_010.0), await streams.start("never")]
    for name in ("late", "soon"):
        streams.world[name] = unauthenticated()
    streams.hands[0] = 1_009.9
    assert await streams.look() == {}
    streams.hands[0] = 1_010.0
    assert list(await streams.look()) == ["soon"]
    streams.hands[0] = 900.0
    assert list(await streams.look()) == ["soon"]
    streams.hands[0] = 9_000.0
    assert list(await streams.look()) == ["soon", "late"]
    await gone(*tasks)


async def test_streams_that_have_ended_are_forgotten() -> None:
    streams = Streams()
    for number in range(200):
        await gone(await streams.start(str(number), 5_000.0))
    await streams.look()
    assert len(streams.sessions._expiring) < 100
    assert not streams.sessions._open
    streams.hands[0] = 9_000.0
    assert await streams.look() == {}
    assert streams.asked == []


async def test_who_was_asked_for_nothing_is_not_looked_after() -> None:
    sessions = Sessions()
    for principal in (ANYONE, NOBODY):
        assert sessions.open(Call("1", "/m", 1.0, principal=principal), lambda: ANYONE) is None


async def test_a_client_that_leaves_at_that_moment_has_left() -> None:
    streams = Streams()
    task = await streams.start("a")
    streams.world["a"] = unauthenticated()
    streams.basis = (object(),)
    task.cancel()
    await streams.sessions.look()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert streams.ended == {}


async def test_a_cancellation_that_comes_after_the_end_is_taken() -> None:
    async def stream() -> str:
        principal = Principal("a", "acme", frozenset({"infer"}))
        session = Session(asyncio.get_running_loop(), Call("1", "/m", 1.0, principal=principal), lambda: principal)
        session.end_with(unauthenticated())
        await session.settle()
        await asyncio.sleep(0)
        return "went on"

    task = asyncio.create_task(stream())
    assert await task == "went on"
    assert task.cancelling() == 0


def test_the_one_answer() -> None:
    assert isinstance(unauthenticated(), Unauthenticated)


class Door:
    """A boundary whose one caller has a key that ends, and whose quota takes its time."""

    def __init__(self) -> None:
        self.hands, clock = make_clock()
        self.basis: tuple[object, ...] = (object(),)
        self.principal = Principal("keys/a", "acme", frozenset({"infer"}), expire_time_s=2_000.0)
        self.is_known = True
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.sessions, door = Sessions(lambda: self.basis, clock), self

        class SlowQuota(Quota):
            async def enter(self, method: str, tenant: str) -> Seat | None:
                door.asked.set()
                await door.go_on.wait()
                return await super().enter(method, tenant)

        self.bare = BareBoundary(gate=Gate(self.identify), quota=SlowQuota(), sessions=self.sessions)

    def identify(self, _context: Any) -> Principal:
        if not self.is_known or self.hands[0] >= self.principal.expire_time_s:
            raise unauthenticated()
        return self.principal

    async def revoke(self) -> None:
        self.is_known, self.basis = False, (object(),)
        await self.sessions.look()


@pytest.mark.parametrize("method", [PREDICT, PREDICT_STREAM])
async def test_a_key_that_is_revoked_while_its_call_waits_for_a_quota_is_refused(method: str) -> None:
    door = Door()
    async with door.bare as bare:
        call = bare.connect().stream_stream(method)(timeout=10)
        await door.asked.wait()
        await door.revoke()
        door.go_on.set()
        assert await refusal(call.read()) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID")


async def test_who_keeps_a_call_waiting_may_ask_once_more_who_makes_it() -> None:
    door, waits, go_on = Door(), asyncio.Event(), asyncio.Event()
    door.go_on.set()

    async def behave() -> inference_pb2.PredictResponse:
        waits.set()
        await go_on.wait()
        calls.current().check()
        return inference_pb2.PredictResponse()

    async with door.bare as bare:
        bare.servicer.behave = behave
        go_on.set()
        await bare.predict()
        waits.clear()
        go_on.clear()
        late = asyncio.ensure_future(bare.predict())
        await waits.wait()
        await door.revoke()
        go_on.set()
        assert await refusal(late) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID")


async def test_a_call_that_is_held_back_until_its_key_has_expired_is_refused() -> None:
    door = Door()
    door.go_on.set()
    async with door.bare as bare:
        held = [bare.half_open() for _ in range(2)]
        await held[0].write(b"")
        await held[0].done_writing()
        await held[0]
        door.hands[0] = door.principal.expire_time_s
        await held[1].write(b"")
        await held[1].done_writing()
        assert await refusal(held[1]) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID")
