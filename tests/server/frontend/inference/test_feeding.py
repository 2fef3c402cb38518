"""Who is let into the queue, who waits for room and who is refused: in order, in turns, and nobody is forgotten."""

import asyncio
import dataclasses
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from adamix.errors import AdamixError, DeadlineExceeded, Overloaded, QuotaExceeded, Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_server.access.quotas import Quotas
from adamix_server.catalog.access import NO_ACCESS, TenantRow
from adamix_server.catalog.rows import Snapshot
from adamix_server.channel.engine_frames import Credit, Event, QueueState, Row
from adamix_server.channel.supervisor_frames import EngineDown, EngineMoving, EngineStalled
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.inference.feeding import Feeding, Place
from adamix_server.frontend.tenancy import Standing, Tenancy
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL, MAX_WAITING_INPUTS
from adamix_testing.fake_engine import ENGINE_ID, FakeEngine

NEVER = math.inf


class Scene:
    """A front end's feeding, over an engine that answers when the test says so. `tenants` are those of the server."""

    def __init__(self, spec: BackboneSpec, *tenants: str | TenantRow) -> None:
        rows = [
            TenantRow(tenant=row, etag="", create_time_us=0, update_time_us=0) if isinstance(row, str) else row
            for row in tenants
        ]
        self.snapshot = Snapshot(
            revision=0, tasks={}, access=dataclasses.replace(NO_ACCESS, tenants={row.tenant: row for row in rows})
        )
        self.engine = FakeEngine(spec)
        self.engine.hold = True
        self.link = EngineLink(self.engine.connect)
        self.feeding = Feeding(self.link, Tenancy(self))  # type: ignore[arg-type] # has all it asks of a view
        self._names: dict[int, str] = {}

    async def up(self, inputs: int, tokens: int) -> None:
        self.engine.credit = (inputs, tokens)
        await self.link.connect(self.engine.up())

    def rows(self, tenant: str, *names: str, tokens: int = 2) -> list[Row]:
        rows = [
            Row(id=self.link.next_id(), tenant=tenant, digest="a" * 64, token_ids=bytes(4 * tokens), deadline=1e9)
            for _ in names
        ]
        self._names.update((row.id, name) for row, name in zip(rows, names, strict=True))
        return rows

    def call(
        self, tenant: str, *names: str, tokens: int = 2, deadline: float = NEVER
    ) -> Sequence[asyncio.Future[Event]]:
        """A call of inputs that are named. Raises as `admit`."""
        with self.feeding.admit(tenant, tokens * len(names), len(names), deadline) as place:
            return self.feeding.submit(place, self.rows(tenant, *names, tokens=tokens))

    async def sent(self) -> list[str]:
        """All that have reached the engine, in order."""
        await settle()
        return [self._names[row.id] for submit in self.engine.submits for row in submit.rows]

    async def answer(self, *names: str) -> None:
        """Answer some of what the engine has, or all."""
        await settle()
        self.engine.answer([row for row in self.engine.held if not names or self._names[row.id] in names])
        await settle()

    def says(self, room: tuple[int, int] = (0, 0), **queue: Any) -> None:
        """The engine's word about its queue, and so many inputs and tokens of credit."""
        self.engine.emit(
            Credit(
                engine_id=ENGINE_ID,
                generation=self.engine.generation,
                inputs=room[0],
                tokens=room[1],
                queue=QueueState(**queue),
            )
        )

    def assert_nothing_is_left(self, inputs: int, tokens: int) -> None:
        assert self.link.moving is not None
        room = self.link.moving.room
        assert (room.free_inputs, room.free_tokens, room.inputs, room.tokens) == (inputs, tokens, 0, 0)
        feeding = self.feeding
        assert (feeding._lines, feeding._admitted, feeding._all_admitted) == ({}, {}, 0)
        assert (feeding._waiting.inputs, feeding._waiting.free_inputs) == (0, MAX_WAITING_INPUTS)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


Start = Callable[..., Any]


@pytest.fixture
async def start(spec: BackboneSpec) -> AsyncIterator[Start]:
    scenes: list[Scene] = []

    async def start(*tenants: str | TenantRow, inputs: int, tokens: int) -> Scene:
        scenes.append(Scene(spec, *tenants))
        await scenes[-1].up(inputs, tokens)
        return scenes[-1]

    yield start
    for scene in scenes:
        scene.link.close()


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


def reason_of(admit: Callable[[], object]) -> str:
    with pytest.raises(AdamixError) as caught:
        admit()
    return caught.value.reason


