"""Requests that are not what they should be: each ends by itself, with its status and reason, and nothing else does."""

import asyncio
import json

import pytest

from adamix_testing.bare_http import BareHttp, Wire

HOST = b"host: x\r\n"
# What is no HTTP, or two things at once. The connection ends: where a next request would begin, nobody knows.
MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another version": b"GET /named/x HTTP/3.7\r\n" + HOST + b"\r\n",
    "no host": b"GET /named/x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /named/x HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "a length and chunks": b"POST /one HTTP/1.1\r\n"
    + HOST
    + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"POST /one HTTP/1.1\r\n"
    + HOST
    + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /one HTTP/1.1\r\n" + HOST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "a negative length": b"POST /one HTTP/1.1\r\n" + HOST + b"content-length: -1\r\n\r\n",
    "a length in words": b"POST /one HTTP/1.1\r\n" + HOST + b"content-length: one\r\n\r\n",
    "an endless length": b"POST /one HTTP/1.1\r\n" + HOST + b"content-length: 99999999999999999999999\r\n\r\n",
    "another encoding": b"POST /one HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip\r\n\r\nx",
    "a chunk without a size": b"POST /one HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk of endless size": b"POST /one HTTP/1.1\r\n"
    + HOST
    + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a name with a blank": b"GET /named/x HTTP/1.1\r\n" + HOST + b"na me: x\r\n\r\n",
    "a blank before the colon": b"POST /one HTTP/1.1\r\n" + HOST + b"content-length : 4\r\n\r\nbody",
    "a zero byte": b"GET /named/x HTTP/1.1\r\n" + HOST + b"name: \0\r\n\r\n",
    "bytes in the path": b"GET /named/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "a blank in the path": b"GET /named/a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n",
}
# (line, headers, body) -> (status, reason). The connection goes on.
REFUSED: dict[str, tuple[str, tuple[str, ...], bytes, int, str]] = {
    "no such path": ("GET /nowhere", (), b"", 404, "ROUTE_UNKNOWN"),
    "the root": ("GET /", (), b"", 404, "ROUTE_UNKNOWN"),
    "a path above": ("GET /named/../one", (), b"", 404, "ROUTE_UNKNOWN"),
    "two slashes": ("POST //one", (), b"x", 404, "ROUTE_UNKNOWN"),
    "a slash at the end": ("POST /one/", (), b"x", 404, "ROUTE_UNKNOWN"),
    "an encoded name of a path": ("POST /%6Fne", (), b"x", 404, "ROUTE_UNKNOWN"),
    "an empty name": ("GET /named/", (), b"", 404, "ROUTE_UNKNOWN"),
    "another method": ("DELETE /one", (), b"", 405, "METHOD_NOT_ALLOWED"),
    "a method of WebDAV": ("PROPFIND /one", (), b"", 405, "METHOD_NOT_ALLOWED"),
    "a trace": ("TRACE /one", (), b"", 405, "METHOD_NOT_ALLOWED"),
    "a zero byte in a name": ("GET /named/a%00b", (), b"", 400, "PATH_INVALID"),
    "a line in a name": ("GET /named/a%0d%0ab", (), b"", 400, "PATH_INVALID"),
    "an overlong dot": ("GET /named/%c0%ae%c0%ae", (), b"", 400, "PATH_INVALID"),
    "half a character": ("GET /named/%e2%82", (), b"", 400, "PATH_INVALID"),
    "a surrogate": ("GET /named/%ed%a0%80", (), b"", 400, "PATH_INVALID"),
    "a compressed body": ("POST /one", ("content-encoding: gzip",), b"x", 415, "CONTENT_ENCODING_UNSUPPORTED"),
    "a page of another site": ("POST /one", ("origin: http://evil.example",), b"x", 403, "ORIGIN_FOREIGN"),
    "a page of a file": ("POST /one", ("origin: null",), b"x", 403, "ORIGIN_FOREIGN"),
}


async def error_of(wire: Wire) -> tuple[int, str]:
    status, headers = await wire.head()
    error = json.loads(await wire.reader.readexactly(int(headers["content-length"])))["error"]
    assert error["code"] == status
    assert error.keys() == {"code", "status", "reason", "message", "field", "retry_after_s"}
    return status, error["reason"]


async def is_well(wire: Wire) -> bool:
    wire.ask("POST /one", body=b"x")
    return (await wire.answer())[0] == 200


@pytest.fixture(scope="module")
async def server() -> BareHttp:  # type: ignore[misc]
    async with BareHttp() as running:
        yield running


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_http_ends_its_connection_alone(server: BareHttp, name: str) -> None:
    other, wire = await server.open(), await server.open()
    wire.say(MALFORMED[name])
    async with asyncio.timeout(5):
        assert await error_of(wire) == (400, "MALFORMED_REQUEST")
        assert await wire.is_closed()
    assert await is_well(other)
    other.close()


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_request_fails_alone(server: BareHttp, name: str) -> None:
    line, headers, body, status, reason = REFUSED[name]
    wire = await server.open()
    wire.ask(line, *headers, body=body)
    assert await error_of(wire) == (status, reason)
    assert await is_well(wire)
    wire.close()


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("x", "x"),
        ("%2e%2e", ".."),
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("caf%C3%A9", "café"),
        ("a;b=c", "a;b=c"),
        ("..", ".."),
    ],
)
async def test_a_name_in_a_path_is_read_once(server: BareHttp, sent: str, read: str) -> None:
    wire = await server.open()
    wire.ask(f"GET /named/{sent}?query=1")
    assert await wire.answer() == (200, repr(read).encode())
    wire.ask(f"POST /named/{sent}:close")
    assert await wire.answer() == (200, repr(read).encode())
    wire.close()


async def test_other_methods(server: BareHttp) -> None:
    wire = await server.open()
    wire.ask("HEAD /named/x")
    status, headers = await wire.head()
    # The length that GET would have, and no body.
    assert (status, headers["content-length"]) == (200, "3")
    wire.ask("OPTIONS /named/x")
    status, headers = await wire.head()
    assert (status, headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    wire.ask("DELETE /named/x")
    status, headers = await wire.head()
    assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    await wire.reader.readexactly(int(headers["content-length"]))
    assert await is_well(wire)
    wire.close()


async def test_an_upgrade_is_not_made(server: BareHttp) -> None:
    for protocol in ("websocket", "h2c"):
        wire = await server.open()
        wire.ask("GET /named/x", "connection: upgrade", f"upgrade: {protocol}")
        assert (await wire.answer())[0] == 200
        wire.close()


async def test_an_old_client_is_answered_and_let_go(server: BareHttp) -> None:
    wire = await server.open()
    wire.say(b"GET /named/x HTTP/1.0\r\n\r\n")
    assert (await wire.answer())[0] == 200
    assert await wire.is_closed()


async def test_a_page_of_this_server_may_call_it(server: BareHttp) -> None:
    wire = await server.open()
    wire.ask("POST /one", "origin: http://x", body=b"x")
    assert (await wire.answer())[0] == 200
    wire.close()


async def test_a_body_shorter_than_it_says_leaves_nothing_behind(server: BareHttp) -> None:
    wire = await server.open()
    wire.ask("POST /one", "content-length: 10", body=b"x")
    await wire.writer.drain()
    await asyncio.sleep(0.02)
    wire.close()
    assert await server.admission.wait_idle(5)
