"""The typed client's watch over streams that end: it tells what differs from what it has told, and nothing else."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import (
    AdamixError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from adamix_client import Client, TaskChange, watching
from adamix_client.watching import passes, pause
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import adapters_pb2_grpc
from adamix_server.api import status
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing
from adamix_testing.network import network

SYNCHRONISED = pb.WatchTasksResponse(synchronised=True)
HEARTBEAT = pb.WatchTasksResponse(heartbeat=True)
END = AdamixError("the end of a stream, without an error")
DRAINING = Unavailable("bye", reason="DRAINING", retry_after_s=0.01)


def task(name: str, etag: str = "1") -> pb.WatchTasksResponse:
    return pb.WatchTasksResponse(task=pb.Task(name=f"tenants/default/tasks/{name}", etag=etag))


def deleted(name: str) -> pb.WatchTasksResponse:
    return pb.WatchTasksResponse(task=pb.Task(name=f"tenants/default/tasks/{name}"), deleted=True)


Step = pb.WatchTasksResponse | AdamixError


class Played(adapters_pb2_grpc.AdapterServiceServicer):
    """A server whose n-th stream says the n-th script, and then is silent; the last one serves all further streams.

    An error in a script ends the stream with it, END without one.
    """

    def __init__(self, scripts: list[list[Step]]) -> None:
        self.scripts = scripts
        self.streams = 0
        self.over = threading.Event()

    def WatchTasks(self, _request: pb.WatchTasksRequest, context: Any) -> Iterator[pb.WatchTasksResponse]:
        script = self.scripts[min(self.streams, len(self.scripts) - 1)]
        self.streams += 1
        for step in script:
            if step is END:
                return
            if isinstance(step, AdamixError):
                context.set_trailing_metadata(status.to_trailers(step, status.to_status(step)))
                context.abort(status.grpc_code(step), step.message)
            yield step
        self.over.wait(30)


@contextmanager
def played(*scripts: list[Step]) -> Iterator[tuple[Played, Client]]:
    server, servicer = grpc.server(ThreadPoolExecutor(8)), Played(list(scripts))
    adapters_pb2_grpc.add_AdapterServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", timeout_s=5) as client:
            yield servicer, client
    finally:
        servicer.over.set()
        server.stop(0).wait()


def told(change: TaskChange) -> str:
    return f"{change.name.rsplit('/', 1)[1]}{'-' if change.task is None else change.task.etag}"


def test_a_resumed_watch_tells_what_differs_and_nothing_else() -> None:
    """Changed, deleted, new; also where streams end before they have listed everything, and a fourth is needed."""
    with played(
        [task("a"), task("b"), task("c"), SYNCHRONISED, HEARTBEAT, task("c", "2"), deleted("c"), DRAINING],
        [task("a"), DRAINING],
        [task("a"), task("b", "2"), END],
        [task("b", "2"), task("d"), HEARTBEAT, SYNCHRONISED, task("d"), task("d", "2"), deleted("b")],
    ) as (server, client):
        changes = client.watch_tasks()
        assert [told(next(changes)) for _ in range(10)] == ["a1", "b1", "c1", "c2", "c-", "b2", "d1", "a-", "d2", "b-"]
        changes.close()
        assert server.streams == 4


def test_deletions_wait_for_the_whole_listing() -> None:
    """A listing that is cut short says nothing of the tasks it has not reached."""
    with played([task("a"), task("b"), SYNCHRONISED, END], [task("a"), END], [task("a"), task("b"), SYNCHRONISED]) as (
        server,
        client,
    ):
        found: list[str] = []
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: found.extend(told(change) for change in client.watch_tasks()))
            until(lambda: server.streams == 3)
            client.close()
            reading.result(10)
        assert found == ["a1", "b1"]


@pytest.mark.parametrize(
    "script",
    [[END], [DRAINING], [task("a"), DRAINING], [task("a"), DeadlineExceeded("an hour", reason="STREAM_IDLE")]],
)
def test_before_everything_was_told_an_end_is_raised(script: list[Step]) -> None:
    """So a wrong address is an error, and the watch of an older server, which never says so, ends as it always did."""
    with played(script) as (server, client), pytest.raises((Unavailable, DeadlineExceeded)):
        list(client.watch_tasks())
    assert server.streams == 1


def test_what_does_not_pass_is_raised() -> None:
    with (
        played([SYNCHRONISED, DRAINING], [NotFound("no such tenant")]) as (server, client),
        pytest.raises(NotFound, match="tenant"),
    ):
        list(client.watch_tasks())
    assert server.streams == 2


def test_patience_ends_with_the_error_that_was_met() -> None:
    with played([task("a"), SYNCHRONISED, DRAINING], [DRAINING]) as (server, client):
        changes = client.watch_tasks(patience_s=0.5)
        assert told(next(changes)) == "a1"
        with pytest.raises(Unavailable, match="bye"):
            next(changes)
        assert server.streams > 1
    with played([SYNCHRONISED, DRAINING]) as (server, client):
        with pytest.raises(Unavailable, match="bye"):
            list(client.watch_tasks(patience_s=0))
        assert server.streams == 1


def test_a_server_that_said_it_lives_and_is_silent_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection may look well, so the channel is made anew; one that never said so may be silent for ever."""
    monkeypatch.setattr(watching, "SILENCE_S", 0.2)
    with played([SYNCHRONISED], [task("a"), SYNCHRONISED]) as (server, client):
        assert told(next(client.watch_tasks())) == "a1"
        assert server.streams == 2
    with played([task("a")]) as (server, client), ThreadPoolExecutor(1) as pool:
        changes = client.watch_tasks()
        next(changes)
        waiting = pool.submit(next, changes)
        with pytest.raises(TimeoutError):
            waiting.result(0.6)
        client.close()
        with pytest.raises(FailedPrecondition):
            waiting.result(10)
        assert server.streams == 1


