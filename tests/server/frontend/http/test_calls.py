"""Calls of the boundary over HTTP: their ends, their deadlines, and clients that leave or do not read."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from adamix.errors import NotFound, Overloaded
from adamix_protos.v1 import inference_pb2
from adamix_server.access.principal import Principal
from adamix_server.access.refusal import unauthenticated
from adamix_server.frontend.boundary.bounds import Bounds
from adamix_server.frontend.boundary.gate import Gate
from adamix_testing.bare_boundary import PlayedServicer
from adamix_testing.bare_http import GENERATE, PREDICT, BareHttp

PREDICT_LABEL, GENERATE_LABEL = PREDICT[1:], GENERATE[1:]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it may be anything
        await asyncio.sleep(0.005)


async def ended(server: BareHttp, method: str, code: str) -> None:
    """Wait until a call has been counted as ended so."""
    seen = 0.0
    while not seen:
        seen += server.counts().get((method, code), 0.0)
        await asyncio.sleep(0.005)


async def test_a_call_and_its_request_id() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        wire.ask("POST /one", "x-request-id: mine-1", body=b"x")
        status, headers = await wire.head()
        assert (status, headers["x-request-id"]) == (200, "mine-1")
        # The connection goes on; of an id that is none the server makes its own.
        wire.ask("POST /one", "x-request-id: not ours", body=b"x")
        status, headers = await wire.head()
        assert status == 200
        assert headers["x-request-id"] not in ("", "not ours")
        wire.close()


async def test_an_error_has_status_reason_and_time_to_wait() -> None:
    async with BareHttp() as server:
        wire = await server.open()

        def refuse() -> Any:
            raise Overloaded("no room", reason="OVERLOADED", retry_after_s=2.0)

        server.servicer.behave = refuse
        wire.ask("POST /one", body=b"x")
        status, headers = await wire.head()
        error = json.loads(await wire.reader.readexactly(int(headers["content-length"])))["error"]
        assert status == error["code"] == 429
        assert (error["status"], error["reason"], error["message"]) == ("RESOURCE_EXHAUSTED", "OVERLOADED", "no room")
        assert 1.6 <= error["retry_after_s"] <= 2.4
        assert headers["retry-after"] in ("2", "3")
        wire.close()


async def test_a_bug_is_answered_without_a_word_of_it() -> None:
    async with BareHttp() as server:
        wire = await server.open()

        def fail() -> Any:
            raise RuntimeError("/secret/path")

        server.servicer.behave = fail
        wire.ask("POST /one", body=b"x")
        status, body = await wire.answer()
        assert status == 500
        assert b"secret" not in body
        assert json.loads(body)["error"]["reason"] == "INTERNAL"
        wire.close()


async def test_who_calls_is_judged_before_the_body_is_read() -> None:
    def nobody(_: Any) -> Principal:
        raise unauthenticated()

    async with BareHttp(gate=Gate(nobody)) as server:
        wire = await server.open()
        # Nothing of the body is sent: the client waits to be told to go on.
        wire.ask("POST /one", "expect: 100-continue", "content-length: 10")
        status, headers = await wire.head()
        assert status == 401
        assert headers["www-authenticate"] == "Bearer"
        wire.close()


async def test_expect_100_continue() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        wire.ask("POST /one", "expect: 100-continue", "content-length: 4")
        assert (await wire.head())[0] == 100
        wire.say(b"body")
        assert (await wire.answer())[0] == 200
        wire.close()


async def test_a_pipelined_request_that_expects_100_continue_does_not_end_the_connection() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        wire.say(
            b"POST /one HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx"
            b"POST /one HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n"
        )
        status, headers = await wire.head()
        assert status == 200
        assert "connection" not in headers
        assert (await wire.head())[0] == 100
        wire.say(b"y")
        assert (await wire.answer())[0] == 200
        wire.close()


@pytest.mark.parametrize("sent", ["0", "-1", "nan", "inf", "1e3", "", "1_0", "2 3", "٣"])
async def test_a_timeout_that_is_none(sent: str) -> None:
    async with BareHttp() as server:
        wire = await server.open()
        wire.say(
            b"POST /one HTTP/1.1\r\nhost: x\r\nadamix-timeout-s: " + sent.encode() + b"\r\ncontent-length: 0\r\n\r\n"
        )
        status, body = await wire.answer()
        assert (status, json.loads(body)["error"]["reason"]) == (400, "TIMEOUT_INVALID")
        wire.close()


async def test_a_caller_s_own_limit_ends_its_call() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        server.servicer.behave = asyncio.Event().wait
        wire.ask("POST /one", "adamix-timeout-s: 0.05", body=b"x")
        status, body = await wire.answer()
        assert (status, json.loads(body)["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
        await ended(server, PREDICT_LABEL, "DEADLINE_EXCEEDED")
        assert await server.admission.wait_idle(5)
        wire.close()


# The larger one is more than uvicorn keeps before it stops to read.
@pytest.mark.parametrize("num_bytes", [1, 300_000])
async def test_a_client_that_leaves_ends_its_call_at_once(num_bytes: int) -> None:
    async with BareHttp() as server:
        wire = await server.open()
        begun = asyncio.Event()

        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()

        server.servicer.behave = hang
        wire.ask("POST /one", body=bytes(num_bytes))
        await begun.wait()
        wire.close()
        assert await server.admission.wait_idle(5)
        await ended(server, PREDICT_LABEL, "CANCELLED")


async def test_a_client_that_leaves_ends_a_call_that_began_while_an_answer_was_read() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        begun = asyncio.Event()

        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()

        server.servicer.behave = hang
        wire.ask("GET /large")
        wire.ask("POST /one", body=b"x")
        await begun.wait()
        assert (await wire.answer())[0] == 200
        wire.close()
        await asyncio.wait_for(ended(server, PREDICT_LABEL, "CANCELLED"), 5)


async def test_a_stream_and_its_end() -> None:
    async with BareHttp() as server:
        server.servicer.delta = "abc"
        wire = await server.open()
        wire.ask("GET /many")
        status, headers = await wire.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await wire.reader.readexactly(8) == b"3\r\nabc\r\n"
        body = await wire.reader.readuntil(b"0\r\n\r\n")
        assert body.count(b"abc") == 9_999
        await ended(server, GENERATE_LABEL, "OK")
        wire.close()


async def test_an_error_before_a_stream_has_begun_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(_self: Any, _request: Any, _context: Any) -> AsyncIterator[Any]:
        raise NotFound("no such task")
        yield

    monkeypatch.setattr(PlayedServicer, "Generate", gone)
    async with BareHttp() as server:
        wire = await server.open()
        wire.ask("GET /many")
        status, body = await wire.answer()
        assert (status, json.loads(body)["error"]["status"]) == (404, "NOT_FOUND")
        wire.close()


async def test_an_error_in_a_stream_ends_the_connection() -> None:
    async with BareHttp() as server:

        def fail() -> Any:
            raise Overloaded("no more")

        server.servicer.behave = fail
        wire = await server.open()
        wire.ask("GET /many")
        assert (await wire.head())[0] == 200
        rest = await wire.reader.read()
        # Its reader sees that it is not complete.
        assert not rest.endswith(b"0\r\n\r\n")
        wire.close()


async def test_a_client_that_leaves_ends_its_stream() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        server.servicer.behave = lambda: asyncio.sleep(0.01)
        wire.ask("GET /many")
        await wire.head()
        wire.close()
        await asyncio.wait_for(server.servicer.closed.wait(), 5)
        await ended(server, GENERATE_LABEL, "CANCELLED")
        assert await server.admission.wait_idle(5)


async def test_a_stream_that_nobody_reads_ends() -> None:
    async with BareHttp(Bounds(write_s=0.1)) as server:
        server.servicer.delta = "x" * 60_000
        wire = await server.open()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined] # of asyncio's own transports
        wire.ask("GET /many")
        await asyncio.wait_for(server.servicer.closed.wait(), 5)
        await ended(server, GENERATE_LABEL, "RESOURCE_EXHAUSTED")
        # The connection is gone with what it held, so nothing weighs on anybody.
        await until(lambda: not server.face.connections)
        wire.close()


async def test_a_large_answer_that_nobody_reads_is_dropped() -> None:
    async with BareHttp(Bounds(write_s=0.1)) as server:
        large = inference_pb2.PredictResponse()
        large.predictions.add().logits.extend([1.0] * 3_000_000)
        server.servicer.behave = lambda: large
        wire = await server.open()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined] # as above
        wire.ask("POST /one", body=b"x")
        await until(lambda: bool(server.face.connections))
        await asyncio.wait_for(until(lambda: not server.face.connections), 5)
        wire.close()


@pytest.mark.parametrize("framing", ["content-length: 10", "transfer-encoding: chunked"])
async def test_a_body_that_stalls_ends_as_a_message_that_does_not_come(framing: str) -> None:
    async with BareHttp(Bounds(message_s=0.1, patience_s=0.05)) as server:
        wire = await server.open()
        wire.ask("POST /one", framing, body=b"a" if framing.startswith("content") else b"1\r\na\r\n")
        status, body = await asyncio.wait_for(wire.answer(), 5)
        assert (status, json.loads(body)["error"]["reason"]) == (504, "MESSAGE_LATE")
        # What does come late is dropped, and the connection goes on.
        wire.say(b"b" * 9 if framing.startswith("content") else b"0\r\n\r\n")
        wire.ask("POST /one", body=b"x")
        assert (await wire.answer())[0] == 200
        wire.close()


async def test_an_upload_comes_in_parts() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        wire.ask("PUT /upload", "transfer-encoding: chunked")
        for part in (b"5\r\nhello\r\n", b"1\r\n!\r\n", b"0\r\n\r\n"):
            wire.say(part)
            await wire.writer.drain()
            await asyncio.sleep(0.02)
        status, body = await wire.answer()
        assert (status, body) == (200, b"2")
        wire.close()
