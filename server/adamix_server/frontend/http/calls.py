"""Calls of the services, in this process and through the boundary, for routes of HTTP.

Signatures::

    class Calls:
        async def one(self, request, method, read, answer: type[M]) -> M
            # unary, or an upload: `read` then gives an async iterator of messages
        def many(self, request, method, read, answer: type[M]) -> AsyncGenerator[M]
            # streamed: the next message is asked of the service only when the last was taken

`method` is e.g. `/adamix.v1.InferenceService/Predict`. `read(request)` gives the message, or an async iterator of
them; it runs inside the call, after the boundary has judged who calls, so bodies are read and decoded in it, and an
AdamixError that it raises is the call's status (`InvalidRequest(…, field=…)`). All errors come out as AdamixError, with
what a client of gRPC would be told; the request's id is `request.id` by then. Whoever leaves cancels the task of the
request and, with it, the call. A request may make several calls, one after the other. Always close a `many` that is
not read to its end (`contextlib.aclosing`).

Knows the boundary; knows no service, no route and no JSON.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from adamix.errors import DeadlineExceeded
from adamix_server.api import status
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.transport import HttpContext, Read

M = TypeVar("M", bound=Message)

# grpc.RpcMethodHandler: generic in grpc-stubs, but not when it runs.
Handler = Any


@dataclass(frozen=True, slots=True)
class _Details:
    """grpc.HandlerCallDetails, as far as the boundary asks for it."""

    method: str
    invocation_metadata: tuple[()] = ()


class Calls:
    """See the module's docstring.

    Args:
        service: the enclosed method of a call (`Boundary.service`).
    """

    def __init__(self, service: Callable[[Any], Handler]) -> None:
        self._service = service
        self._handlers: dict[str, Handler] = {}

    async def one(self, request: Request, method: str, read: Read, answer: type[M]) -> M:
        """The answer of a call that has one. Raises AdamixError."""
        # What an earlier call of this request has held is free before this one asks for anything.
        request.over()
        context = HttpContext(request, read)
        raw = await _until(context, self._handler(method).stream_unary(None, context))
        return answer.FromString(raw)

    async def many(self, request: Request, method: str, read: Read, answer: type[M]) -> AsyncGenerator[M, None]:
        """The answers of a call that has any number. Raises AdamixError where it ends with one."""
        request.over()
        line = _Line()
        context = HttpContext(request, read, line.put)
        call = asyncio.create_task(_until(context, self._handler(method).stream_stream(None, context)))

        def ended(_: Any) -> None:
            if not line.is_asked and context.error is not None and context.error.reason == "SLOW_READER":
                # Its answers wait in the transport, and the task of the request for them.
                request.drop()
            line.end()

        call.add_done_callback(ended)
        try:
            while (raw := await line.take()) is not None:
                yield answer.FromString(raw)
            await call
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait({call})
            if not call.cancelled():
                # An error that nobody asks for any more is the call's own, and it is in the log.
                call.exception()

    def _handler(self, method: str) -> Handler:
        handler = self._handlers.get(method)
        if handler is None:
            handler = self._handlers[method] = self._service(_Details(method))
        return handler


async def _until(context: HttpContext, call: Any) -> Any:
    """What a call returns. Raises AdamixError for its status, and DeadlineExceeded at its caller's own limit."""
    try:
        if context.deadline == math.inf:
            return await call
        # In gRPC the library keeps the caller's limit.
        async with asyncio.timeout(context.deadline - time.monotonic()):
            return await call
    except grpc.aio.AbortError:
        raise (context.error or status.internal("")) from None
    except TimeoutError:
        raise DeadlineExceeded("the call took longer than its adamix-timeout-s") from None


class _Line:
    """One message at a time, from a call that waits until it was taken and the next is asked for.

    Attributes:
        is_asked: somebody waits for the next one.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._raw: bytes | None = None
        self._has_come = asyncio.Event()
        self._was_taken = asyncio.Event()

    async def put(self, raw: bytes) -> None:
        """Return once the one before `raw` has been dealt with, with `raw` in its place."""
        self._raw = raw
        self._was_taken.clear()
        self._has_come.set()
        await self._was_taken.wait()

    async def take(self) -> bytes | None:
        """The next message; None after the last."""
        self._was_taken.set()
        self.is_asked = True
        await self._has_come.wait()
        self.is_asked = False
        raw, self._raw = self._raw, None
        if raw is not None:
            self._has_come.clear()
        return raw

    def end(self) -> None:
        """Nothing more comes."""
        self._has_come.set()
