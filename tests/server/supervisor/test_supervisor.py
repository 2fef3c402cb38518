"""The supervisor with children that are played: who is started, drained, replaced and given up on, and when."""

import asyncio
import errno
import time
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import FailedPrecondition, InvalidConfig
from adamix_server.access.entries import Entry
from adamix_server.catalog.audit import AuditLog
from adamix_server.catalog.database import Database
from adamix_server.channel.codec import FromChild
from adamix_server.channel.supervisor_frames import (
    Account,
    Agreed,
    Beat,
    DrainWanted,
    EngineDown,
    EngineMoving,
    EngineStalled,
    EngineUp,
    Fatal,
    Ready,
    Refresh,
    Seen,
    Stats,
)
from adamix_server.port import cannot_listen
from adamix_server.supervisor import keeper
from adamix_server.supervisor import supervisor as supervisors
from adamix_testing.stage import Played, Stage, StartStage, healthy


async def test_a_stop_drains_the_front_end_before_the_engine(start_stage: StartStage) -> None:
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    stage.supervisor.stop()
    await stage.ended()
    assert stage.drained == ["frontend-0", "engine"]
    assert {name: len(children) for name, children in stage.children.items()} == {"engine": 1, "frontend-0": 1}


async def test_what_front_ends_tell_is_written_before_the_end(start_stage: StartStage, tmp_path: Path) -> None:
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    entries = [Entry.of(time.time_ns() // 1_000, method=method) for method in ("M", "N")]
    stage.children["frontend-0"][0].says.put_nowait(Account(entries=entries, usage=[], keys={}))
    stage.supervisor.stop()
    await stage.ended()
    log = AuditLog(Database(tmp_path / "store" / "catalog.db", make=False))
    assert [row.method for row in log.page(None).rows] == ["N", "M"]


async def test_an_engine_that_dies_is_replaced_and_front_ends_are_told(start_stage: StartStage) -> None:
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    stage.children["engine"][0].die()
    heard = stage.children["frontend-0"][0].heard
    await stage.until(lambda: sum(isinstance(frame, EngineUp) for frame in heard) == 2)
    assert [type(frame) for frame in heard] == [EngineUp, EngineDown, EngineUp]
    assert isinstance(down := heard[1], EngineDown)
    assert (down.generation, down.engine_id) == (1, "0")
    # As long as the first one took to start, which was no time.
    assert down.back_at == pytest.approx(time.monotonic(), abs=5)
    stage.supervisor.stop()
    await stage.ended()


async def test_a_front_end_that_dies_is_replaced_on_the_same_port(start_stage: StartStage) -> None:
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    stage.children["frontend-0"][0].die()
    await stage.until(lambda: len(stage.children["frontend-0"]) == 2)
    assert stage.children["frontend-0"][1].start_frame.listen == "127.0.0.1:4711"
    await stage.until(lambda: stage.children["frontend-0"][1].is_ready)
    stage.supervisor.stop()
    await stage.ended()


async def test_a_stop_while_a_child_is_being_replaced_starts_nothing_new(start_stage: StartStage) -> None:
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    stage.children["frontend-0"][0].die()
    await stage.until(
        lambda: stage.children["frontend-0"][0].gone and not stage.supervisor._front_ends["frontend-0"].is_ready
    )
    stage.supervisor.stop()
    await stage.ended()
    assert len(stage.children["frontend-0"]) == 1
    assert stage.drained == ["engine"]


async def test_a_stop_before_anything_is_ready_ends_at_once(start_stage: StartStage) -> None:
    def silent(name: str, number: int) -> FromChild:
        return supervisors.Stats(samples=[])

    stage = await start_stage(silent)
    await stage.until(lambda: bool(stage.children["engine"]))
    stage.supervisor.stop()
    await stage.ended()
    assert stage.drained == []
    assert stage.children["engine"][0].gone


async def test_a_child_that_says_it_cannot_start_ends_the_server_with_its_sentence(start_stage: StartStage) -> None:
    stage = await start_stage(lambda name, number: Fatal(message="no such backbone"))
    with pytest.raises(FailedPrecondition, match="no such backbone"):
        await stage.ended()


async def test_a_child_that_never_comes_up_is_given_up_on(start_stage: StartStage) -> None:
    stage = await start_stage(lambda name, number: None)
    with pytest.raises(FailedPrecondition, match="ended 5 times before it was ready"):
        await stage.ended()


async def test_a_replacement_that_cannot_start_for_a_while_does_not_end_the_server(start_stage: StartStage) -> None:
    def flaky(name: str, number: int) -> FromChild | None:
        if name == "engine" and number in range(2, 9):
            return Fatal(message="disk hiccup") if number % 2 else None
        return healthy(name, number)

    stage = await start_stage(flaky)
    await stage.until(stage.serving.is_set)
    stage.children["engine"][0].die()
    await stage.until(lambda: len(stage.children["engine"]) == 9 and stage.children["engine"][-1].is_ready)
    stage.supervisor.stop()
    await stage.ended()
    assert stage.drained == ["frontend-0", "engine"]


async def test_a_replacement_that_cannot_start_for_hours_does_not_end_the_server(
    start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = 1100

    stage = await start_stage(
        lambda name, number: None if name == "engine" and 1 < number < last else healthy(name, number)
    )
    await stage.until(stage.serving.is_set)
    monkeypatch.setattr(keeper, "_LONGEST_PAUSE_S", 0.0)
    stage.children["engine"][0].die()
    await stage.until(lambda: len(stage.children["engine"]) == last and stage.children["engine"][-1].is_ready)
    stage.supervisor.stop()
    await stage.ended()


async def test_a_machine_without_room_for_a_process_is_asked_again(
    start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    start = stage.start

    async def no_room(*arguments: Any) -> Played:
        nonlocal refused
        if refused == 3:
            return await start(*arguments)
        refused += 1
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(supervisors.Child, "start", no_room)
    stage.children["frontend-0"][0].die()
    await stage.until(lambda: len(stage.children["frontend-0"]) == 2 and stage.children["frontend-0"][1].is_ready)
    stage.supervisor.stop()
    await stage.ended()
    assert refused == 3
    assert stage.drained == ["frontend-0", "engine"]


async def test_a_machine_without_room_for_the_first_process_is_said(start_stage: StartStage) -> None:
    def no_room(name: str, number: int) -> FromChild:
        raise OSError(errno.EMFILE, "Too many open files")

    stage = await start_stage(no_room)
    with pytest.raises(FailedPrecondition, match="the engine process cannot be started: Too many open files"):
        await stage.ended()


async def test_a_child_that_falls_silent_is_replaced(start_stage: StartStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "_FRONT_END_SILENCE_S", 0.2)

    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    stuck = stage.children["frontend-0"][0]
    await stage.until(lambda: len(stage.children["frontend-0"]) == 2)
    assert stuck.gone
    stage.supervisor.stop()
    await stage.ended()


async def test_children_outlive_a_pause_of_the_supervisor(
    start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "_FRONT_END_SILENCE_S", 0.4)
    stage = await start_stage(stall_s=1.0)
    await stage.until(stage.serving.is_set)

    async def beat() -> None:
        while True:
            for name, (child,) in stage.children.items():
                child.says.put_nowait(Beat(last_step=time.monotonic()) if name == "engine" else Stats(samples=[]))
            await asyncio.sleep(0.02)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.05)
    time.sleep(1.5)  # noqa: ASYNC251 - the loop stands still, as that of a stopped process
    await asyncio.sleep(0.5)
    assert {name: len(children) for name, children in stage.children.items()} == {"engine": 1, "frontend-0": 1}
    heard = stage.children["frontend-0"][0].heard
    assert not any(isinstance(frame, EngineStalled) for frame in heard)
    beating.cancel()
    stage.supervisor.stop()
    await stage.ended()


async def test_an_engine_that_stands_still_is_called_stalled_until_it_goes_on(start_stage: StartStage) -> None:
    stage = await start_stage(stall_s=1.0)
    await stage.until(stage.serving.is_set)
    (engine,), (front_end,) = stage.children["engine"], stage.children["frontend-0"]
    stood = time.monotonic()

    async def say_how_far(until: float) -> None:
        # Stuck in a step, its watchdog still speaks.
        while time.monotonic() < until:
            engine.says.put_nowait(Beat(last_step=stood))
            await asyncio.sleep(0.05)

    speaking = asyncio.create_task(say_how_far(stood + 2.0))
    await stage.until(lambda: isinstance(front_end.heard[-1], EngineStalled))
    assert 1.0 <= time.monotonic() - stood < 2.0
    assert isinstance(stalled := front_end.heard[-1], EngineStalled)
    assert (stalled.generation, stalled.engine_id, stalled.since) == (1, "0", stood)
    # Killed after three seconds of it, and the next one starts as fast as the first.
    assert stalled.back_at == pytest.approx(stood + 3.0, abs=0.5)
    assert gauge(stage) == 1.0
    # A front end that is replaced meanwhile must know, too.
    front_end.die()
    await stage.until(lambda: len(stage.children["frontend-0"]) == 2)
    front_end = stage.children["frontend-0"][1]
    await stage.until(lambda: [type(frame) for frame in front_end.heard] == [EngineUp, EngineStalled])
    await speaking
    engine.says.put_nowait(Beat(last_step=time.monotonic()))
    await stage.until(lambda: front_end.heard[-1] == EngineMoving(generation=1, engine_id="0"))
    assert gauge(stage) == 0.0
    assert not engine.gone
    stage.supervisor.stop()
    await stage.ended()


async def test_an_engine_that_goes_on_standing_still_is_replaced(start_stage: StartStage) -> None:
    stage = await start_stage(stall_s=1.0)
    began = time.monotonic()
    await stage.until(stage.serving.is_set)
    (engine,), (front_end,) = stage.children["engine"], stage.children["frontend-0"]
    await stage.until(lambda: len(stage.children["engine"]) == 2 and stage.children["engine"][1].is_ready)
    assert engine.gone
    assert time.monotonic() - began >= 3.0
    words = [type(frame) for frame in front_end.heard if not isinstance(frame, Agreed | Refresh)]
    # Told twice that it is down: at once, and when it has ended for certain.
    assert words == [EngineUp, EngineStalled, EngineDown, EngineDown, EngineUp]
    assert gauge(stage) == 0.0
    stage.supervisor.stop()
    await stage.ended()


def gauge(stage: Stage) -> float | None:
    return stage.supervisor._registry.collectors.get_sample_value("adamix_engine_stalled")


async def test_an_operator_may_ask_for_the_drain_through_a_front_end(start_stage: StartStage) -> None:
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    stage.drains_at_once = False
    (front_end,) = stage.children["frontend-0"]
    # Asked twice, it is still a drain: only a second signal ends a server at once.
    for _ in range(2):
        front_end.says.put_nowait(DrainWanted())
    await stage.until(lambda: stage.told_to_drain == ["frontend-0"])
    # Nor does the first signal end it: who takes a server out of service asks, and sends the signal then.
    stage.supervisor.stop()
    await asyncio.sleep(0.1)
    assert not front_end.gone
    stage.drains_at_once = True
    front_end.drain()
    await stage.ended()
    assert stage.drained == ["frontend-0", "engine"]


async def test_a_second_signal_ends_a_drain_at_once(start_stage: StartStage) -> None:
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    stage.drains_at_once = False
    stage.supervisor.stop()
    await stage.until(lambda: stage.told_to_drain == ["frontend-0"])
    stage.supervisor.stop()
    await stage.ended()
    assert stage.drained == []
    assert all(child.gone for (child,) in stage.children.values())


async def test_a_server_of_two_serves_when_both_do_and_both_share_its_port(start_stage: StartStage) -> None:
    def second_is_late(name: str, number: int) -> FromChild:
        return Stats(samples=[]) if name == "frontend-1" else healthy(name, number)

    stage = await start_stage(second_is_late, front_ends=2, http="127.0.0.1:0")
    await stage.until(lambda: len(stage.children) == 3 and stage.children["frontend-0"][0].is_ready)
    assert not stage.serving.is_set()
    ((first,), (second,)) = stage.children["frontend-0"], stage.children["frontend-1"]
    second.says.put_nowait(Ready(address=first.start_frame.listen))
    await stage.until(stage.serving.is_set)
    for child in (first, second):
        assert child.start_frame.shares_port
        assert child.start_frame.listen == first.start_frame.listen != "127.0.0.1:0"
        assert child.start_frame.http == first.start_frame.http not in ("", "127.0.0.1:0", first.start_frame.listen)
    stage.supervisor.stop()
    await stage.ended()


async def test_front_ends_drain_together_and_the_engine_after_the_last(start_stage: StartStage) -> None:
    stage = await start_stage(front_ends=2)
    await stage.until(stage.serving.is_set)
    stage.drains_at_once = False
    stage.supervisor.stop()
    await stage.until(lambda: len(stage.told_to_drain) == 2)
    stage.children["frontend-1"][0].drain()
    await stage.until(lambda: stage.children["frontend-1"][0].gone)
    assert stage.told_to_drain == ["frontend-0", "frontend-1"]
    stage.drains_at_once = True
    stage.children["frontend-0"][0].drain()
    await stage.ended()
    assert stage.drained == ["frontend-1", "frontend-0", "engine"]


async def test_front_ends_agree_through_the_supervisor_and_without_a_dead_one(start_stage: StartStage) -> None:
    stage = await start_stage(front_ends=2)
    await stage.until(stage.serving.is_set)
    (first,), (second,) = stage.children["frontend-0"], stage.children["frontend-1"]
    for child in (first, second):
        child.says.put_nowait(Seen(revision=1, oldest=1))
    await stage.until(lambda: first.heard[-1] == second.heard[-1] == Agreed(revision=1, oldest=1))
    first.says.put_nowait(Seen(revision=2, oldest=1))
    await stage.until(lambda: second.heard[-1] == Refresh(revision=2))
    # The second dies before it has seen it. Nobody waits for it, once it is sure that it answers nobody.
    second.die()
    await stage.until(lambda: first.heard[-1] == Agreed(revision=2, oldest=1))
    assert second.gone
    # The next one is told what it has to reach before it answers.
    await stage.until(lambda: len(stage.children["frontend-1"]) == 2)
    third = stage.children["frontend-1"][1]
    third.says.put_nowait(Seen(revision=1, oldest=1))
    await stage.until(lambda: third.heard[-2:] == [Refresh(revision=2), Agreed(revision=2, oldest=1)])
    stage.supervisor.stop()
    await stage.ended()


async def test_one_front_end_that_cannot_start_ends_the_server(start_stage: StartStage) -> None:
    def second_cannot(name: str, number: int) -> FromChild:
        return Fatal(message="no more ports") if name == "frontend-1" else healthy(name, number)

    stage = await start_stage(second_cannot, front_ends=2)
    with pytest.raises(FailedPrecondition, match="no more ports"):
        await stage.ended()


async def test_a_port_that_is_taken_ends_the_server_before_anything_is_started(
    start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(listen: str, field: str) -> Any:
        raise cannot_listen(listen, field)

    monkeypatch.setattr(supervisors, "held_port", refuse)
    started: list[str] = []
    stage = await start_stage(lambda name, number: started.append(name), front_ends=2)  # type: ignore[func-returns-value]
    with pytest.raises(InvalidConfig, match="another program uses it"):
        await stage.ended()
    assert not started


@pytest.mark.parametrize("name", ["store", "s" * 90])
def test_the_runtime_directory_is_private_short_and_cleared(tmp_path: Path, name: str) -> None:
    store = tmp_path / name
    leftover = store / "run" / "left-by-a-killed-server"
    leftover.mkdir(parents=True)
    with supervisors._runtime_directory(store) as runtime:
        assert runtime.stat().st_mode & 0o777 == 0o700
        assert not list(runtime.iterdir())
        assert len(f"{runtime}/engine-1000000.sock") < 107
    assert not runtime.exists()
