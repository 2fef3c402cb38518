"""A small HTTP server for pages that machines read, whose callers can take nothing from the process it lives in.

Everything a caller could hold on to is bounded: how many connections there are, how long a request takes to arrive as
a whole, how large it is, how long an answer takes to leave, how long a connection rests between requests. When all
places are taken, the connection that has kept the server waiting for longest makes room, by saying nothing or by not
reading: a new caller is always heard. Reads no bodies. Knows no page.
"""

import asyncio
import http.client
import io
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

from adamix_server.limits.operators import (
    MAX_PROBE_CONNECTIONS,
    MAX_PROBE_HEAD_BYTES,
    PROBE_ANSWER_S,
    PROBE_HEAD_S,
    PROBE_REST_S,
)

log = logging.getLogger(__name__)

_END_OF_HEAD = b"\r\n\r\n"
_METHODS = ("GET", "HEAD")

_BACKLOG = 128
# How long to leave a machine alone that has no descriptor for one more connection, and callers who have just come.
_SHORT_OF_DESCRIPTORS_S, _ALL_NEW_S = 0.5, 0.01


@dataclass(frozen=True)
class Bounds:
    """What callers are given.

    Attributes:
        connections: at once.
        head_bytes: a request line with its headers.
        head_s: from the first byte of a request to the end of its headers; of the first one, from the connection on.
        answer_s: until an answer has left.
        rest_s: between two requests.
        place_s: each of them, before it makes room for another.
    """

    connections: int = MAX_PROBE_CONNECTIONS
    head_bytes: int = MAX_PROBE_HEAD_BYTES
    head_s: float = PROBE_HEAD_S
    answer_s: float = PROBE_ANSWER_S
    rest_s: float = PROBE_REST_S
    place_s: float = 0.1


@dataclass(frozen=True)
class Request:
    """What was asked: a path without its query, and headers by their names in small letters."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """An answer."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "text/plain; charset=utf-8"})


class _Refused(Exception):
    """There is no page to give; said by a status."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, eq=False)
class _Connection:
    """One caller; `since` is when it came."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    since: float


# A dict for its order: the first has been in there for longest.
_Connections = dict[_Connection, None]