def test_whoever_reads_slowly_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SILENCE_S", 0.2)
    with played([SYNCHRONISED, task("a"), HEARTBEAT, task("b")]) as (server, client):
        changes = client.watch_tasks()
        assert told(next(changes)) == "a1"
        threading.Event().wait(0.6)
        assert told(next(changes)) == "b1"
        assert server.streams == 1


async def test_a_watch_outlives_connections_that_are_forgotten_and_cut(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    for name in "abc":
        seed(name, make_adapter())
    harness = await start_serving()
    async with network(harness.address) as between:

        def work() -> None:
            with (
                Client(harness.address, timeout_s=30) as other,
                Client(between.address, keepalive_s=0.3, keepalive_timeout_s=0.3) as client,
            ):
                changes = client.watch_tasks()
                assert [next(changes).name.rsplit("/", 1)[1] for _ in range(3)] == ["a", "b", "c"]
                for name, disturb in (("a", None), ("b", between.forget), ("c", between.cut)):
                    if disturb is not None:
                        loop.call_soon_threadsafe(disturb)
                    other.delete_task(name)
                    change = next(changes)
                    assert (change.name, change.task) == (f"tenants/default/tasks/{name}", None)
                changes.close()

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(work)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DRAINING, True),
        (Unavailable("no server answers"), True),
        (DeadlineExceeded("idle", reason="STREAM_IDLE"), True),
        (Overloaded("64 watch", reason="TOO_MANY_WATCHERS", retry_after_s=10), True),
        (Overloaded("slow", reason="SLOW_READER"), True),
        (Overloaded("quota"), False),
        (InvalidRequest("no"), False),
        (FailedPrecondition("no", reason="CLIENT_FORKED"), False),
    ],
)
def test_which_ends_pass(error: AdamixError, expected: bool) -> None:
    assert passes(error) is expected


@given(st.integers(0, 5000), st.none() | st.floats(0, 100))
def test_pauses_grow_to_a_bound_and_heed_advice(tries: int, advised_s: float | None) -> None:
    found = pause(tries, advised_s)
    assert (advised_s or 0.0) <= found <= max(10.0, advised_s or 0.0)
    assert pause(0, None) < pause(20, None)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
