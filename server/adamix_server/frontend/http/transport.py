"""One call of the boundary whose messages come and go over HTTP: what the boundary asks of a context, and no more.

The enclosed method of gRPC runs in this process with it, so identity, rights, quota, places, bytes, deadline, request
id, metrics, audit and log are the same code. What it maps:

- metadata: the headers `authorization`, `x-request-id`, `traceparent`, `tracestate`, `x-forwarded-for` and those that
  begin with `adamix-`, each as often as it was sent. A key in `api-key` or `x-api-key` is `authorization: Bearer …`.
- deadline: the header `adamix-timeout-s`, seconds as a decimal number above 0; without it the server's default.
- messages: of the request as its route makes them (`Read`), while the call reads; of the answer as they are written.
- status: the AdamixError that it stands for (`error`), as a client of gRPC would read it.

Knows the boundary's side of a call and requests; knows no route.
"""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import grpc.aio
from google.protobuf.message import Message
from google.rpc import status_pb2

from adamix.errors import AdamixError, InvalidRequest
from adamix_client.status import DETAILS_KEY, from_status
from adamix_server.frontend.boundary.enclosure import Carrier
from adamix_server.frontend.boundary.sending import REQUEST_ID_KEY
from adamix_server.frontend.http.errors import body_too_large
from adamix_server.frontend.http.request import Request, Scope
from adamix_server.limits.messages import MAX_MESSAGE_BYTES

TIMEOUT_HEADER = b"adamix-timeout-s"
_PASSED = frozenset(
    {b"authorization", b"x-request-id", b"traceparent", b"tracestate", b"x-forwarded-for"},
)
_OWN_PREFIX = b"adamix-"
_KEY_HEADERS = frozenset({b"api-key", b"x-api-key"})

# The request's message; or those of an upload, one after the other.
Read = Callable[[Request], "Awaitable[Message] | AsyncIterator[Message]"]
Metadata = tuple[tuple[str, str], ...]


class HttpContext(Carrier):
    """See the module's docstring.

    Args:
        read: gives the messages of the request, once the call asks for them.
        write: takes the messages of the answer, serialised; None where the answer is returned.

    Attributes:
        deadline: in seconds on CLOCK_MONOTONIC; infinite if the caller set none.
        error: that the call has ended with.

    Raises:
        InvalidRequest: `adamix-timeout-s` is not a number of seconds (`TIMEOUT_INVALID`).
    """

    __slots__ = ("_messages", "_metadata", "_peer", "_read", "_request", "_trailing", "_write", "deadline", "error")

    def __init__(self, request: Request, read: Read, write: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        self._request = request
        self._read: Read | None = read
        self._messages: AsyncIterator[Message] | None = None
        self._write = write
        self._metadata, timeout_s = _metadata(request)
        self._peer = peer_of(request.scope)
        self._trailing: Any = ()
        # Of all calls of a request together.
        self.deadline = math.inf if timeout_s is None else request.since + timeout_s
        self.error: AdamixError | None = None

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return None if self.deadline == math.inf else max(0.0, self.deadline - time.monotonic())

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def auth_context(self) -> dict[str, Any]:
        """Nothing: a caller over HTTP shows no certificate that counts as a credential."""
        return {}

    async def read(self) -> Any:
        """The next message as bytes; `grpc.aio.EOF` after the last. Raises what `read` raises."""
        if self._messages is None:
            if (read := self._read) is None:
                return grpc.aio.EOF  # type: ignore[attr-defined] # the stubs do not have it
            self._read = None
            found = read(self._request)
            if not isinstance(found, AsyncIterator):
                return _serialised(await found)
            self._messages = found
        async for message in self._messages:
            return _serialised(message)
        return grpc.aio.EOF  # type: ignore[attr-defined] # as above

    async def write(self, raw: bytes) -> None:
        if self._write is None:
            raise RuntimeError("this call has one answer, which is returned")
        await self._write(raw)

    async def send_initial_metadata(self, _metadata: Any) -> None:
        """Nothing: headers go with the first part of an answer."""

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._trailing = metadata
        for key, value in metadata:
            if key == REQUEST_ID_KEY:
                self._request.id = str(value)

    async def abort(self, _code: Any, details: str, trailing_metadata: Any) -> None:
        """End the call with a status. Raises grpc.aio.AbortError, as grpc's own."""
        for key, value in trailing_metadata:
            if key == DETAILS_KEY:
                self.error = from_status(status_pb2.Status.FromString(value))
        raise grpc.aio.AbortError(details)

    def when_over(self, over: Callable[[Any], None]) -> None:
        self._request.ends.append(lambda: over(None))


def peer_of(scope: Scope) -> str:
    """Who is at the other end, as grpc would name it."""
    client = scope.get("client")
    if client is None:
        return "unix:"
    host, port = client[0], client[1]
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _metadata(request: Request) -> tuple[Metadata, float | None]:
    """What the boundary is told of the headers, and the caller's own limit in seconds."""
    found: list[tuple[str, str]] = []
    timeout_s: float | None = None
    has_id = False
    for name, value in request.headers():
        if name in _PASSED:
            text = value.decode("latin-1").strip()
            has_id = has_id or name == b"x-request-id"
            found.append((name.decode("ascii"), text))
        elif name == TIMEOUT_HEADER:
            timeout_s = _seconds(value)
        elif name in _KEY_HEADERS:
            found.append(("authorization", f"Bearer {value.decode('latin-1').strip()}"))
        elif name.startswith(_OWN_PREFIX):
            found.append((name.decode("ascii"), value.decode("latin-1").strip()))
    if request.id and not has_id:
        # A further call of the same request.
        found.append((REQUEST_ID_KEY, request.id))
    return tuple(found), timeout_s


def _seconds(value: bytes) -> float:
    try:
        # Float reads more than decimal numbers: words, and figures with underscores.
        seconds = float(value) if value.strip().replace(b".", b"", 1).isdigit() else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(
            "adamix-timeout-s must be a number of seconds above 0", reason="TIMEOUT_INVALID", field="adamix-timeout-s"
        )
    return seconds


def _serialised(message: Message) -> bytes:
    raw = message.SerializeToString()
    if len(raw) > MAX_MESSAGE_BYTES:
        raise body_too_large(MAX_MESSAGE_BYTES)
    return raw
