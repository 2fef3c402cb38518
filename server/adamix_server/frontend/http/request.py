"""One request: what its sender has said, its body as it comes, and the way back.

The body is read by whoever asks for it, and for a call of the boundary that is the call itself: who sends it is judged
before a byte of it is. A sender that leaves cancels the task of its request at once. Writes wait for the reader
(uvicorn's flow control). Knows ASGI; knows no route, no call and no message.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

from adamix.errors import InvalidRequest
from adamix_server.frontend.http.errors import body_too_large, content_encoding_unsupported
from adamix_server.frontend.http.reply import JSON, Reply
from adamix_server.limits.http import MAX_BODY_BYTES

Scope = Mapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Any], Any]
Headers = Iterable[tuple[str, str]]
# Where `connection.py` puts itself into the scope.
CONNECTION = "adamix.connection"
# Of one parameter, and of so many of them.
_MAX_QUERY_FIELDS = 32


class Way(Protocol):
    """The connection of a request, as far as requests need it."""

    @property
    def is_held_back(self) -> bool:
        """Whether the body waits for a word of ours, and so may never come."""

    async def drained(self) -> None:
        """Return once the reader has taken almost all that was written."""

    def hold(self) -> None:
        """Keep what is written until `release`."""

    def release(self) -> None:
        """Send what was kept, at once."""

    def drop(self) -> None:
        """End the connection now, with what has been written and not been sent."""


class Request:
    """See the module's docstring.

    Attributes:
        method: e.g. `POST`.
        path: as it was sent, percent-encoded, without the query.
        params: of the route's path, decoded.
        id: of the request, in its headers and in the log; known once the boundary has seen its call.
        since: its first line came, on CLOCK_MONOTONIC.
        has_begun: an answer is on its way.
    """

    __slots__ = (
        "_headers",
        "_receive",
        "_send",
        "_whole",
        "ends",
        "has_begun",
        "id",
        "method",
        "params",
        "path",
        "scope",
        "since",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._whole: bytes | None = None
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("ascii", "replace")
        self.params: dict[str, str] = {}
        self.id = ""
        self.since = time.monotonic()
        self.has_begun = False
        # Told when the last byte of the answer has left, or will never.
        self.ends: list[Callable[[], None]] = []

    def header(self, name: str) -> str | None:
        """The value of a header that is sent once; of several the first. `name` is in small letters."""
        wanted = name.encode("ascii")
        for key, value in self._headers:
            if key == wanted:
                return value.decode("latin-1").strip()
        return None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """All of them, as they were sent, with names in small letters."""
        return self._headers

    def query(self, *allowed: str) -> dict[str, str]:
        """The query's parameters, each once. Raises InvalidRequest (`QUERY_INVALID`) for one that is not `allowed`."""
        text: str = self.scope["query_string"].decode("ascii", "replace")
        if not text:
            return {}
        found: dict[str, str] = {}
        try:
            pairs = parse_qsl(
                text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
            )
        except ValueError:
            raise InvalidRequest("the query cannot be read", reason="QUERY_INVALID") from None
        for name, value in pairs:
            if name not in allowed:
                known = f"; there are {', '.join(allowed)}" if allowed else ""
                raise InvalidRequest(
                    f"the query has an unknown parameter{known}", reason="QUERY_INVALID", field=name[:64]
                )
            if name in found:
                raise InvalidRequest(f"the query has {name} twice", reason="QUERY_INVALID", field=name)
            found[name] = value
        return found

    async def body(self, most: int = MAX_BODY_BYTES) -> bytes:
        """All of the body.

        Raises:
            Overloaded: it is over `most` bytes (`BODY_TOO_LARGE`).
            InvalidRequest: it is encoded in some way (`CONTENT_ENCODING_UNSUPPORTED`).
        """
        if self._whole is not None:
            return self._whole
        self._check_encoding()
        length = self.header("content-length")
        if length is not None and length.isdecimal() and int(length) > most:
            raise body_too_large(most)
        chunks: list[bytes] = []
        size = 0
        async for chunk in self._chunks():
            size += len(chunk)
            if size > most:
                raise body_too_large(most)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in parts, as they come; none is empty. Raises InvalidRequest as `body`."""
        self._check_encoding()
        async for chunk in self._chunks():
            yield chunk

    def keep(self, body: bytes) -> None:
        """Let `body()` give this, for a route that has had to look at it before its call."""
        self._whole = body

    async def send(self, reply: Reply) -> None:
        """Send a whole answer; return when its reader has taken almost all of it."""
        headers = [
            (b"content-type", reply.content_type.encode("latin-1")),
            (b"content-length", str(len(reply.body)).encode("ascii")),
        ]
        headers += _encoded(reply.headers)
        way = self._way()
        way.hold()
        try:
            await self._begin(reply.status, headers)
            await self._send({"type": "http.response.body", "body": reply.body})
        finally:
            way.release()
        if len(reply.body) > _SMALL_BYTES:
            await way.drained()

    async def begin(self, content_type: str = JSON, status: int = 200, headers: Headers = ()) -> None:
        """Begin an answer of unknown length; `write` its parts."""
        await self._begin(status, [(b"content-type", content_type.encode("latin-1")), *_encoded(headers)])

    async def write(self, part: bytes) -> None:
        """Send a part, when the reader has taken almost all of what came before."""
        if part:
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
            await self._way().drained()

    async def finish(self) -> None:
        """The answer that `begin` has begun is complete."""
        await self._send({"type": "http.response.body"})
        await self._way().drained()

    def drop(self) -> None:
        """End the connection now: there is no way to say that an answer which has begun goes wrong."""
        self._way().drop()

    def over(self) -> None:
        """Tell those who wait for it that nothing more of the last call will be sent."""
        ends, self.ends = self.ends, []
        for end in ends:
            end()

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_begun = True
        if self._way().is_held_back:
            # It may send the body all the same, or a next request in its place.
            headers.append((b"connection", b"close"))
        if self.id:
            headers.append((b"x-request-id", self.id.encode("ascii")))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _chunks(self) -> AsyncIterator[bytes]:
        is_more = True
        while is_more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                await _gone()
            is_more = message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk

    def _check_encoding(self) -> None:
        encoding = self.header("content-encoding")
        if encoding is not None and encoding.lower() != "identity":
            raise content_encoding_unsupported()

    def _way(self) -> Way:
        way: Way = self.scope[CONNECTION]
        return way


# Below this an answer fits beside what the transport takes at once.
_SMALL_BYTES = 32 << 10


def decoded(text: str) -> str | None:
    """A part of a path without percent-encoding; None if that is no UTF-8, or has characters that no name has."""
    try:
        plain = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return plain if plain.isprintable() else None


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in headers]


async def _gone() -> None:
    """The sender has left: end the task as if it had been noticed from outside."""
    if (task := asyncio.current_task()) is not None:
        task.cancel()
    await asyncio.sleep(0)
