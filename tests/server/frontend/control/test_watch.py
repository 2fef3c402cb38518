"""WatchTasks: nothing missed, nothing twice, and an end that says why."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from types import SimpleNamespace

import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_client import Client
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import adapters_pb2_grpc
from adamix_server.catalog.rows import Snapshot, TaskRow
from adamix_server.channel.supervisor_frames import Drained
from adamix_server.frontend import endpoint
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.control.watch import Change, Mark, Watch, compare
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.network import network
from adamix_testing.refusals import refusal

WATCH = pb.WatchTasksRequest()


async def upload(data: bytes, task: str) -> AsyncIterator[pb.RegisterAdapterRequest]:
    yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task=task))
    yield pb.RegisterAdapterRequest(chunk=data)


async def read_all(call: AsyncIterable[object]) -> None:
    async for _ in call:
        pass


async def test_every_task_once_and_then_every_change(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)
    for task in ("b", "a"):
        seed(task, first)
    seed("theirs", first, tenant="other")
    harness = await start_serving()
    call = harness.adapters.WatchTasks(WATCH)

    async def told() -> tuple[str, bool, list[str]]:
        message = await call.read()
        return (
            message.task.name.rsplit("/", 1)[1],
            message.deleted,
            [share.digest for share in message.task.traffic],
        )

    digests = [hashlib.sha256(data).hexdigest() for data in (first, second)]
    assert [await told(), await told()] == [("a", False, digests[:1]), ("b", False, digests[:1])]
    assert (await call.read()).synchronised
    await harness.adapters.RegisterAdapter(upload(second, "a"))
    assert await told() == ("a", False, digests[1:])
    await harness.adapters.RegisterAdapter(upload(first, "c"))
    assert await told() == ("c", False, digests[:1])
    await harness.adapters.Rollback(pb.RollbackRequest(task="a"))
    assert await told() == ("a", False, digests[:1])
    await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="b"))
    assert await told() == ("b", True, [])
    call.cancel()


async def test_a_tenant_without_tasks_knows_that_it_is_heard(harness: Harness, make_adapter: MakeAdapter) -> None:
    call = harness.adapters.WatchTasks(WATCH)
    assert await call.read() == pb.WatchTasksResponse(synchronised=True)
    await harness.adapters.RegisterAdapter(upload(make_adapter(), "sst2"))
    message = await call.read()
    assert message.task.name == "tenants/default/tasks/sst2"
    assert message.task == (await harness.adapters.GetTask(pb.GetTaskRequest(task="sst2"))).task
    call.cancel()


async def test_whoever_follows_every_message_knows_every_task(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """Watchers that start at any moment of a storm of changes all end where the list does."""
    digests = [seed(f"t{i}", make_adapter(seed=seed_)) for i in range(4) for seed_ in (1, 2)][:2]
    harness = await start_serving()

    async def storm(task: str) -> None:
        for step in range(6):
            traffic = [pb.Traffic(digest=digests[step % 2], weight=1)]
            await harness.adapters.SetTraffic(pb.SetTrafficRequest(task=task, traffic=traffic))
        if task == "t3":
            await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task=task))

    async def watch(known: dict[str, str], etags: list[str]) -> None:
        async for message in harness.adapters.WatchTasks(WATCH):
            if message.deleted:
                del known[message.task.name]
            elif not message.synchronised:
                known[message.task.name] = message.task.etag
                etags.append(message.task.etag)

    views: list[tuple[dict[str, str], list[str]]] = []
    watchers: list[asyncio.Task[None]] = []
    storms = [asyncio.create_task(storm(f"t{i}")) for i in range(4)]
    while not all(task.done() for task in storms):
        if len(watchers) < 20:
            views.append(({}, []))
            watchers.append(asyncio.create_task(watch(*views[-1])))
        await asyncio.sleep(0.005)
    await asyncio.gather(*storms)
    listed = (await harness.adapters.ListTasks(pb.ListTasksRequest())).tasks
    expected = {task.name: task.etag for task in listed}
    assert len(expected) == 3
    await harness.until(lambda: all(known == expected for known, _ in views))
    assert all(len(etags) == len(set(etags)) for _, etags in views), "no state is told twice"
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)


async def test_only_so_many_watch(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.watch.MAX_WATCHERS", 2)
    seed("sst2", make_adapter())
    harness = await start_serving()
    calls = [harness.adapters.WatchTasks(WATCH) for _ in range(2)]
    for call in calls:
        await call.read()
    found = await refusal(read_all(harness.adapters.WatchTasks(WATCH)))
    assert found == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS")
    calls[0].cancel()
    # The place is free once the server has noticed.
    while True:
        call = harness.adapters.WatchTasks(WATCH)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.read()
            break
    for each in (call, calls[1]):
        each.cancel()


async def test_a_tenant_leaves_others_some_to_watch_with(
    start_serving: StartServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.watch.MAX_WATCHERS", 4)
    tenants = {name: of_role("owner", name) for name in ("default", "acme", "other")}
    harness = await start_serving(callers=Callers(tenants))
    watching = []
    for tenant, most in (("default", 2), ("acme", 1), ("other", 1)):
        for _ in range(most):
            watching.append(harness.adapters.WatchTasks(WATCH, metadata=said(tenant)))
            assert (await watching[-1].read()).synchronised
        found = await refusal(read_all(harness.adapters.WatchTasks(WATCH, metadata=said(tenant))))
        assert found == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS")
    for call in watching:
        call.cancel()


async def test_a_heartbeat_breaks_every_silence(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while other tenants' tasks change; and the stream has no end of its own."""
    monkeypatch.setattr("adamix_server.frontend.control.watch.HEARTBEAT_S", 0.05)
    seed("theirs", make_adapter(), tenant="other")
    harness = await start_serving()
    call = harness.adapters.WatchTasks(WATCH)
    assert (await call.read()).synchronised
    for _ in range(3):
        assert await call.read() == pb.WatchTasksResponse(heartbeat=True)
    await harness.adapters.RegisterAdapter(upload(make_adapter(), "mine"))
    while (message := await call.read()).heartbeat:
        pass
    assert message.task.name == "tenants/default/tasks/mine"
    assert (await call.read()).heartbeat
    call.cancel()


