"""A front end among others: what it says, what it waits for, and what it keeps for the others' calls."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from adamix.errors import Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import adapters_pb2, inference_pb2, server_pb2
from adamix_server.agreement import Party
from adamix_server.catalog.store import Catalog
from adamix_server.channel.engine_frames import EngineLoad
from adamix_server.channel.supervisor_frames import (
    Agreed,
    Drain,
    Drained,
    DrainWanted,
    Ready,
    Refresh,
    Seen,
    StartFrontEnd,
    Stats,
)
from adamix_server.frontend.front_end import FrontEnd
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.fake_supervisor import FakeSupervisor
from adamix_testing.harness import Harness, StartServing

ONE = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])
DELETE = adapters_pb2.DeleteTaskRequest(task="sst2")


async def soon(harness: Harness) -> None:
    """Enough turns of everything for what is about to happen to have happened."""
    for _ in range(20):
        await harness.server.GetServerInfo(server_pb2.GetServerInfoRequest())


async def seen(supervisor: FakeSupervisor, revision: int, *, ended: bool = True) -> Seen:
    """What the front end says once it serves this revision, and (`ended`) no call of it uses an older one."""
    while True:
        frame: Seen = await supervisor.expect(Seen)
        if frame.revision == revision and (frame.oldest == revision) is ended:
            return frame


def test_the_oldest_is_the_one_of_the_call_that_began_first() -> None:
    books = Party()
    books.serve(5)
    first, second, third = books.reading(), books.reading(), books.reading()
    first.__enter__()
    second.__enter__()
    assert books.seen == Seen(revision=5, oldest=5)
    books.serve(6)
    third.__enter__()
    assert books.seen == Seen(revision=6, oldest=5)
    first.__exit__(None, None, None)
    assert books.seen == Seen(revision=6, oldest=5), "the second still runs"
    books.serve(7)
    second.__exit__(None, None, None)
    assert books.seen == Seen(revision=7, oldest=6)
    third.__exit__(None, None, None)
    assert books.seen == Seen(revision=7, oldest=7)


def test_one_that_joins_is_admitted_when_it_serves_what_was_agreed_on() -> None:
    books = Party()
    books.serve(3)
    assert not books.is_admitted
    books.take(Agreed(revision=5, oldest=2))
    assert not books.is_admitted
    books.serve(5)
    assert books.is_admitted


async def test_news_comes_once_and_only_when_there_is_some() -> None:
    books = Party()
    books.serve(1)
    assert await books.news() == Seen(revision=1, oldest=1)
    with books.reading():
        waiting = asyncio.create_task(books.news())
        await asyncio.sleep(0)
        with books.reading():
            books.serve(2)
        assert await waiting == Seen(revision=2, oldest=1)
    assert await books.news() == Seen(revision=2, oldest=2)
    waiting = asyncio.create_task(books.news())
    with books.reading():
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done(), "a call at the newest revision is no news"
    waiting.cancel()


async def test_waiting_ends_with_the_agreement_or_with_patience() -> None:
    books = Party()
    serving = asyncio.create_task(books.all_serve(4, 30))
    unused = asyncio.create_task(books.none_uses_less(4, 30))
    await asyncio.sleep(0)
    books.take(Agreed(revision=4, oldest=3))
    assert await serving
    assert not unused.done()
    books.take(Agreed(revision=4, oldest=4))
    assert await unused
    assert not await books.all_serve(5, 0.01)
    assert not await books.none_uses_less(5, 0.01)


async def test_no_call_is_answered_before_the_others_have_let_it_in(
    settings: StartFrontEnd, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter
) -> None:
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    supervisor.agrees = False
    running = asyncio.create_task(FrontEnd(settings, supervisor, connect=engine.connect).run())
    supervisor.tell(engine.up())
    first: Seen = await supervisor.expect(Seen)
    # While it joins, the others agree on a change that it has not seen.
    await asyncio.to_thread(seed, "sst2", make_adapter())
    supervisor.tell(Agreed(revision=first.revision + 1, oldest=first.oldest))
    await seen(supervisor, first.revision + 1)
    ready: Ready = await supervisor.expect(Ready)
    async with grpc.aio.insecure_channel(ready.address) as channel:
        from adamix_protos.v1 import inference_pb2_grpc

        assert (await inference_pb2_grpc.InferenceServiceStub(channel).Predict(ONE)).predictions[0].version
    supervisor.tell(Drain(delay_s=0, grace_s=1))
    await supervisor.expect(Drained)
    assert await running == 0


@pytest.mark.parametrize("order", [None, Drain(delay_s=0, grace_s=1)])
async def test_told_to_end_before_the_others_have_let_it_in(
    order: Drain | None, settings: StartFrontEnd, spec: BackboneSpec
) -> None:
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    supervisor.agrees = False
    running = asyncio.create_task(FrontEnd(settings, supervisor, connect=engine.connect).run())
    supervisor.tell(engine.up())
    await supervisor.expect(Seen)
    supervisor.tell(order)
    assert await running == 0
    assert not any(isinstance(frame, Ready) for frame in drain_queue(supervisor.from_child))


def drain_queue(queue: "asyncio.Queue[Any]") -> list[Any]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


async def test_a_change_returns_when_the_others_see_it_too(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.supervisor.agrees = False
    call = asyncio.ensure_future(harness.adapters.DeleteTask(DELETE))
    mine = await seen(harness.supervisor, 2)
    await soon(harness)
    assert not call.done()
    harness.supervisor.tell(Agreed(revision=mine.revision - 1, oldest=0))
    await soon(harness)
    assert not call.done()
    harness.supervisor.tell(Agreed(revision=mine.revision, oldest=0))
    await call


async def test_a_change_that_others_never_see_is_answered_all_the_same(
    start_serving: StartServing,
    seed: Seed,
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("adamix_server.frontend.catalog_view.AGREEMENT_TIMEOUT_S", 0.05)
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.supervisor.agrees = False
    await harness.adapters.DeleteTask(DELETE)
    assert "before every front end saw it" in caplog.text
    harness.supervisor.agrees = True


async def test_a_change_that_cannot_be_read_at_once_is_no_error(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [seed("sst2", make_adapter(seed=number)) for number in range(3)]
    failures = 0
    rollback, snapshot = Catalog.rollback, Catalog.snapshot

    def roll_back(catalog: Catalog, *arguments: Any, **named: Any) -> Any:
        nonlocal failures
        row = rollback(catalog, *arguments, **named)
        failures = 3
        return row

    def read(catalog: Catalog) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable("the catalog is busy", reason="CATALOG_BUSY", retry_after_s=1.0)
        return snapshot(catalog)

    monkeypatch.setattr(Catalog, "rollback", roll_back)
    monkeypatch.setattr(Catalog, "snapshot", read)
    harness = await start_serving()
    # An error would be taken for a change that was not made: the client would go back once more.
    done = await harness.adapters.Rollback(adapters_pb2.RollbackRequest(task="sst2"))
    assert failures == 0
    assert [share.digest for share in done.task.traffic] == [versions[1]]
    assert (await harness.inference.Predict(ONE)).predictions[0].version == versions[1]


async def test_a_change_that_can_never_be_read_is_answered_all_the_same(
    start_serving: StartServing,
    seed: Seed,
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("adamix_server.frontend.catalog_view.AGREEMENT_TIMEOUT_S", 0.05)
    seed("sst2", make_adapter())
    harness = await start_serving()

    def busy(_catalog: Catalog) -> Any:
        raise Unavailable("the catalog is busy", reason="CATALOG_BUSY")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "snapshot", busy)
        await harness.adapters.DeleteTask(DELETE)
    assert "before this front end could read it" in caplog.text


async def test_bytes_stay_while_traffic_is_being_set_to_them(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    old, new = (seed("sst2", make_adapter(seed=number)) for number in range(2))
    harness = await start_serving()
    harness.engine.silent_on.add("load")
    request = adapters_pb2.SetTrafficRequest(task="sst2", traffic=[adapters_pb2.Traffic(digest=old, weight=1)])
    setting = asyncio.ensure_future(harness.adapters.SetTraffic(request))
    await harness.until(lambda: len(harness.engine.controls) == 1)
    await harness.adapters.DeleteVersion(adapters_pb2.DeleteVersionRequest(task="sst2", digest=old))
    await soon(harness)
    assert harness.blobs() == sorted([old, new]), "the engine may be reading them"
    harness.engine.reply(harness.engine.controls[0])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setting
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await harness.until(lambda: harness.blobs() == [new])


async def test_what_another_front_end_changed_is_served_when_told(
    harness: Harness, seed: Seed, make_adapter: MakeAdapter
) -> None:
    await asyncio.to_thread(seed, "sst2", make_adapter())
    harness.supervisor.tell(Refresh(revision=1))
    await seen(harness.supervisor, 1)
    assert (await harness.inference.Predict(ONE)).predictions[0].version


async def test_bytes_stay_while_a_call_of_any_front_end_may_need_them(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    running = asyncio.ensure_future(harness.inference.Predict(ONE))
    await harness.until(lambda: len(harness.engine.held) == 1)
    await harness.adapters.DeleteTask(DELETE)
    await seen(harness.supervisor, 2, ended=False)
    await soon(harness)
    assert harness.blobs() == [digest]
    # Its own call has ended, but now another front end has one.
    harness.supervisor.agrees = False
    harness.engine.hold = False
    harness.engine.answer_all()
    await running
    done = await seen(harness.supervisor, 2)
    harness.supervisor.tell(Agreed(revision=done.revision, oldest=done.oldest - 1))
    await soon(harness)
    assert harness.blobs() == [digest]
    harness.supervisor.tell(Agreed(revision=done.revision, oldest=done.oldest))
    await harness.until(lambda: harness.blobs() == [])


async def test_metrics_of_a_task_end_wherever_it_was_deleted(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    from pathlib import Path

    def delete() -> None:
        catalog = Catalog(Path(harness.store), backbone_fingerprint=harness.engine.spec.fingerprint)
        catalog.delete_task("default", "sst2")
        catalog.close()

    await harness.inference.Predict(ONE)
    await asyncio.to_thread(delete)
    harness.supervisor.tell(Refresh(revision=2))
    name = "adamix_task_requests_total"
    ended = False
    while not ended:
        stats: Stats = await harness.supervisor.expect(Stats)
        ended = any((s.name, s.labels, s.values) == (name, ("default", "sst2"), []) for s in stats.samples)


async def test_load_is_what_the_engine_says_and_a_drain_is_passed_on(harness: Harness) -> None:
    said = EngineLoad(queued_inputs=1, queued_tokens=2, running_inputs=3, resident_adapters=4, slots=5)
    harness.engine.load = said
    load = await harness.server.GetLoad(server_pb2.GetLoadRequest())
    assert {field.name: value for field, value in load.ListFields()} == {
        name: getattr(said, name) for name in server_pb2.GetLoadResponse.DESCRIPTOR.fields_by_name
    }
    await harness.server.Drain(server_pb2.DrainRequest())
    await harness.supervisor.expect(DrainWanted)
    harness.kill_engine()
    await harness.until(lambda: not harness.front_end._link.is_up)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await harness.server.GetLoad(server_pb2.GetLoadRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
