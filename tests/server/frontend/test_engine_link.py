"""The link to the engine by itself: frames out, futures in, credit, and never anything left pending."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from adamix.errors import AdamixError, Overloaded, Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_server.channel.codec import NotAFrame, ToEngine
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    Event,
    Hello,
    Limits,
    QueueState,
    Reply,
    Row,
    Submit,
)
from adamix_server.channel.supervisor_frames import EngineDown, EngineMoving, EngineStalled, EngineUp
from adamix_server.frontend.engine_connection import BUSY_ROWS
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.event_stream import EventStream

ENGINE_ID = "engine-0"


class Wire:
    """A channel whose other end is the test."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False
        self.send_error: Exception | None = None

    async def send(self, frame: ToEngine) -> None:
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(frame)

    async def receive(self) -> Any:
        frame = await self.incoming.get()
        if isinstance(frame, Exception):
            raise frame
        return frame

    def close(self) -> None:
        self.closed = True

    def of(self, kind: type[Any]) -> list[Any]:
        return [frame for frame in self.sent if isinstance(frame, kind)]


class Scene:
    """A link that is connected to generation 1 with some credit."""

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        self.wires: list[Wire] = []
        self.link = EngineLink(self._connect)

    async def _connect(self, address: str, generation: int, engine_id: str) -> Wire:
        self.wires.append(Wire())
        return self.wires[-1]

    async def up(self, generation: int = 1, inputs: int = 100, tokens: int = 1000, engine_id: str = ENGINE_ID) -> Wire:
        hello = Hello(
            engine_id=engine_id,
            generation=generation,
            spec=self.spec,
            limits=Limits(max_batch_tokens=8, max_queue_inputs=100, max_queue_tokens=1000, slots=1),
            dtype="float32",
            device="cpu",
        )
        connecting = asyncio.create_task(self.link.connect(EngineUp(address="ipc:///x", hello=hello)))
        await asyncio.sleep(0)
        wire = self.wires[-1]
        wire.incoming.put_nowait(Credit(engine_id=engine_id, generation=generation, inputs=inputs, tokens=tokens))
        await connecting
        return wire

    def row(self, tokens: int = 2) -> Row:
        return Row(id=self.link.next_id(), tenant="default", digest="a" * 64, token_ids=bytes(4 * tokens), deadline=1e9)