async def test_a_call_that_does_not_fit_is_fed_in_as_room_appears_in_order(start: Start) -> None:
    scene = await start("default", inputs=3, tokens=100)
    futures = scene.call("default", *names("a", 5))
    later = scene.call("default", *names("b", 2))
    assert await scene.sent() == names("a", 3)
    await scene.answer("a1")
    assert await scene.sent() == names("a", 4)
    await scene.answer()
    assert await scene.sent() == [*names("a", 5), *names("b", 2)]
    await scene.answer()
    assert [future.done() for future in (*futures, *later)] == [True] * 7
    scene.assert_nothing_is_left(3, 100)


async def test_a_single_input_does_not_begin_to_wait_and_does_not_overtake(start: Start) -> None:
    scene = await start("default", inputs=2, tokens=100)
    scene.call("default", "a")
    scene.call("default", "b")
    assert reason_of(lambda: scene.call("default", "c")) == "OVERLOADED"
    scene.call("default", "d", "e")
    scene.call("default", "f")
    for _ in range(3):
        await scene.answer()
    assert await scene.sent() == ["a", "b", "d", "e", "f"]
    scene.assert_nothing_is_left(2, 100)


async def test_tenants_take_turns_the_oldest_input_of_each_first(start: Start) -> None:
    scene = await start("a", "b", "z", inputs=1, tokens=32)
    scene.call("z", "z")
    scene.call("a", *names("a", 5))
    scene.call("b", *names("b", 5))
    # Whether room appears for one at a time, or for all at once.
    for last in ("z", "a0", "b0", "a1"):
        await scene.answer(last)
    assert await scene.sent() == ["z", "a0", "b0", "a1", "b1"]
    scene.says(room=(100, 1000))
    await settle()
    assert (await scene.sent())[5:] == ["a2", "b2", "a3", "b3", "a4", "b4"]
    await scene.answer()
    scene.assert_nothing_is_left(101, 1032)


async def test_a_tenant_has_its_share_and_others_find_room(start: Start) -> None:
    scene = await start("a", "b", inputs=100, tokens=100)
    for n in range(25):
        scene.call("a", f"a{n}")
    with pytest.raises(Overloaded) as caught:
        scene.call("a", "a25")
    assert caught.value.reason == "TENANT_QUEUE_FULL"
    assert caught.value.retry_after_s is not None
    scene.call("b", "b0")
    assert len(await scene.sent()) == 26
    # Where there is only one tenant, it has all there is; beyond that it is the server that is full.
    alone = await start("default", inputs=100, tokens=100)
    for n in range(50):
        alone.call("default", f"a{n}")
    assert reason_of(lambda: alone.call("default", "a50")) == "OVERLOADED"


async def test_refused_callers_of_a_tenant_are_told_to_come_one_after_the_other(start: Start) -> None:
    scene = await start("a", "b", inputs=1000, tokens=1000)
    for n in range(5):
        scene.call("a", f"a{n}", tokens=100)
    await settle()
    scene.says(tokens_per_s=100.0, queued_tokens=500, active_weight=1.0, tenants={"a": 500})
    await settle()
    told = []
    for _ in range(3):
        with pytest.raises(Overloaded) as caught:
            scene.call("a", "late", tokens=50)
        told.append(caught.value.retry_after_s)
    # 50 tokens at 100 a second each, and a batch of 64 before they are free.
    assert told == pytest.approx([1.14, 1.64, 2.14], rel=0.02)


async def test_of_so_many_tenants_refused_callers_are_remembered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamix_server.frontend.inference.feeding._MAX_TURNS", 2)
    scene = await start(*"abcd", inputs=40, tokens=1000)
    for tenant in "abcd":
        assert reason_of(lambda tenant=tenant: [scene.call(tenant, "x") for _ in range(40)]) == "TENANT_QUEUE_FULL"
    assert list(scene.feeding._turns) == ["c", "d"]