class PageServer:
    """Answers GET and HEAD on the caller's event loop, from `listen` to `close`.

    Args:
        answer: makes the page of a request; what it raises is logged and answered with 500.
    """

    def __init__(self, answer: Callable[[Request], Awaitable[Page]], bounds: Bounds | None = None) -> None:
        self._answer = answer
        self._bounds = bounds or Bounds()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Whose turn it is: the caller's, to ask or to read, or ours, to make a page.
        self._theirs: _Connections = {}
        self._ours: _Connections = {}

    def listen(self, host: str, port: int) -> int:
        """Listen on an address, port 0 takes a free one; returns the port. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        listener.setblocking(False)
        self._run(self._accept(listener))
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Close the port and end every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        """Take one caller after another, never more than there is room for; the others wait in the kernel, in line."""
        while True:
            try:
                connection = await self._next(listener)
            except ConnectionError:
                # Gone before it was taken.
                continue
            except OSError:
                await asyncio.sleep(_SHORT_OF_DESCRIPTORS_S)
                continue
            self._theirs[connection] = None
            self._run(self._converse(connection))

    async def _next(self, listener: socket.socket) -> _Connection:
        """The next caller, once there is room. Raises OSError if this process may open no more descriptors."""
        loop = asyncio.get_running_loop()
        accepted, _ = await loop.sock_accept(listener)
        reader = asyncio.StreamReader(self._bounds.head_bytes)
        try:
            await self._make_room()
            new_protocol = partial(asyncio.StreamReaderProtocol, reader)
            transport, protocol = await loop.connect_accepted_socket(new_protocol, accepted)
        except BaseException:
            accepted.close()
            raise
        # `drain` then waits until everything has left.
        transport.set_write_buffer_limits(0)
        return _Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop), loop.time())

    async def _make_room(self) -> None:
        """Return when one more connection may come, at the cost of another if need be."""
        while len(self._theirs) + len(self._ours) >= self._bounds.connections:
            now = asyncio.get_running_loop().time()
            # Each has its moment, or in a flood nobody would be heard.
            had_theirs = (one for one in (*self._theirs, *self._ours) if now - one.since >= self._bounds.place_s)
            if (oldest := next(had_theirs, None)) is not None:
                self._drop(oldest)
            else:
                await asyncio.sleep(_ALL_NEW_S)

    def _drop(self, connection: _Connection) -> None:
        self._theirs.pop(connection, None)
        self._ours.pop(connection, None)
        # `close` would wait for a caller who does not read. Of one that is closed already, nothing is left to end.
        connection.writer.transport.abort()

    async def _converse(self, connection: _Connection) -> None:
        """One request after another, until the caller leaves, takes too long or makes no sense."""
        bounds, reader, writer = self._bounds, connection.reader, connection.writer
        try:
            async with asyncio.timeout(bounds.head_s):
                head = await self._head(reader)
            while await self._exchange(head, connection):
                async with asyncio.timeout(bounds.rest_s):
                    first = await reader.readexactly(1)
                async with asyncio.timeout(bounds.head_s):
                    head = await self._head(reader, first)
            writer.close()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            # Gone, or not worth waiting for.
            pass
        finally:
            self._drop(connection)

    async def _head(self, reader: asyncio.StreamReader, first: bytes = b"") -> bytes:
        """A request line with its headers; empty if it is too long."""
        try:
            head = first + await reader.readuntil(_END_OF_HEAD)
        except asyncio.LimitOverrunError:
            return b""
        return head if len(head) <= self._bounds.head_bytes else b""

    async def _exchange(self, head: bytes, connection: _Connection) -> bool:
        """Answer one request; whether the connection may go on."""
        self._turn(connection, self._theirs, self._ours)
        has_body, goes_on = True, False
        try:
            method, request, goes_on = _parse(head)
            has_body = method == "GET"
            page = await self._page(request)
        except _Refused as refused:
            page = Page(f"{refused}\n".encode(), refused.status)
        self._turn(connection, self._ours, self._theirs)
        async with asyncio.timeout(self._bounds.answer_s):
            connection.writer.write(_response(page, has_body=has_body, goes_on=goes_on))
            await connection.writer.drain()
        # What it may take from here on is counted from here on.
        self._turn(connection, self._theirs, self._theirs)
        return goes_on

    def _turn(self, connection: _Connection, source: _Connections, target: _Connections) -> None:
        """Now it is the other's turn. Raises ConnectionAbortedError for a connection that was dropped meanwhile."""
        if connection not in source:
            raise ConnectionAbortedError
        del source[connection]
        target[connection] = None

    async def _page(self, request: Request) -> Page:
        try:
            return await self._answer(request)
        except Exception:
            log.exception("a page cannot be made", extra={"path": request.path})
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR) from None


def _parse(head: bytes) -> tuple[str, Request, bool]:
    """(method, request, whether the connection goes on after it). Raises _Refused."""
    if not head:
        raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    line, _, rest = head.lstrip(b"\r\n").partition(b"\r\n")
    try:
        method, target, version = line.decode("ascii").split(" ")
        path = urlsplit(target).path
        headers = {name.lower(): value for name, value in http.client.parse_headers(io.BytesIO(rest)).items()}
    except (ValueError, http.client.HTTPException):
        raise _Refused(HTTPStatus.BAD_REQUEST) from None
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise _Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if method not in _METHODS:
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED)
    # A body would be taken for the next request: whoever sends one is answered once.
    brings_body = "transfer-encoding" in headers or "content-length" in headers
    goes_on = version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower() and not brings_body
    return method, Request(path, headers), goes_on


def _response(page: Page, *, has_body: bool, goes_on: bool) -> bytes:
    headers = {
        "Date": formatdate(usegmt=True),
        **page.headers,
        "Content-Length": str(len(page.body)),
        "Cache-Control": "no-store",
        "Connection": "keep-alive" if goes_on else "close",
    }
    if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_METHODS)
    lines = [
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (page.body if has_body else b"")