async def test_heartbeats_come_however_often_others_tasks_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.watch.HEARTBEAT_S", 0.05)
    view = SimpleNamespace(step=0)

    async def changed(since: Snapshot) -> Snapshot:
        await asyncio.sleep(0.001)
        view.step += 1
        return Snapshot(revision=view.step, tasks={("other", "t"): row("t", f"{view.step}", "other")})

    view.changed = changed
    watch = Watch(view, Admission(), Recorder())  # type: ignore[arg-type]
    marks = watch.follow("default", Snapshot(revision=0, tasks={}), lambda task: True)
    assert [await anext(marks) for _ in range(3)] == [Mark.SYNCHRONISED, Mark.HEARTBEAT, Mark.HEARTBEAT]
    await marks.aclose()


async def test_a_watcher_that_is_gone_without_a_word_gives_its_place_back(
    start_serving: StartServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits of the endpoint itself, a hundred times as short."""
    of_pings = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    assert {name for name, _ in endpoint.OPTIONS}.issuperset(of_pings)
    short = tuple((name, value // 100 if name in of_pings else value) for name, value in endpoint.OPTIONS)
    monkeypatch.setattr(endpoint, "OPTIONS", short)
    harness = await start_serving()
    ended: set[tuple[str, ...]] = set()

    def has_ended() -> bool:
        ended.update(sample.labels for sample in harness.front_end._recorder.drain())
        return ("adamix.v1.AdapterService/WatchTasks", "CANCELLED") in ended

    async with network(harness.address) as between, grpc.aio.insecure_channel(between.address) as channel:
        call = adapters_pb2_grpc.AdapterServiceStub(channel).WatchTasks(WATCH)
        await call.read()
        between.forget()
        async with asyncio.timeout(20):
            await harness.until(has_ended)


async def test_draining_ends_it(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    call = harness.adapters.WatchTasks(WATCH)
    await call.initial_metadata()
    # Far longer than the test may take: the drain does not wait for its end.
    harness.drain(grace_s=1000.0)
    assert await refusal(read_all(call)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await harness.supervisor.expect(Drained)


async def test_the_client_iterates_and_stops(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()

    def work(client: Client) -> None:
        changes = client.watch_tasks()
        change = next(changes)
        assert change.name == "tenants/default/tasks/sst2"
        assert change.task is not None
        assert change.task.traffic == ((digest, 1),)
        client.delete_task("sst2")
        change = next(changes)
        assert (change.name, change.task) == ("tenants/default/tasks/sst2", None)
        changes.close()

    await harness.call(work)


def row(task: str, etag: str, tenant: str = "default") -> TaskRow:
    return TaskRow(
        tenant=tenant,
        task=task,
        etag=etag,
        create_time_us=0,
        update_time_us=int(etag, 16),
        unavailable_reason="",
        ready=(),
        live=(),
        weights=(),
    )


SNAPSHOTS = st.dictionaries(
    st.tuples(st.sampled_from(["one", "two"]), st.sampled_from("abcdef")), st.sampled_from("0123"), max_size=10
).map(lambda etags: Snapshot(revision=0, tasks={key: row(key[1], etag, key[0]) for key, etag in etags.items()}))


@given(SNAPSHOTS, SNAPSHOTS)
def test_a_comparison_leads_from_one_snapshot_to_the_other(old: Snapshot, new: Snapshot) -> None:
    found = compare(old, new)
    for tenant in ("one", "two"):
        tasks = {key[1]: row.etag for key, row in old.tasks.items() if key[0] == tenant}
        for change in found.get(tenant, ()):
            if change.row is None:
                del tasks[change.task]
            else:
                assert tasks.get(change.task) != change.row.etag, "nothing is told that is known"
                tasks[change.task] = change.row.etag
        assert tasks == {key[1]: row.etag for key, row in new.tasks.items() if key[0] == tenant}


async def test_a_slow_reader_gets_the_newest_state_and_not_every_step() -> None:
    snapshots = [Snapshot(revision=i, tasks={("default", "t"): row("t", f"{i}")}) for i in range(5)]
    view = SimpleNamespace(snapshot=snapshots[0])

    async def changed(since: Snapshot) -> Snapshot:
        while view.snapshot is since:  # noqa: ASYNC110 - a stand-in
            await asyncio.sleep(0)
        return view.snapshot

    view.changed = changed
    watch = Watch(view, Admission(), Recorder())  # type: ignore[arg-type]
    changes = watch.follow("default", snapshots[0], lambda task: True)
    told = [await anext(changes), await anext(changes)]
    for view.snapshot in snapshots[1:]:
        await asyncio.sleep(0)
    told.append(await anext(changes))
    await changes.aclose()
    assert told == [Change("t", row("t", "0")), Mark.SYNCHRONISED, Change("t", row("t", "4"))]
