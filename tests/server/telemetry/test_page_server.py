"""The HTTP server for probes and scrapes, over real sockets: what it answers, and what no caller can take from it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from adamix_server.telemetry.page_server import Bounds, Page, PageServer, Request

# No test waits for one of these.
AMPLE = Bounds(connections=4, head_bytes=200, head_s=30.0, answer_s=30.0, rest_s=30.0, place_s=0.0)
GET = b"GET /page HTTP/1.1\r\nHost: here\r\n\r\n"
Answer = Callable[[Request], Awaitable[Page]]


async def echo(request: Request) -> Page:
    return Page(f"{request.path} for {request.headers.get('host', 'nobody')}".encode())


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        return int(line.split()[1]), dict(item.split(": ", 1) for item in lines)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        return status, headers, await self._reader.readexactly(int(headers["Content-Length"]))

    async def asks(self, data: bytes = GET) -> tuple[int, dict[str, str], bytes]:
        self.send(data)
        return await self.response()

    async def is_ended(self) -> bool:
        """Waits until the server ends the connection; false if it says something first."""
        try:
            return await self._reader.read() == b""
        except ConnectionResetError:
            return True

    async def leaves(self) -> None:
        self._writer.transport.abort()
        await asyncio.sleep(0)


class Place:
    """A page server that listens, and callers that have left when the block ends."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.callers: list[Caller] = []

    async def caller(self) -> Caller:
        self.callers.append(Caller(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.callers[-1]


@asynccontextmanager
async def listening(answer: Answer = echo, **bounds: float) -> AsyncIterator[Place]:
    server = PageServer(answer, replace(AMPLE, **bounds))
    place = Place(server.listen("127.0.0.1", 0))
    try:
        yield place
    finally:
        for caller in place.callers:
            await caller.leaves()
        await server.close()


async def test_requests_on_one_connection_are_answered_one_after_another() -> None:
    async with listening() as place:
        caller = await place.caller()
        caller.send(GET + GET.replace(b"page", b"other?x=1"))
        status, headers, body = await caller.response()
        assert (status, body) == (200, b"/page for here")
        assert headers["Connection"] == "keep-alive"
        assert headers["Cache-Control"] == "no-store"
        assert (await caller.response())[2] == b"/other for here"


async def test_head_is_the_same_without_the_body() -> None:
    async with listening() as place:
        caller = await place.caller()
        caller.send(GET.replace(b"GET", b"HEAD") + GET)
        status, headers = await caller.head()
        assert (status, headers["Content-Length"]) == (200, str(len("/page for here")))
        assert (await caller.response())[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /page HTTP/1.1\r\n\r\n", 405),
        (b"GET /page HTTP/2.0\r\n\r\n", 505),
        (b"GET /page\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        ("GET /ä HTTP/1.1\r\n\r\n".encode(), 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_for_a_page_is_refused_and_the_connection_ends(request_: bytes, status: int) -> None:
    async with listening() as place:
        caller = await place.caller()
        found, headers, _ = await caller.asks(request_)
        assert found == status
        assert headers.get("Allow") == ("GET, HEAD" if status == 405 else None)
        assert await caller.is_ended()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /page HTTP/1.0\r\n\r\n",
        b"GET /page HTTP/1.1\r\nConnection: close\r\n\r\n",
        # Bodies are not read: what follows is no request.
        b"GET /page HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        b"GET /page HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_a_connection_ends_after_a_request_that_says_so_or_brings_a_body(request_: bytes) -> None:
    async with listening() as place:
        caller = await place.caller()
        status, headers, _ = await caller.asks(request_)
        assert (status, headers["Connection"]) == (200, "close")
        assert await caller.is_ended()


async def test_a_page_that_cannot_be_made_is_an_error_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request) -> Page:
        raise OSError("/secret/path")

    with caplog.at_level(logging.ERROR):
        async with listening(fail) as place:
            status, _, body = await (await place.caller()).asks()
    assert (status, body) == (500, b"Internal Server Error\n")
    assert "a page cannot be made" in caplog.text


async def test_a_head_of_the_most_bytes_is_read_and_one_more_is_not() -> None:
    def head(size: int) -> bytes:
        start = b"GET / HTTP/1.1\r\nX: "
        return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"

    async with listening(head_bytes=200) as place:
        caller = await place.caller()
        assert (await caller.asks(head(200)))[0] == 200
        # Also the second one on a connection.
        assert (await caller.asks(head(200)))[0] == 200
        assert (await caller.asks(head(201)))[0] == 431
        assert await caller.is_ended()
        # One that never ends.
        assert (await (await place.caller()).asks(b"GET /" + b"x" * 1000))[0] == 431


async def test_the_oldest_silent_connection_makes_room() -> None:
    async with listening(connections=4) as place:
        first, second, third, fourth = [await place.caller() for _ in range(4)]
        for caller in (first, second):
            assert (await caller.asks())[0] == 200
        # Now the third has been silent for longest, then the fourth; the first two only since their answers.
        for new in ("fifth", "sixth"):
            assert (await (await place.caller()).asks())[0] == 200, new
        assert await third.is_ended()
        assert await fourth.is_ended()
        for caller in (first, second):
            assert (await caller.asks())[0] == 200


async def test_a_new_caller_is_heard_among_many_that_say_nothing_or_drip() -> None:
    async with listening(connections=4) as place:
        for number in range(40):
            silent = await place.caller()
            if number % 2:
                silent.send(b"G")
        assert (await (await place.caller()).asks())[0] == 200


async def test_in_a_flood_each_caller_has_a_moment() -> None:
    async with listening(connections=1, place_s=0.5) as place:
        first, second = await place.caller(), await place.caller()
        # The second waits for the first, who may still speak.
        second.send(GET)
        assert (await first.asks())[0] == 200
        assert (await second.response())[0] == 200
        assert await first.is_ended()


async def test_a_caller_who_is_being_answered_is_dropped_last() -> None:
    asked, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slowly(request: Request) -> Page:
        asked.release()
        await go_on.wait()
        return Page(b"at last")

    async with listening(slowly, connections=3) as place:
        waiting = [await place.caller() for _ in range(2)]
        for caller in waiting:
            caller.send(GET)
            await asked.acquire()
        silent = await place.caller()
        third = await place.caller()
        assert await silent.is_ended()
        third.send(GET)
        await asked.acquire()
        # Nobody is silent: one more costs the one who has waited for longest, not the new caller.
        fourth = await place.caller()
        assert await waiting[0].is_ended()
        fourth.send(GET)
        await asked.acquire()
        go_on.set()
        for caller in (waiting[1], third, fourth):
            assert (await caller.response())[2] == b"at last"


async def test_callers_who_do_not_read_make_room_for_one_who_has_not_asked_yet() -> None:
    async def page(request: Request) -> Page:
        return Page(bytes(32 << 20) if request.path == "/much" else b"little")

    async with listening(page, connections=3) as place:
        for _ in range(2):
            deaf = await place.caller()
            deaf.send(GET.replace(b"/page", b"/much"))
            # By now it is being written to.
            await deaf.head()
        new = await place.caller()
        assert (await (await place.caller()).asks())[2] == b"little"
        assert (await new.asks())[2] == b"little"


async def test_a_request_that_drips_in_ends_in_time() -> None:
    async with listening(head_s=0.2) as place:
        says_nothing, drips = await place.caller(), await place.caller()

        async def drip() -> None:
            for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
                drips.send(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(5):
            assert await says_nothing.is_ended()
            assert await drips.is_ended()
        assert not dripping.done()
        dripping.cancel()


async def test_a_connection_rests_for_so_long_between_requests() -> None:
    async with listening(head_s=0.3, rest_s=1.0) as place:
        caller = await place.caller()
        assert (await caller.asks())[0] == 200
        # Longer than a request may take; the rest is another time.
        await asyncio.sleep(0.4)
        assert (await caller.asks())[0] == 200
        async with asyncio.timeout(5):
            assert await caller.is_ended()


async def test_a_caller_who_does_not_read_is_left() -> None:
    async def much(request: Request) -> Page:
        return Page(bytes(32 << 20))

    async with listening(much, answer_s=0.2, connections=1) as place:
        caller = await place.caller()
        caller.send(GET)
        # What the kernel holds arrives, and then the end: less than was promised.
        async with asyncio.timeout(10):
            await asyncio.sleep(0.5)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await caller.response()


async def test_closing_ends_what_is_open() -> None:
    async with listening() as place:
        silent, rests = await place.caller(), await place.caller()
        assert (await rests.asks())[0] == 200
        callers, place.callers = [silent, rests], []
    for caller in callers:
        assert await caller.is_ended()
        await caller.leaves()
    with pytest.raises(OSError, match="Connect call failed"):
        await place.caller()