async def settle() -> None:
    """Let the link's two tasks do all they can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def scene(spec: BackboneSpec) -> AsyncIterator[Scene]:
    scene = Scene(spec)
    yield scene
    scene.link.close()


async def test_rows_of_one_turn_leave_in_one_frame(scene: Scene) -> None:
    wire = await scene.up()
    for _ in range(3):
        scene.link.submit([scene.row(), scene.row()])
    await settle()
    assert [len(submit.rows) for submit in wire.of(Submit)] == [6]
    scene.link.submit([scene.row()])
    await settle()
    assert [len(submit.rows) for submit in wire.of(Submit)] == [6, 1]


async def test_while_the_engine_is_busy_rows_are_gathered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough for any machine to do the turns in between.
    monkeypatch.setattr("adamix_server.frontend.engine_connection.GATHER_S", 0.3)
    wire = await scene.up()
    scene.link.submit([scene.row() for _ in range(BUSY_ROWS)])
    await settle()
    assert [len(submit.rows) for submit in wire.of(Submit)] == [BUSY_ROWS]
    (_, unwanted) = scene.link.submit([scene.row(), scene.row()])
    await settle()
    unwanted.cancel()
    scene.link.submit([scene.row()])
    await settle()
    assert len(wire.of(Submit)) == 1
    while len(wire.of(Submit)) == 1:  # noqa: ASYNC110 - the link has no event for it
        await asyncio.sleep(0.01)
    assert [len(submit.rows) for submit in wire.of(Submit)] == [BUSY_ROWS, 2]
    assert wire.of(Cancel) == []


async def test_answers_find_their_futures_in_any_order(scene: Scene) -> None:
    wire = await scene.up()
    first, second = scene.link.submit([scene.row(), scene.row()])
    await settle()
    ids = [row.id for row in wire.of(Submit)[0].rows]
    events = [Event(id=ids[1], payload=b"2"), Event(id=ids[0], payload=b"1"), Event(id=999)]
    wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=1, events=events))
    assert ((await first).payload, (await second).payload) == (b"1", b"2")


async def test_credit_in_inputs_and_in_tokens_is_kept_exactly(scene: Scene) -> None:
    wire = await scene.up(inputs=3, tokens=10)
    futures = scene.link.submit([scene.row(4), scene.row(4), scene.row(4), scene.row(2), scene.row(1)])
    refused = [future.done() for future in futures]
    # 4 + 4 + 2 tokens fit; a third row of 4 does not, and after three inputs nothing does.
    assert refused == [False, False, True, False, True]
    for future in (futures[2], futures[4]):
        error = future.exception()
        assert isinstance(error, Overloaded)
        assert error.retry_after_s is not None
    await settle()
    assert [len(submit.rows) for submit in wire.of(Submit)] == [3]
    wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=1, events=[], credit_inputs=1, credit_tokens=4))
    await settle()
    assert not scene.link.submit([scene.row(4)])[0].done()
    assert scene.link.submit([scene.row(1)])[0].done()


async def test_who_finds_no_room_is_told_when_there_will_be_some(scene: Scene) -> None:
    wire = await scene.up(inputs=100, tokens=100)
    scene.link.submit([scene.row(50), scene.row(50)])

    def told(*lengths: int) -> list[float]:
        errors = [future.exception() for future in scene.link.submit([scene.row(length) for length in lengths])]
        waits = [error.retry_after_s for error in errors if isinstance(error, Overloaded)]
        assert len(waits) == len(lengths)
        return [wait for wait in waits if wait is not None]

    def says(tokens_per_s: float, queued_tokens: int) -> None:
        queue = QueueState(tokens_per_s=tokens_per_s, queued_tokens=queued_tokens)
        wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=1, events=[], queue=queue))

    says(10.0, 100)
    await settle()
    # 20 tokens at 10 a second, and a batch of 8 before they are free.
    assert told(20) == pytest.approx([2.8], rel=0.01)
    # The rows of one call come back together, when there is room for all; behind the first.
    assert told(10, 10) == pytest.approx([4.8, 4.8], rel=0.01)
    # Of an engine ten times as fast, and of one that has other front ends' work before ours.
    await scene.up(generation=2, tokens=100)
    wire = scene.wires[-1]
    scene.link.submit([scene.row(100)])
    queue = QueueState(tokens_per_s=100.0, queued_tokens=1000)
    wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=2, events=[], queue=queue))
    await settle()
    assert told(20) == pytest.approx([2.08], rel=0.01)


async def test_a_row_of_several_events_gives_back_what_it_needs_no_more(scene: Scene) -> None:
    wire = await scene.up(inputs=2, tokens=10)
    row = scene.row(6)
    stream = EventStream(row.id)
    scene.link.submit([row], futures=[stream])
    (beside,) = scene.link.submit([scene.row(4)])
    await settle()
    connection: Any = scene.link.moving
    room = connection.room
    assert (room.inputs, room.tokens, room.tokens_of("default")) == (2, 10, 10)

    def emit(**event: Any) -> None:
        events = [Event(id=row.id, **event)]
        wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=1, events=events, credit_inputs=0))

    emit(seq=0, final=False)
    await settle()
    assert (room.inputs, room.tokens) == (2, 4), "its tokens are computed"
    emit(seq=1, final=False)
    await settle()
    assert (room.inputs, room.tokens) == (2, 4)
    emit(seq=2)
    await settle()
    assert (room.inputs, room.tokens) == (1, 4)
    assert [event.seq for _, event in await stream.take(9)] == [0, 1, 2]
    assert connection._held.keys() == connection._waiting.keys() != {row.id}
    beside.cancel()


async def test_a_row_that_is_stopped_still_has_an_end(scene: Scene) -> None:
    wire = await scene.up()
    row = scene.row()
    stream = EventStream(row.id)
    scene.link.submit([row], futures=[stream])
    await settle()
    scene.link.stop(row.id)
    await settle()
    assert [cancel.ids for cancel in wire.of(Cancel)] == [[row.id]]
    wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=1, events=[Event(id=row.id)]))
    assert (await stream).id == row.id
    # It has ended, and another connection has never heard of it.
    scene.link.stop(row.id)
    wire = await scene.up(generation=2)
    scene.link.stop(row.id)
    await settle()
    assert wire.of(Cancel) == []


async def test_an_engine_that_stands_still_takes_nothing_new_and_may_yet_answer(scene: Scene) -> None:
    wire = await scene.up()
    (waiting,) = scene.link.submit([scene.row()])
    await settle()
    now = time.monotonic()
    scene.link.engine_stalled(EngineStalled(generation=1, engine_id=ENGINE_ID, since=now - 10, back_at=now + 40))

    async def submit() -> None:
        scene.link.submit([scene.row()])

    for refused in (submit(), scene.link.control("pins", "")):
        with pytest.raises(Unavailable) as caught:
            await refused
        assert caught.value.reason == "ENGINE_STALLED"
        assert caught.value.retry_after_s == pytest.approx(10, rel=0.01)
    # Of another engine, and of another generation.
    scene.link.engine_moving(EngineMoving(generation=1, engine_id="engine-1"))
    scene.link.engine_moving(EngineMoving(generation=2, engine_id=ENGINE_ID))
    assert scene.link.is_stalled
    assert not waiting.done()
    wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=1, events=[Event(id=1, payload=b"1")]))
    assert (await waiting).payload == b"1"
    scene.link.engine_moving(EngineMoving(generation=1, engine_id=ENGINE_ID))
    assert not scene.link.submit([scene.row()])[0].done()


async def test_what_waits_for_an_engine_that_is_replaced_is_told_when_the_next_one_serves(scene: Scene) -> None:
    await scene.up()
    (waiting,) = scene.link.submit([scene.row()])
    now = time.monotonic()
    scene.link.engine_stalled(EngineStalled(generation=1, engine_id=ENGINE_ID, since=now - 30, back_at=now + 7))
    scene.link.engine_down(EngineDown(generation=1, engine_id=ENGINE_ID, back_at=now + 7))
    assert not scene.link.is_stalled

    async def submit() -> None:
        scene.link.submit([scene.row()])

    for refused in (waiting, submit()):
        with pytest.raises(Unavailable) as caught:
            await refused
        assert caught.value.reason == "ENGINE_RESTARTING"
        # The first of those that are told together, a fifth before the mean of them, comes when it serves.
        assert caught.value.retry_after_s == pytest.approx(7 / 0.8, rel=0.01)
    # The next one took longer than the last, or failed: the supervisor says so again.
    scene.link.engine_down(EngineDown(generation=2, engine_id=ENGINE_ID, back_at=now + 20))
    with pytest.raises(Unavailable) as caught:
        scene.link.submit([scene.row()])
    assert caught.value.retry_after_s == pytest.approx(20 / 0.8, rel=0.01)
    await scene.up(generation=3)
    assert not scene.link.submit([scene.row()])[0].done()


async def test_a_row_cancelled_before_it_left_costs_nothing(scene: Scene) -> None:
    wire = await scene.up(inputs=1)
    (future,) = scene.link.submit([scene.row()])
    future.cancel()
    await settle()
    assert wire.of(Submit) == wire.of(Cancel) == []
    assert not scene.link.submit([scene.row()])[0].done()


async def test_cancels_of_one_turn_leave_in_one_frame_and_late_events_are_ignored(scene: Scene) -> None:
    wire = await scene.up(inputs=2)
    futures = scene.link.submit([scene.row(), scene.row()])
    await settle()
    ids = [row.id for row in wire.of(Submit)[0].rows]
    for future in futures:
        future.cancel()
    await settle()
    assert [cancel.ids for cancel in wire.of(Cancel)] == [ids]
    assert scene.link.submit([scene.row()])[0].done()
    events = [Event(id=id_) for id_ in ids]
    wire.incoming.put_nowait(Emit(engine_id=ENGINE_ID, generation=1, events=events, credit_inputs=2, credit_tokens=4))
    await settle()
    assert not scene.link.submit([scene.row()])[0].done()


@pytest.mark.parametrize("how", ["told", "read", "write", "garbage", "replaced", "closed"])
async def test_whatever_ends_the_connection_fails_everything_that_waits(scene: Scene, how: str) -> None:
    wire = await scene.up()
    (future,) = scene.link.submit([scene.row()])
    asking = asyncio.create_task(scene.link.control("in_use", "a" * 64))
    await settle()
    match how:
        case "told":
            scene.link.engine_down(EngineDown(generation=1, engine_id=ENGINE_ID))
        case "read":
            wire.incoming.put_nowait(OSError("broken"))
        case "write":
            wire.send_error = OSError("broken")
            scene.link.submit([scene.row()])
        case "garbage":
            wire.incoming.put_nowait(NotAFrame("not one of an engine's"))
        case "replaced":
            await scene.up(generation=2)
        case "closed":
            scene.link.close()
    for waiting in (future, asking):
        with pytest.raises(Unavailable) as caught:
            await waiting
        assert caught.value.reason == "ENGINE_RESTARTING"
        assert caught.value.retry_after_s is not None
    assert wire.closed
    assert scene.link.is_up is (how == "replaced")
    if how != "replaced":
        with pytest.raises(Unavailable):
            scene.link.submit([scene.row()])


async def test_words_about_an_older_generation_change_nothing(scene: Scene) -> None:
    wire = await scene.up(generation=7, inputs=1)
    scene.link.engine_down(EngineDown(generation=6, engine_id=ENGINE_ID))
    assert scene.link.is_up
    (future,) = scene.link.submit([scene.row()])
    await settle()
    id_ = wire.of(Submit)[0].rows[0].id
    wire.incoming.put_nowait(
        Emit(engine_id=ENGINE_ID, generation=6, events=[Event(id=id_)], credit_inputs=5, credit_tokens=50)
    )
    wire.incoming.put_nowait(Credit(engine_id=ENGINE_ID, generation=6, inputs=5, tokens=50))
    await settle()
    assert not future.done()
    assert scene.link.submit([scene.row()])[0].done()


async def test_frames_carry_the_engines_id_and_those_of_another_engine_change_nothing(scene: Scene) -> None:
    wire = await scene.up(inputs=2)
    future, unwanted = scene.link.submit([scene.row(), scene.row()])
    asking = asyncio.create_task(scene.link.control("in_use", "a" * 64))
    await settle()
    unwanted.cancel()
    await settle()
    assert {(type(frame), frame.engine_id, frame.generation) for frame in wire.sent} == {
        (kind, ENGINE_ID, 1) for kind in (Submit, Cancel, Control)
    }
    id_, call = wire.of(Submit)[0].rows[0].id, wire.of(Control)[0].call
    other = {"engine_id": "engine-1", "generation": 1}
    wire.incoming.put_nowait(Emit(**other, events=[Event(id=id_)], credit_inputs=5, credit_tokens=50))
    wire.incoming.put_nowait(Credit(**other, inputs=5, tokens=50))
    wire.incoming.put_nowait(Reply(**other, call=call, value=False))
    await settle()
    assert not future.done()
    assert not asking.done()
    assert scene.link.submit([scene.row()])[0].done()
    asking.cancel()


async def test_another_engine_of_the_same_generation_replaces_the_first(scene: Scene) -> None:
    wire = await scene.up()
    await scene.up()
    assert not wire.closed
    await scene.up(engine_id="engine-1")
    assert wire.closed
    assert scene.link.is_up


async def test_an_engine_that_grants_nothing_is_not_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamix_server.frontend.engine_link.CONNECT_TIMEOUT_S", 0.01)
    wire = await scene.up()
    scene.link.engine_down(EngineDown(generation=1, engine_id=ENGINE_ID))
    silent = EngineUp(address="ipc:///x", hello=scene.link.hello)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="does not answer"):
        await scene.link.connect(silent)
    assert wire.closed
    assert scene.wires[-1].closed
    assert not scene.link.is_up


async def test_control_returns_the_value_or_raises_the_engines_error(scene: Scene) -> None:
    from adamix_server.channel.engine_frames import WireError

    wire = await scene.up()
    asking = [asyncio.create_task(scene.link.control("load", digest * 64)) for digest in "ab"]
    await settle()
    first, second = wire.of(Control)
    error = WireError(code=15, reason="BLOB_CORRUPT", message="damaged")
    wire.incoming.put_nowait(Reply(engine_id=ENGINE_ID, generation=1, call=second.call, error=error))
    wire.incoming.put_nowait(Reply(engine_id=ENGINE_ID, generation=1, call=first.call, value="host"))
    assert await asking[0] == "host"
    with pytest.raises(AdamixError, match="damaged"):
        await asking[1]
    # A caller that gave up is forgotten.
    gone = asyncio.create_task(scene.link.control("load", "c" * 64))
    await settle()
    gone.cancel()
    await settle()
    wire.incoming.put_nowait(Reply(engine_id=ENGINE_ID, generation=1, call=wire.of(Control)[-1].call))
    await settle()
    assert scene.link.is_up