async def test_so_many_inputs_wait_and_no_more(start: Start) -> None:
    scene = await start("default", inputs=1, tokens=32)
    scene.call("default", "running")
    calls = [scene.call("default", *names(f"{n}.", 64)) for n in range(MAX_WAITING_INPUTS // MAX_INPUTS_PER_CALL)]
    assert reason_of(lambda: scene.call("default", "x", "y")) == "OVERLOADED"
    assert reason_of(lambda: scene.call("default", "x")) == "OVERLOADED"
    for future in calls[0][:2]:
        future.cancel()
    await settle()
    scene.call("default", "x", "y")
    assert reason_of(lambda: scene.call("default", "z")) == "OVERLOADED"
    # Of several tenants one has half of that, and a call of one that has none waiting is let in.
    shared = await start("a", "b", inputs=1, tokens=32)
    shared.call("a", "running")
    for n in range(8):
        shared.call("a", *names(f"{n}.", 64))
    assert reason_of(lambda: shared.call("a", "x")) == "TENANT_QUEUE_FULL"
    shared.call("b", *names("b", 64))


async def test_calls_of_the_class_batch_wait_in_half_of_the_places(start: Start) -> None:
    batch = [
        TenantRow(tenant=name, etag="", create_time_us=0, update_time_us=0, service_class="batch") for name in "ab"
    ]
    scene = await start(*batch, "other", inputs=1, tokens=32)
    scene.call("other", "running")
    for n in range(MAX_WAITING_INPUTS // MAX_INPUTS_PER_CALL // 4):
        for tenant in "ab":
            scene.call(tenant, *names(f"{tenant}{n}.", MAX_INPUTS_PER_CALL))
    for tenant in "ab":
        assert reason_of(lambda tenant=tenant: scene.call(tenant, "x", "y")) == "TENANT_QUEUE_FULL"
    scene.call("other", *names("o", MAX_INPUTS_PER_CALL))


async def test_who_gives_up_leaves_the_line_at_once(start: Start) -> None:
    scene = await start("default", inputs=1, tokens=32)
    futures = scene.call("default", *names("a", 4))
    for future in (futures[1], futures[3]):
        future.cancel()
    await scene.answer()
    assert await scene.sent() == ["a0", "a2"]
    futures[2].cancel()
    await settle()
    assert scene.engine.cancelled == [scene.engine.submits[-1].rows[0].id]
    await scene.answer()
    scene.assert_nothing_is_left(1, 32)


async def test_who_gives_up_costs_nothing_of_the_others_that_wait(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = names("t", 100)
    scene = await start(*tenants, inputs=10, tokens=64)
    scene.call("t0", "running", tokens=31)
    futures = [scene.call(tenant, *names(f"{tenant}.", 3), tokens=32) for tenant in tenants[1:]]
    await settle()
    looks, of = 0, scene.feeding._tenancy.of

    def counted(tenant: str) -> Standing:
        nonlocal looks
        looks += 1
        return of(tenant)

    monkeypatch.setattr(scene.feeding._tenancy, "of", counted)
    # Of those that are first in their tenant's line, the next one is looked at.
    for call in futures[1:21]:
        for future in (call[1], call[0]):
            future.cancel()
            await settle()
    assert looks == 20
    # And while there is no room at all, nobody is.
    scene.says(room=(-8, 0))
    await settle()
    looks = 0
    scene.says()
    await settle()
    assert looks == 0


async def test_who_gives_up_before_it_has_left_makes_room_at_once(start: Start) -> None:
    scene = await start("default", inputs=1, tokens=32)
    (gone,) = scene.call("default", "gone")
    scene.call("default", "a", "b")
    gone.cancel()
    assert await scene.sent() == ["a"]


async def test_a_place_that_is_not_used_is_given_back(start: Start) -> None:
    scene = await start("default", inputs=2, tokens=32)
    with scene.feeding.admit("default", 20, 1, NEVER):
        assert reason_of(lambda: scene.feeding.admit("default", 20, 1, NEVER)) == "OVERLOADED"
        with scene.feeding.admit("default", 20, 2, NEVER) as waiting:
            assert waiting.is_waiting
    scene.assert_nothing_is_left(2, 32)


async def test_room_that_is_given_back_is_given_to_who_waits(start: Start) -> None:
    scene = await start("default", inputs=2, tokens=32)
    # Its text turns out to be empty, and nothing else is under way that could make room.
    with scene.feeding.admit("default", 20, 1, NEVER):
        scene.call("default", "a", "b", tokens=16)
        assert await scene.sent() == []
    assert await scene.sent() == ["a", "b"]
    await scene.answer()
    with scene.feeding.admit("default", 20, 2, NEVER) as place:
        scene.call("default", "c", "d", tokens=10)
        scene.feeding.submit(place, scene.rows("default", "e", tokens=5))
    assert await scene.sent() == ["a", "b", "e", "c"]
    await scene.answer()
    await scene.answer()
    scene.assert_nothing_is_left(2, 32)


async def test_an_input_longer_than_it_seemed_waits_or_is_refused(start: Start) -> None:
    scene = await start("default", inputs=10, tokens=32)
    with scene.feeding.admit("default", 4, 1, NEVER) as place:
        (future,) = scene.feeding.submit(place, scene.rows("default", "a", tokens=33))
    assert isinstance(error := future.exception(), Overloaded)
    assert error.reason == "OVERLOADED"
    with scene.feeding.admit("default", 4, 2, NEVER) as place:
        scene.feeding.submit(place, scene.rows("default", "b", "c", tokens=20))
    assert await scene.sent() == ["b"]
    await scene.answer()
    assert await scene.sent() == ["b", "c"]
    await scene.answer()
    scene.assert_nothing_is_left(10, 32)


async def test_room_of_an_engine_that_is_gone_is_none_of_the_next(start: Start) -> None:
    scene = await start("default", inputs=4, tokens=64)
    with scene.feeding.admit("default", 40, 2, NEVER) as place:
        scene.link.engine_down(EngineDown(generation=1, engine_id=ENGINE_ID))
        await scene.up(2, 32)
        scene.feeding.submit(place, scene.rows("default", "a", "b", tokens=20))
    assert await scene.sent() == ["a"]
    await scene.answer()
    await scene.answer()
    assert await scene.sent() == ["a", "b"]
    scene.assert_nothing_is_left(2, 32)


async def test_what_waits_ends_with_the_engine_and_outlives_a_stall(start: Start) -> None:
    scene = await start("default", inputs=1, tokens=32)
    futures = scene.call("default", *names("a", 3))
    stalled = {"generation": 1, "engine_id": ENGINE_ID}
    now = time.monotonic()
    place = scene.feeding.admit("default", 2, 2, NEVER)
    scene.link.engine_stalled(EngineStalled(**stalled, since=now, back_at=now + 10))
    await scene.answer()
    assert [future.done() for future in futures] == [True, False, False]
    # What is new is refused by the link, not by its room, and before anything is done for it if that can be.
    with place, pytest.raises(Unavailable, match="no progress"):
        scene.feeding.submit(place, scene.rows("default", "late"))
    assert reason_of(lambda: scene.feeding.admit("default", 2, 1, NEVER)) == "ENGINE_STALLED"
    scene.link.engine_moving(EngineMoving(**stalled))
    assert await scene.sent() == ["a0", "a1"]
    scene.link.engine_down(EngineDown(**stalled))
    for future in futures[1:]:
        assert isinstance(error := future.exception(), Unavailable)
        assert error.reason == "ENGINE_RESTARTING"
    assert reason_of(lambda: scene.feeding.admit("default", 2, 1, NEVER)) == "ENGINE_RESTARTING"
    await scene.up(2, 32)
    scene.assert_nothing_is_left(2, 32)
    scene.call("default", "b", "c", "d")
    assert (await scene.sent())[-2:] == ["b", "c"]


async def test_a_deadline_that_can_be_met_exactly_is_admitted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = await start("a", "b", inputs=1000, tokens=10_000)
    scene.says(tokens_per_s=1000.0, queued_tokens=5000, active_weight=2.0, tenants={"a": 500})
    await settle()
    connection = scene.link.moving
    assert connection is not None
    monkeypatch.setattr("adamix_server.frontend.inference.feeding.time.monotonic", lambda: connection.queue_time)
    now = connection.queue_time
    # Its own twice, since two share the engine, and itself; once and a half. And a batch of 64 and a half.
    wait_s = (1.5 * (2 * 500 + 100) + 1.5 * 64) / 1000
    with scene.feeding.admit("a", 100, 1, now + wait_s + 1e-6):
        pass
    with pytest.raises(DeadlineExceeded) as caught:
        scene.feeding.admit("a", 100, 1, now + wait_s - 0.5)
    assert caught.value.reason == "DEADLINE_UNREACHABLE"
    assert caught.value.retry_after_s == pytest.approx(0.5)
    # What was sent since counts, and what waits here. Of one that has nothing there is only itself.
    scene.call("a", "x", tokens=100)
    with pytest.raises(DeadlineExceeded):
        scene.feeding.admit("a", 100, 1, now + wait_s + 0.29)
    with scene.feeding.admit("a", 100, 1, now + wait_s + 0.31):
        pass
    with scene.feeding.admit("b", 100, 1, now + 0.25):
        pass
    # And its weight is not yet among those that the engine knew of.
    scene.says(tokens_per_s=1000.0, queued_tokens=5000, active_weight=1.0, tenants={"a": 500, "b": 0})
    await settle()
    now = connection.queue_time
    scene.call("b", "y", tokens=100)
    wait_s = (1.5 * (2 * 100 + 100) + 1.5 * 64) / 1000
    with scene.feeding.admit("b", 100, 1, now + wait_s + 1e-6):
        pass
    assert reason_of(lambda: scene.feeding.admit("b", 100, 1, now + wait_s - 1e-6)) == "DEADLINE_UNREACHABLE"
    scene.says(tokens_per_s=1000.0)
    await settle()
    now = connection.queue_time
    # Of inputs of a stream each has its own deadline; those that are refused are not before the others.
    refusals = scene.feeding.refusals("b", [100, 100, 100], [now + 0.25, now + 0.25, now + 0.4])
    assert [error is not None for error in refusals] == [False, True, False]
    assert scene.feeding.refusals("b", [100, 100], [now + 9, now + 9]) == [None, None]


async def test_a_tenant_of_which_the_engine_says_nothing_has_what_is_under_way_from_here(start: Start) -> None:
    scene = await start("a", "b", inputs=1000, tokens=10_000)
    scene.call("a", "x", tokens=3000)
    scene.says(tokens_per_s=1000.0, queued_tokens=5000, active_weight=2.0, tenants={})
    await settle()
    assert reason_of(lambda: scene.feeding.admit("a", 10, 1, time.monotonic() + 4)) == "DEADLINE_UNREACHABLE"
    with scene.feeding.admit("b", 10, 1, time.monotonic() + 4):
        pass


async def test_an_idle_engine_is_given_what_its_rate_says_it_cannot_do_in_time(start: Start) -> None:
    """A rate that is too low would else refuse what alone could show that: nothing is measured but what runs."""
    scene = await start("a", "b", inputs=1000, tokens=10_000)
    scene.says(tokens_per_s=1.0)
    await settle()
    soon = time.monotonic() + 1
    assert [error is None for error in scene.feeding.refusals("a", [100, 100], [soon, soon])] == [True, False]
    with scene.feeding.admit("a", 100, 1, soon) as place:
        assert reason_of(lambda: scene.feeding.admit("b", 10, 1, soon)) == "DEADLINE_UNREACHABLE"
        scene.feeding.submit(place, scene.rows("a", "x", tokens=100))
    assert reason_of(lambda: scene.feeding.admit("b", 10, 1, soon)) == "DEADLINE_UNREACHABLE"
    await scene.answer()
    scene.says(tokens_per_s=1.0)
    await settle()
    with scene.feeding.admit("b", 10, 1, soon):
        pass


async def test_less_than_was_reserved_is_not_taken_from_what_others_have_sent(start: Start) -> None:
    """The engine has spoken between the two, and what was reserved before is forgotten."""
    quotas = TenantRow(tenant="a", etag="", create_time_us=0, update_time_us=0, quotas=Quotas(queued_tokens=1000))
    scene = await start(quotas, inputs=1000, tokens=10_000)
    connection = scene.link.moving
    assert connection is not None
    with scene.feeding.admit("a", 800, 1, NEVER) as place:
        scene.says(tokens_per_s=1000.0, queued_tokens=500, active_weight=1.0, tenants={"a": 500})
        await settle()
        scene.feeding.submit(place, scene.rows("a", "x", tokens=100))
    assert (connection.sent_since.get("a", 0), connection.all_sent_since) == (0, 0)
    assert reason_of(lambda: scene.feeding.admit("a", 600, 1, NEVER)) == "QUOTA_QUEUED_TOKENS"


async def test_what_was_said_long_ago_is_done_by_now(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = await start("a", "b", inputs=1000, tokens=10_000)
    scene.says(tokens_per_s=1000.0, queued_tokens=5000, active_weight=2.0, tenants={"a": 5000})
    await settle()
    assert reason_of(lambda: scene.feeding.admit("a", 10, 1, time.monotonic() + 1)) == "DEADLINE_UNREACHABLE"
    later = time.monotonic() + 5
    monkeypatch.setattr("adamix_server.frontend.inference.feeding.time.monotonic", lambda: later)
    with scene.feeding.admit("a", 10, 1, later + 1):
        pass


async def test_the_quota_of_queued_tokens_is_met_exactly(start: Start) -> None:
    quotas = [("a", 100), ("none", 0)]
    rows = [
        TenantRow(tenant=name, etag="", create_time_us=0, update_time_us=0, quotas=Quotas(queued_tokens=tokens))
        for name, tokens in quotas
    ]
    scene = await start(*rows, inputs=1000, tokens=10_000)
    scene.says(tokens_per_s=10.0, queued_tokens=50, active_weight=1.0, tenants={"a": 50})
    await settle()
    scene.says(queued_tokens=50, active_weight=1.0, tenants={"a": 50})
    await settle()
    scene.call("a", "x", tokens=20)
    scene.call("a", "y", tokens=30)
    with pytest.raises(QuotaExceeded) as caught:
        scene.call("a", "z", tokens=1)
    assert (caught.value.reason, caught.value.limit, caught.value.used) == ("QUOTA_QUEUED_TOKENS", 100, 100)
    with pytest.raises(QuotaExceeded) as caught:
        scene.call("none", "z", tokens=1)
    assert caught.value.retry_after_s is None
    refusals = scene.feeding.refusals("none", [1], [NEVER])
    assert isinstance(refusals[0], QuotaExceeded)
    # When as much has been computed as is too much.
    scene.says(tokens_per_s=10.0, queued_tokens=100, active_weight=1.0, tenants={"a": 100})
    await settle()
    with pytest.raises(QuotaExceeded) as caught:
        scene.call("a", "z", tokens=20)
    assert caught.value.retry_after_s == pytest.approx(2.0, rel=0.05)


async def test_a_stream_waits_for_a_place_to_wait_in(start: Start) -> None:
    scene = await start("default", inputs=1, tokens=32)
    scene.call("default", "running")
    futures = [scene.call("default", *names(f"{n}.", 64)) for n in range(MAX_WAITING_INPUTS // MAX_INPUTS_PER_CALL)]
    placing = asyncio.create_task(scene.feeding.place("default", 4, 2))
    await settle()
    assert not placing.done()
    for future in futures[0][:2]:
        future.cancel()
    place: Place = await placing
    streamed = scene.feeding.submit(place, scene.rows("default", "s0", "s1"))
    fed = asyncio.create_task(scene.feeding.fed("default", streamed))
    for call in futures:
        for future in call:
            future.cancel()
    await scene.answer()
    assert (await scene.sent())[-1] == "s0"
    assert not fed.done()
    await scene.answer()
    await fed
    assert (await scene.sent())[-1] == "s1"


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_order_is_kept_credit_is_not_exceeded_and_nothing_is_lost(
    start: Start, seed: int
) -> None:
    choose = random.Random(seed)
    tenants = ["a", "b", "c"][: choose.randint(1, 3)]
    credit = choose.randint(2, 20), choose.randint(40, 200)
    scene = await start(*tenants, inputs=credit[0], tokens=credit[1])
    scene.engine.tokens_per_s = 1e6
    futures: dict[str, asyncio.Future[Event]] = {}
    reasons: set[str] = set()
    for step in range(150):
        kind = choose.random()
        if kind < 0.5:
            tenant, count = choose.choice(tenants), choose.choice([1, 1, 2, 5, 20])
            own = [f"{tenant}{step:03}.{n:02}" for n in range(count)]
            tokens, seemed = choose.randint(1, 32), choose.randint(1, 32)
            try:
                with scene.feeding.admit(tenant, seemed * count, count, NEVER) as place:
                    if choose.random() < 0.9:
                        sent = scene.feeding.submit(place, scene.rows(tenant, *own, tokens=tokens))
                        futures.update(zip(own, sent, strict=True))
            except Overloaded as error:
                reasons.add(error.reason)
        elif kind < 0.75:
            await settle()
            scene.engine.answer(choose.sample(scene.engine.held, choose.randint(0, len(scene.engine.held))))
        elif futures:
            futures[choose.choice(list(futures))].cancel()
        await settle()
        assert len(scene.engine.held) <= credit[0]
        assert sum(len(row.token_ids) // 4 for row in scene.engine.held) <= credit[1]
    while any(not future.done() for future in futures.values()):
        await scene.answer()
    sent_names = await scene.sent()
    answered = {name for name, future in futures.items() if not future.cancelled() and future.exception() is None}
    assert answered <= set(sent_names)
    assert len(answered) > 10
    for tenant in tenants:
        own = [name for name in sent_names if name[0] == tenant]
        assert own == sorted(own)
    assert reasons <= {"OVERLOADED"} or len(tenants) > 1
    scene.assert_nothing_is_left(*credit)
