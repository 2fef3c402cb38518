"""Limits of one request and one connection, met exactly: what is at the limit is taken, one more is refused."""

import asyncio
import json

import pytest

from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.http import connection
from adamix_server.limits.http import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_PIPELINED
from adamix_testing.bare_http import BareHttp, Wire


async def reason(wire: Wire) -> tuple[int, str]:
    """Status and reason of the next answer, which is an error."""
    status, body = await wire.answer()
    return status, json.loads(body)["error"]["reason"]


async def test_a_body() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        wire.ask("POST /one", body=bytes(MAX_BODY_BYTES))
        assert (await wire.answer())[0] == 200
        # By what it says of itself, before it has come; the connection goes on once it has.
        wire.ask("POST /one", body=bytes(MAX_BODY_BYTES + 1))
        assert await reason(wire) == (413, "BODY_TOO_LARGE")
        wire.ask("POST /one", body=b"x")
        assert (await wire.answer())[0] == 200
        # And by what comes.
        wire.ask("POST /one", "transfer-encoding: chunked")
        wire.say(b"%x\r\n" % (MAX_BODY_BYTES + 1) + bytes(MAX_BODY_BYTES + 1) + b"\r\n0\r\n\r\n")
        assert await reason(wire) == (413, "BODY_TOO_LARGE")
        wire.close()


async def test_headers() -> None:
    head = "GET /named/x HTTP/1.1\r\nhost: x\r\nfiller: {}\r\n\r\n"
    # As they are counted: the path, and each header with 4 bytes more than its name and value.
    most = MAX_HEADER_BYTES - len("/named/x") - len("hostx") - 4 - len("filler") - 4
    async with BareHttp() as server:
        wire = await server.open()
        wire.say(head.format("x" * most).encode())
        assert (await wire.answer())[0] == 200
        wire.say(head.format("x" * (most + 1)).encode())
        assert await reason(wire) == (431, "HEADERS_TOO_LARGE")
        assert await wire.is_closed()
        # Those that never end, alike.
        wire = await server.open()
        wire.say(b"GET /named/x HTTP/1.1\r\nfiller: " + b"x" * (MAX_HEADER_BYTES + 1))
        assert await reason(wire) == (431, "HEADERS_TOO_LARGE")
        assert await wire.is_closed()


async def test_trailers_are_no_headers() -> None:
    async with BareHttp() as server:
        wire = await server.open()
        wire.ask("POST /one", "transfer-encoding: chunked")
        wire.say(b"1\r\nx\r\n0\r\nx-request-id: trailing\r\n\r\n")
        status, headers = await wire.head()
        assert status == 200
        assert headers["x-request-id"] != "trailing"
        wire = await server.open()
        wire.ask("PUT /upload", "transfer-encoding: chunked")
        wire.say(b"1\r\nx\r\n0\r\n" + b"filler: x\r\n" * MAX_HEADER_BYTES)
        assert await wire.is_closed()


async def test_connections() -> None:
    server = BareHttp()
    server.max_connections = 2
    async with server:
        first, second = await server.open(), await server.open()
        for wire in (first, second):
            wire.ask("POST /one", body=b"x")
            assert (await wire.answer())[0] == 200
        third = await server.open()
        assert await reason(third) == (503, "CONNECTIONS_FULL")
        assert await third.is_closed()
        first.close()
        async with asyncio.timeout(5):
            while server.face.connections > 1:  # noqa: ASYNC110 - a connection's end has no event here
                await asyncio.sleep(0.005)
        third = await server.open()
        third.ask("POST /one", body=b"x")
        assert (await third.answer())[0] == 200
        second.close()
        third.close()


async def test_an_idle_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.05)
    async with BareHttp() as server:
        # That never asked, and that asked once.
        silent, wire = await server.open(), await server.open()
        wire.ask("POST /one", body=b"x")
        assert (await wire.answer())[0] == 200
        assert await asyncio.wait_for(silent.is_closed(), 5)
        assert await asyncio.wait_for(wire.is_closed(), 5)


