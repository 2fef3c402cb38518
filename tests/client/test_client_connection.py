"""A connection that the network forgets: found by pings, or by deadlines, and made anew without disturbing others."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest

from adamix.errors import AdamixError, Code, DeadlineExceeded, FailedPrecondition, Unavailable
from adamix_client import Client
from adamix_client.connection import MAX_SILENT_DEADLINES, Connection, channel_options
from adamix_protos.v1 import inference_pb2, server_pb2
from adamix_server.limits.messages import MAX_METADATA_BYTES
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.network import Network, network

NO_PINGS = {"grpc.keepalive_time_ms": 3_600_000, "grpc.http2.ping_timeout_ms": 3_600_000}


@pytest.fixture
async def between(harness: Harness) -> AsyncIterator[Network]:
    async with network(harness.address) as found:
        yield found


def test_every_option_has_one_place_and_can_be_overruled() -> None:
    options = dict(channel_options(keepalive_s=7, extra={"grpc.max_send_message_length": -1, "grpc.http_proxy": "x"}))
    assert options["grpc.keepalive_time_ms"] == 7_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.max_pings_without_data"] == 0
    assert options["grpc.max_metadata_size"] == options["grpc.absolute_max_metadata_size"]
    assert (options["grpc.max_send_message_length"], options["grpc.http_proxy"]) == (-1, "x")
    assert dict(channel_options())["grpc.keepalive_time_ms"] == 20_000
    assert dict(channel_options(keepalive_s=math.inf))["grpc.keepalive_time_ms"] == 2**31 - 1
    for name in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms", "grpc.max_reconnect_backoff_ms"):
        assert dict(channel_options())[name] == 5_000


def test_every_channel_of_ours_has_them() -> None:
    root = Path(__file__).parents[2]
    files = [file for part in ("server", "benchmarks", "tests/support") for file in (root / part).rglob("*.py")]
    ours = [text for text in (file.read_text(encoding="utf-8") for file in files) if "insecure_channel(" in text]
    assert len(ours) >= 3
    assert all("channel_options(" in text and "insecure_channel(address)" not in text for text in ours)


async def test_pings_find_a_forgotten_connection(between: Network) -> None:
    def work() -> None:
        with Client(between.address, timeout_s=30, keepalive_s=0.3, keepalive_timeout_s=0.3, retries=None) as client:
            client.server_info()
            between.forget()
            with pytest.raises(Unavailable, match="ping timeout"):
                client.server_info()
            until_answered(client)

    await asyncio.to_thread(work)
    assert between.connections == 2


async def test_after_three_deadlines_without_a_byte_the_channel_is_made_anew(between: Network) -> None:
    """Whatever answers pings in between: here nobody sends any."""

    def work() -> list[Code | None]:
        with Client(between.address, timeout_s=0.3, keepalive_timeout_s=0.5, channel_options=NO_PINGS) as client:
            client.wait_until_serving(10)
            between.forget()
            return [outcome(client) for _ in range(MAX_SILENT_DEADLINES + 2)]

    silent = [Code.DEADLINE_EXCEEDED] * MAX_SILENT_DEADLINES
    assert await asyncio.to_thread(work) == [*silent, None, None]
    assert between.connections == 2


async def test_a_busy_server_that_misses_deadlines_is_not_called_anew_all_the_time(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """However many pass, a channel lasts for as long as a ping may."""
    seed("sst2", make_adapter())
    harness = await start_serving()
    async with network(harness.address) as between:

        def work() -> None:
            with (
                Client(between.address, timeout_s=30) as patient,
                Client(between.address, timeout_s=0.05) as hasty,
            ):
                hasty.wait_until_serving(10)
                patient.wait_until_serving(10)
                harness.engine.hold = True
                for _ in range(2 * MAX_SILENT_DEADLINES):
                    with pytest.raises(DeadlineExceeded):
                        hasty.predict(task="sst2", texts=["w1"])

        await asyncio.to_thread(work)
        assert between.connections == 2


async def test_short_deadlines_just_after_an_answer_are_not_a_dead_connection(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """However old the connection is: what counts is how long nothing came."""
    seed("sst2", make_adapter())
    harness = await start_serving()
    async with network(harness.address) as between:

        def work() -> None:
            with Client(between.address, timeout_s=0.001, keepalive_timeout_s=1) as client:
                client.wait_until_serving(10)
                time.sleep(1)
                harness.engine.hold = True
                client.wait_until_serving(10)
                for _ in range(2 * MAX_SILENT_DEADLINES):
                    with pytest.raises(DeadlineExceeded):
                        client.predict(task="sst2", texts=["w1"])
                client.wait_until_serving(10)

        await asyncio.to_thread(work)
        assert between.connections == 1


async def test_calls_of_other_threads_go_on_where_they_are(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    found = Connection(harness.address, channel_options(), renewal_s=0.0)

    def predict() -> int:
        request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])
        with found.calling() as link:
            return len(link.inference.Predict(request, timeout=30).predictions)

    def work() -> None:
        with found.calling() as old:
            pass
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(predict)
            while not harness.engine.held:
                time.sleep(0.005)
            found.renew(old)
            with found.calling() as new:
                assert new is not old
            found.renew(old)
            with found.calling() as still:
                assert still is new, "one death is one new channel"
            harness.engine.hold = False
            asyncio.run_coroutine_threadsafe(answer_all(), loop).result(10)
            assert running.result(10) == 1
        with pytest.raises(ValueError, match="closed channel"):
            old.server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=5)
        found.close()

    async def answer_all() -> None:
        harness.engine.answer_all()

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(work)


async def test_a_closed_client_says_so(harness: Harness) -> None:
    def work() -> None:
        client = Client(harness.address, timeout_s=5)
        client.server_info()
        client.close()
        client.close()
        with pytest.raises(FailedPrecondition) as refused:
            client.server_info()
        assert refused.value.reason == "CLIENT_CLOSED"

    await asyncio.to_thread(work)


def outcome(client: Client) -> Code | None:
    """How a call ends; None if it is answered."""
    try:
        client.server_info()
    except AdamixError as error:
        return error.code
    return None


def until_answered(client: Client) -> None:
    """Calls end at once while what is left of a connection is cleared away."""
    end = time.monotonic() + 10
    while outcome(client) is not None:
        assert time.monotonic() < end


@pytest.mark.parametrize(("size", "is_taken"), [(MAX_METADATA_BYTES - 1024, True), (MAX_METADATA_BYTES + 1, False)])
def test_metadata_from_a_server_is_taken_or_refused_and_never_by_chance(size: int, is_taken: bool) -> None:
    """Between a soft and a hard limit grpc draws: so they are one."""

    def answer(_request: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("x", "y" * size),))
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("adamix.Test", {"Ask": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    found = Connection(f"127.0.0.1:{port}", channel_options(), renewal_s=5)
    for _ in range(20):
        with pytest.raises(AdamixError) if not is_taken else nullcontext(), found.calling() as link:
            link.channel.unary_unary("/adamix.Test/Ask")(b"", timeout=30)
    found.close()
    server.stop(0).wait()


def test_a_call_that_never_ends_holds_nobody_who_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that Ctrl-C found in its beginning, for which gRPC's own end of the channel waits."""
    monkeypatch.setattr("adamix_client.connection._CLOSE_S", 0.01)
    client, ends = Client("127.0.0.1:1", retries=None), threading.Event()
    with pytest.raises(Unavailable):
        client.tasks()
    (link,) = client._calls.connection._links
    monkeypatch.setattr(link.channel, "close", lambda: ends.wait(20))
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 10
    ends.set()
