"""The port of HTTP through the life of a front end: beside gRPC, with it, and to the end."""

import asyncio
import contextlib
from pathlib import Path

import httpx2
import msgspec
import pytest

from adamix_server.channel.supervisor_frames import Fatal
from adamix_server.frontend import endpoint
from adamix_server.frontend.front_end import FrontEnd
from adamix_server.frontend.http.app import App
from adamix_server.frontend.http.face import Face
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.route import Route
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.fake_supervisor import FakeSupervisor
from adamix_testing.harness import StartServing, start_front_end

BODY = {"inputs": [{"task": "sst2", "text": "w1"}]}


async def test_draining_refuses_new_requests_and_ends_running_ones(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(http="127.0.0.1:0")
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}", timeout=30) as client:
        harness.engine.hold = True
        running = asyncio.create_task(client.post("/v1/predict", json=BODY))
        await harness.until(lambda: bool(harness.engine.held))
        # A second connection, on which nothing is asked when the drain begins.
        assert (await client.get("/readyz")).status_code == 200
        harness.drain(grace_s=30)
        while (answer := await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert answer.text == "DRAINING\n"
        while (refused := await client.post("/v1/predict", json={})).status_code != 503:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert refused.json()["error"]["reason"] == "DRAINING"
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) >= 1
        assert not running.done()
        harness.engine.answer_all()
        assert (await running).status_code == 200


async def test_the_end_does_not_wait_for_connections_that_say_nothing(start_serving: StartServing) -> None:
    harness = await start_serving(http="127.0.0.1:0")
    host, _, port = harness.http.rpartition(":")
    silent, begun = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    begun[1].write(
        b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n"
    )
    harness.drain(grace_s=endpoint.REFUSE_S)
    for reader, writer in (silent, begun):
        await asyncio.wait_for(reader.read(), 10)
        writer.close()


async def test_a_port_that_is_taken_keeps_a_front_end_from_starting(
    start_serving: StartServing, tokenizer_file: Path
) -> None:
    harness = await start_serving(http="127.0.0.1:0")
    engine, supervisor = FakeEngine(harness.engine.spec), FakeSupervisor()
    start = msgspec.structs.replace(start_front_end(harness.store, tokenizer_file), http=harness.http)
    running = asyncio.create_task(FrontEnd(start, supervisor, connect=engine.connect).run())
    supervisor.tell(engine.up())
    fatal = await supervisor.expect(Fatal)
    assert harness.http in fatal.message
    assert await running == 1


async def test_a_port_that_asks_nobody_answers_to_no_name_but_this_machine_s(start_serving: StartServing) -> None:
    harness = await start_serving(http="127.0.0.1:0")
    port = harness.http.rpartition(":")[2]
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}") as client:

        async def status(host: str, **headers: str) -> tuple[int, str]:
            answer = await client.post("/v1/predict", json=BODY, headers={"host": host, **headers})
            return answer.status_code, answer.json()["error"]["reason"]

        # A name that was made to stand for this machine, whose page is then of the same site.
        for name in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "[x]"):
            assert await status(name) == (403, "HOST_FOREIGN"), name
            assert await status(name, origin=f"http://{name}") == (403, "HOST_FOREIGN"), name
            assert (await client.get("/v1/tasks", headers={"host": name})).status_code == 403, name
        for name in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "192.0.2.1"):
            assert await status(name) == (404, "NOT_FOUND"), name


async def test_a_request_that_does_not_end_holds_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamix_server.frontend.http.face._LAST_S", 0.05)
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def deaf(_: Request) -> Reply:
        has_begun.set()
        while not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await may_end.wait()
        return Reply()

    face = Face("127.0.0.1:0", App([Route("GET", "/", deaf)], Recorder()), shares_port=False)
    await face.start()
    host, _, port = face.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await has_begun.wait()
    await asyncio.wait_for(face.stop(0.0), 5)
    may_end.set()
    writer.close()
