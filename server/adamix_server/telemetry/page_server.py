"""A small HTTP server for pages that machines read, whose callers can take nothing from the process it lives in.

Everything a caller could hold on to is bounded: how many connections there are, how long a request takes to arrive as
a whole, how large it is, how long an answer takes to leave, how long a connection rests between requests. When all
places are taken, the connection that has been silent for longest makes room: a new caller is always heard. Reads no
bodies. Knows no page.
"""

import asyncio
import http.client
import io
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import urlsplit

from adamix_server import limits

log = logging.getLogger(__name__)

_END_OF_HEAD = b"\r\n\r\n"
_METHODS = ("GET", "HEAD")

# A dict for its order: the first has been in there for longest.
_Writers = dict[asyncio.StreamWriter, None]


@dataclass(frozen=True)
class Bounds:
    """What callers are given.

    Attributes:
        connections: at once.
        head_bytes: a request line with its headers.
        head_s: from the first byte of a request to the end of its headers; of the first one, from the connection on.
        answer_s: until an answer has left.
        rest_s: between two requests.
    """

    connections: int = limits.MAX_PROBE_CONNECTIONS
    head_bytes: int = limits.MAX_PROBE_HEAD_BYTES
    head_s: float = limits.PROBE_HEAD_S
    answer_s: float = limits.PROBE_ANSWER_S
    rest_s: float = limits.PROBE_REST_S


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


class PageServer:
    """Answers GET and HEAD on the caller's event loop, from `listen` to `close`.

    Args:
        answer: makes the page of a request; what it raises is logged and answered with 500.
    """

    def __init__(self, answer: Callable[[Request], Awaitable[Page]], bounds: Bounds | None = None) -> None:
        self._answer = answer
        self._bounds = bounds or Bounds()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: _Writers = {}
        self._answered: _Writers = {}

    async def listen(self, host: str, port: int) -> int:
        """Listen on an address, port 0 takes a free one; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=self._bounds.head_bytes)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Close the port and end every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._silent) + len(self._answered) >= self._bounds.connections:
            # Nobody silent: then one that does not read its answer, or the next would find no place for so long.
            self._drop(next(iter(self._silent or self._answered)))
        self._silent[writer] = None
        # `drain` then waits until everything has left.
        writer.transport.set_write_buffer_limits(0)
        task = asyncio.create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._silent.pop(writer, None)
        self._answered.pop(writer, None)
        writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after another, until the caller leaves, takes too long or makes no sense."""
        bounds = self._bounds
        try:
            async with asyncio.timeout(bounds.head_s):
                head = await self._head(reader)
            while await self._exchange(head, writer):
                async with asyncio.timeout(bounds.rest_s):
                    first = await reader.readexactly(1)
                async with asyncio.timeout(bounds.head_s):
                    head = await self._head(reader, first)
            writer.close()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            # Gone, or not worth waiting for.
            pass
        finally:
            # Not `close`, which would wait for a caller who does not read.
            if not writer.is_closing():
                writer.transport.abort()
            self._silent.pop(writer, None)
            self._answered.pop(writer, None)

    async def _head(self, reader: asyncio.StreamReader, first: bytes = b"") -> bytes:
        """A request line with its headers; empty if it is too long."""
        try:
            head = first + await reader.readuntil(_END_OF_HEAD)
        except asyncio.LimitOverrunError:
            return b""
        return head if len(head) <= self._bounds.head_bytes else b""

    async def _exchange(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection may go on."""
        if not self._move(writer, self._silent, self._answered):
            return False
        has_body, goes_on = True, False
        try:
            method, request, goes_on = _parse(head)
            has_body = method == "GET"
            page = await self._page(request)
        except _Refused as refused:
            page = Page(f"{refused}\n".encode(), refused.status)
        async with asyncio.timeout(self._bounds.answer_s):
            writer.write(_response(page, has_body=has_body, goes_on=goes_on))
            await writer.drain()
        return self._move(writer, self._answered, self._silent) and goes_on

    def _move(self, writer: asyncio.StreamWriter, source: _Writers, target: _Writers) -> bool:
        """False for a connection that was dropped meanwhile: it is in neither."""
        if writer not in source:
            return False
        del source[writer]
        target[writer] = None
        return True

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
