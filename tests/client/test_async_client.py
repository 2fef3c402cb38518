"""`AsyncClient`: the same methods as `Client` with the same arguments, on an event loop."""

import asyncio
import inspect
import io
import threading
import time
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import adamix_client.aio
from adamix_client import AsyncClient, Client, Input, Prediction, StreamInput, watching
from adamix_client.aio.make import MODULES, asynchronous
from adamix_client.errors import (
    Aborted,
    AdamixError,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing, judge_here
from adamix_testing.network import network
from adamix_testing.played_server import PlayedServer, classified
from adamix_testing.text_server import TextServer, words

METHODS = {name for name in dir(Client) if not name.startswith("_")}


def test_both_have_every_method_of_the_design() -> None:
    named = (
        "predict predict_iter predict_stream embed generate register tasks get_task versions traffic rollback pin "
        "unpin load unload delete watch info load_report drain keys tenants grants usage audit whoami "
        "wait_until_serving close"
    )
    assert set(named.split()) <= METHODS
    assert {name for name in dir(AsyncClient) if not name.startswith("_")} == METHODS


@pytest.mark.parametrize("name", sorted({*METHODS, "__init__"}))
def test_both_take_the_same_and_one_is_awaited(name: str) -> None:
    ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
    one, other = inspect.signature(ours), inspect.signature(theirs)

    def plain(signature: inspect.Signature) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    assert plain(one) == plain(other)
    gives = typing.get_origin(one.return_annotation)
    if gives is Generator:
        assert typing.get_origin(other.return_annotation) is AsyncGenerator
        assert typing.get_args(one.return_annotation)[0] == typing.get_args(other.return_annotation)[0]
    elif name != "__init__":
        assert inspect.iscoroutinefunction(theirs)
        assert one.return_annotation == other.return_annotation
    assert bool(inspect.getdoc(ours)) == bool(inspect.getdoc(theirs))


@pytest.mark.parametrize("module", MODULES)
def test_one_is_made_of_the_other(module: str) -> None:
    written = Path(adamix_client.aio.__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    assert written == asynchronous(module), "make it: python -m adamix_client.aio.make"


async def test_the_life_of_a_task(
    harness: Harness, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_here(monkeypatch)
    path = tmp_path / "first"
    path.write_bytes(make_adapter(seed=1))
    told: list[tuple[int, int | None]] = []
    async with AsyncClient(harness.address, timeout_s=30) as client:
        await client.wait_until_serving(10)
        first = (await client.register("sst2", path, progress=lambda *sent: told.append(sent))).version.digest
        assert told[-1] == (path.stat().st_size, path.stat().st_size)
        newer = (await client.register("sst2", io.BytesIO(make_adapter(seed=2)))).version.digest
        assert (await client.predict("sst2", "w1 w2")).label == "yes"
        assert [answer.version for answer in await client.predict("sst2", ["w1"] * 70)] == [newer] * 70
        assert [version.digest for version in await client.versions("sst2")] == [newer, first]
        task = await client.get_task("sst2")
        assert (await client.rollback("sst2")).traffic == ((first, 1),)
        with pytest.raises(Aborted):
            await client.traffic("sst2", newer, etag=task.etag)
        assert (await client.pin("sst2", first)).pinned
        assert not (await client.unpin("sst2", first)).pinned
        await client.delete("sst2", newer)
        await client.delete("sst2")
        assert await client.tasks() == []
        with pytest.raises(NotFound):
            await client.predict("sst2", "w1")
        assert (await client.whoami()).tenant == "default"
        assert (await client.info()).limits["max_inputs_per_call"] == 64
        assert (await client.load_report()).slots >= 0


async def test_streams_and_iterators(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()

    async def texts() -> AsyncIterator[str]:
        for number in range(150):
            await asyncio.sleep(0)
            yield f"w{number % 50}"

    async def inputs() -> AsyncIterator[StreamInput]:
        for number in range(300):
            yield StreamInput(str(number), Input("sst2", text="w1"))
        raise LookupError("of the caller's own")

    async with AsyncClient(harness.address, timeout_s=30) as client:
        found = [answer.label async for answer in client.predict_iter("sst2", texts())]
        assert found == ["yes"] * 150
        ids = set()

        async def read() -> None:
            async for answer in client.predict_stream(inputs()):
                ids.add(answer.id)

        with pytest.raises(LookupError):
            await read()
        assert ids == {str(number) for number in range(300)}
        with pytest.raises(InvalidRequest, match="text 101 is empty"):
            await client.predict("sst2", [*["w1"] * 100, " "])
        left = await client.predict("sst2", [*["w1"] * 100, " "], on_error="return")
        assert [answer.error is None for answer in left] == [*[True] * 100, False]


async def test_a_text_comes_in_deltas_and_may_be_left() -> None:
    with TextServer(lambda _: words("It ", "is.")) as server:
        async with AsyncClient(server.address) as client:
            deltas = [delta async for delta in client.generate("poet", "The hour")]
            assert [delta.text for delta in deltas] == ["It ", "is.", ""]
            async with aclosing(client.generate("poet", "The hour")) as left:
                assert (await anext(left)).text == "It "


async def test_a_watch_tells_changes_and_outlives_its_server(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_here(monkeypatch)
    seed("sst2", make_adapter())
    harness = await start_serving()
    async with network(harness.address) as between, AsyncClient(between.address, timeout_s=30) as client:
        changes = client.watch()
        assert (await anext(changes)).name.endswith("/sst2")
        await client.register("other", make_adapter(seed=3))
        assert (await anext(changes)).name.endswith("/other")
        await client.delete("other")
        assert (await anext(changes)).task is None
        await changes.aclose()


async def test_a_silent_server_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SILENCE_S", 0.2)
    hold = threading.Event()

    def once(_: Any) -> Any:
        yield adapters_pb2.WatchTasksResponse(synchronised=True)
        while not hold.is_set():
            time.sleep(0.01)

    with PlayedServer(WatchTasks=once) as server:
        async with AsyncClient(server.address) as client:
            with pytest.raises(Unavailable, match=r"silent for 0\.2 s"):
                await anext(client.watch(patience_s=0.05))
        hold.set()


async def test_calls_run_at_a_time_and_what_is_left_is_cancelled() -> None:
    with PlayedServer(Predict=classified) as server:
        async with AsyncClient(server.address) as client:
            answers = await client.predict("t", [str(number) for number in range(1000)], calls_in_flight=8)
            assert [answer.label for answer in answers] == [str(number) for number in range(1000)]
            async with aclosing(client.predict_iter("t", (str(number) for number in range(10**9)))) as endless:
                found = [await anext(endless) for _ in range(3)]
            assert all(isinstance(answer, Prediction) for answer in found)
    assert server.most_running <= 8


async def test_it_is_asked_again_as_the_other_asks() -> None:
    failures = [True, True, False]

    def busy(request: inference_pb2.PredictRequest) -> Any:
        if failures.pop(0):
            raise Overloaded("full", retry_after_s=0.01)
        return classified(request)

    with PlayedServer(Predict=busy) as server:
        async with AsyncClient(server.address) as client:
            assert (await client.predict("t", "hello")).label == "hello"
        failures[:] = [True]
        async with AsyncClient(server.address, retries=None) as once:
            with pytest.raises(Overloaded):
                await once.predict("t", "hello")


async def test_a_client_without_a_server_and_a_closed_one() -> None:
    client = AsyncClient("127.0.0.1:1", timeout_s=2, retries=None)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await client.tasks()
    with pytest.raises(Unavailable, match="did not become ready"):
        await client.wait_until_serving(0.2)
    await client.close()
    await client.close()
    with pytest.raises(FailedPrecondition) as closed:
        await client.tasks()
    assert closed.value.reason == "CLIENT_CLOSED"


async def test_a_forked_client_says_so_and_leaves_the_channel_to_its_parent() -> None:
    with PlayedServer(Predict=classified) as server:
        client = AsyncClient(server.address)
        await client.predict("t", "a")
        connection = client._calls.connection
        connection.leave_to_parent()
        for call in (client.tasks(), client.predict("t", ["a"] * 100), anext(client.watch())):
            with pytest.raises(FailedPrecondition) as forked:
                await call
            assert forked.value.reason == "CLIENT_FORKED"
        await client.close()
        assert connection._links, "nothing is closed"
        connection._is_forked = False
        await client.close()


async def test_a_call_that_runs_when_its_client_is_closed_says_so_and_a_cancelled_task_is_cancelled() -> None:
    hold, begun = threading.Event(), threading.Event()

    def held(request: inference_pb2.PredictRequest) -> Any:
        begun.set()
        hold.wait(10)
        return classified(request)

    with PlayedServer(Predict=held) as server:
        async with AsyncClient(server.address) as client:
            cancelled = asyncio.create_task(client.predict("t", "a"))
            await asyncio.to_thread(begun.wait, 10)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            begun.clear()
            running = asyncio.create_task(client.predict("t", "a"))
            await asyncio.to_thread(begun.wait, 10)
            await client.close()
            with pytest.raises(AdamixError) as closed:
                await running
            assert closed.value.reason == "CLIENT_CLOSED"
        hold.set()


async def test_after_three_deadlines_without_a_byte_the_channel_is_made_anew(harness: Harness) -> None:
    options = {"grpc.keepalive_time_ms": 3_600_000, "grpc.http2.ping_timeout_ms": 3_600_000}
    async with network(harness.address) as between:
        async with AsyncClient(
            between.address, timeout_s=0.3, keepalive_timeout_s=0.5, channel_options=options, retries=None
        ) as client:
            await client.wait_until_serving(10)
            between.forget()
            codes = []
            for _ in range(5):
                try:
                    await client.info()
                    codes.append("")
                except AdamixError as error:
                    codes.append(error.reason)
        assert codes == [*["DEADLINE_EXCEEDED"] * 3, "", ""]
        assert between.connections == 2