@pytest.mark.parametrize("is_new", [True, False])
async def test_line_breaks_between_requests_are_none(monkeypatch: pytest.MonkeyPatch, *, is_new: bool) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.2)
    async with BareHttp() as server:
        wire = await server.open()
        if not is_new:
            wire.ask("POST /one", body=b"x")
            assert (await wire.answer())[0] == 200
        wire.say(b"\r\n")
        assert await asyncio.wait_for(wire.is_closed(), 5)


async def test_a_last_answer_that_nobody_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.1)
    async with BareHttp() as server:
        wire = await server.open()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined] # a transport of a stream is one that reads
        wire.ask("GET /large", "connection: close")
        async with asyncio.timeout(5):
            while not server.face.connections:  # noqa: ASYNC110 - a connection has no event here
                await asyncio.sleep(0.005)
            while server.face.connections:  # noqa: ASYNC110 - nor has its end
                await asyncio.sleep(0.005)
        wire.close()


async def test_slow_headers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_MESSAGE_S", 0.05)
    async with BareHttp() as server:
        wire = await server.open()
        wire.say(b"GET /named/x HT")
        assert await asyncio.wait_for(reason(wire), 5) == (504, "MESSAGE_LATE")
        assert await wire.is_closed()


async def test_the_rest_of_a_refused_body_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    async with BareHttp() as server:
        wire = await server.open()
        wire.ask("POST /nowhere", "content-length: 10")
        assert await reason(wire) == (404, "ROUTE_UNKNOWN")
        # It comes, and the connection goes on.
        wire.say(b"0123456789")
        wire.ask("POST /one", body=b"x")
        assert (await wire.answer())[0] == 200
        # It does not.
        wire.ask("POST /nowhere", "content-length: 10")
        assert await reason(wire) == (404, "ROUTE_UNKNOWN")
        assert await asyncio.wait_for(wire.is_closed(), 5)


async def test_pipelined_requests() -> None:
    request = b"POST /one HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx"
    async with BareHttp() as server:
        wire = await server.open()
        wire.say(request * (MAX_PIPELINED + 1))
        for _ in range(MAX_PIPELINED + 1):
            assert (await wire.answer())[0] == 200
        wire.say(request * (MAX_PIPELINED + 2))
        assert await wire.is_closed()


async def test_a_pipelined_body_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    async with BareHttp() as server:
        wire = await server.open()
        has_begun, may_end = asyncio.Event(), asyncio.Event()

        async def wait() -> inference_pb2.PredictResponse:
            has_begun.set()
            await may_end.wait()
            return inference_pb2.PredictResponse()

        server.servicer.behave = wait
        wire.ask("POST /one", body=b"x")
        await has_begun.wait()
        # The next one begins to come while the first is answered, and is not done when the rest of an answered body
        # would have had its time.
        wire.ask("POST /one", "content-length: 2")
        wire.say(b"x")
        await asyncio.sleep(0.05)
        may_end.set()
        assert (await wire.answer())[0] == 200
        await asyncio.sleep(0.3)
        wire.say(b"y")
        assert (await wire.answer())[0] == 200
        wire.close()


async def test_a_request_that_began_before_the_last_answer_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.2)
    async with BareHttp() as server:
        wire = await server.open()
        has_begun, may_end = asyncio.Event(), asyncio.Event()

        async def wait() -> inference_pb2.PredictResponse:
            has_begun.set()
            await may_end.wait()
            return inference_pb2.PredictResponse()

        server.servicer.behave = wait
        wire.ask("POST /one", body=b"x")
        await has_begun.wait()
        wire.say(b"POST /one HTTP/1.1\r\nhost: x\r\n")
        await asyncio.sleep(0.05)
        may_end.set()
        assert (await wire.answer())[0] == 200
        may_end.clear()
        wire.say(b"content-length: 1\r\n\r\nx")
        await asyncio.sleep(0.4)
        may_end.set()
        assert (await wire.answer())[0] == 200
        wire.close()
