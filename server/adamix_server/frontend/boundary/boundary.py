"""The boundary around every RPC: whatever happens inside, the caller gets a status with details, and nothing else.

From the outside in: catch-all -> request id, log and metrics -> limits -> servicer. All of it is one context manager,
so that all four kinds of RPC are enclosed alike. Messages are parsed inside the boundary, because grpc answers a
malformed one with UNKNOWN and Python's words. A method that a servicer does not define is UNIMPLEMENTED.

Knows gRPC and the error tree; knows no service.
"""

import asyncio
import contextlib
import inspect
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from adamix.errors import AdamixError, Code, DeadlineExceeded, InvalidRequest
from adamix_server.api import status
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.boundary.call import Call
from adamix_server.limits import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
# For operators: called every second, and answered while the server drains.
_OPERATORS_METHODS = (
    "/grpc.health.",
    "/grpc.reflection.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)
_DATA_PLANE = ("/adamix.v1.InferenceService/", "/inference.GRPCInferenceService/")
# Ids made here: the first part is of this process, the second counts.
_OWN_IDS = secrets.token_hex(8)
_counter = itertools.count(1)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# grpc.aio.ServicerContext and grpc.RpcMethodHandler: generic in grpc-stubs, but not when they run.
Context = Any
Handler = Any


class Boundary(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # not generic when it runs
    """Encloses every handler of the server. Must be its first interceptor."""

    def __init__(self, admission: Admission, recorder: Recorder) -> None:
        self._admission = admission
        self._recorder = recorder
        self._enclosed: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        if method not in self._enclosed:
            handler = await continuation(handler_call_details)
            if handler is None:
                # Not remembered: a caller can invent any number of names.
                return self._unknown(method)
            self._enclosed[method] = self._enclose(method, handler)
        return self._enclosed[method]

    def _unknown(self, method: str) -> Handler:
        async def answer(_requests: AsyncIterator[bytes], context: Context) -> None:
            async with _Enclosure(self._admission, self._recorder, method, "unknown", context, math.inf):
                raise status.unimplemented("this method")

        # A stream on both sides accepts a call of any kind.
        return grpc.stream_stream_rpc_method_handler(answer)

    def _enclose(self, method: str, handler: Handler) -> Handler:
        parse = _parser(handler.request_deserializer)
        serialize = handler.response_serializer

        def around(context: Context, default_timeout_s: float) -> _Enclosure:
            return _Enclosure(self._admission, self._recorder, method, method[1:], context, default_timeout_s)

        if handler.unary_unary is not None:
            answer_one = _defined(method, handler.unary_unary)

            async def unary_unary(raw: bytes, context: Context) -> bytes:
                async with around(context, DEFAULT_TIMEOUT_S):
                    response: bytes = serialize(await answer_one(parse(raw), context))
                return response

            return grpc.unary_unary_rpc_method_handler(unary_unary)

        if handler.stream_unary is not None:
            answer_stream = _defined(method, handler.stream_unary)

            async def stream_unary(raws: AsyncIterator[bytes], context: Context) -> bytes:
                async with around(context, MAX_TIMEOUT_S):
                    response: bytes = serialize(await answer_stream(_parsed(parse, raws), context))
                return response

            return grpc.stream_unary_rpc_method_handler(stream_unary)

        is_stream = handler.stream_stream is not None
        answer_many = _defined(method, handler.stream_stream if is_stream else handler.unary_stream)

        async def any_stream(raw: Any, context: Context) -> AsyncIterator[Any]:
            async with around(context, math.inf):
                messages = answer_many(_parsed(parse, raw) if is_stream else parse(raw), context)
                if inspect.isawaitable(messages):
                    # The other style of grpc.aio: a coroutine that calls `context.write`.
                    await messages
                    return
                async with contextlib.aclosing(messages):
                    async for message in messages:
                        yield message

        kind = grpc.stream_stream_rpc_method_handler if is_stream else grpc.unary_stream_rpc_method_handler
        return kind(any_stream, response_serializer=serialize)


class _Enclosure:
    """One call, from its arrival to its status. Leaving it with an error ends the call with that error's status."""

    def __init__(
        self,
        admission: Admission,
        recorder: Recorder,
        method: str,
        label: str,
        context: Context,
        default_timeout_s: float,
    ) -> None:
        self._admission = admission
        self._recorder = recorder
        self._context = context
        self._label = label
        self._is_operators = method.startswith(_OPERATORS_METHODS)
        self._is_admitted = False
        self._start = time.monotonic()
        remaining_s: float | None = context.time_remaining()
        limit_s = own_limit_s(remaining_s, default_timeout_s)
        self._timer = None if limit_s is None else asyncio.timeout(limit_s)
        if limit_s is not None:
            remaining_s = limit_s
        deadline = math.inf if remaining_s is None else self._start + remaining_s
        self._call = Call(_request_id(context), method, deadline, peer=context.peer())

    async def __aenter__(self) -> None:
        calls.enter(self._call)
        self._context.set_trailing_metadata(((REQUEST_ID_KEY, self._call.request_id),))
        try:
            if not self._is_operators:
                self._admission.enter()
                self._is_admitted = True
        except AdamixError as refusal:
            self._recorder.inc("adamix_rejected_total", refusal.reason)
            await self._end(refusal)
        if self._timer is not None:
            await self._timer.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._timer is not None:
                await self._timer.__aexit__(kind, error, trace)
        except TimeoutError:
            error = DeadlineExceeded("the call took longer than this server allows")
        finally:
            if self._is_admitted:
                self._admission.leave()
        await self._end(error)

    async def _end(self, error: BaseException | None) -> None:
        """Record the outcome; for an error that is ours to answer, end the call with its status."""
        if error is None:
            self._record("OK")
        elif isinstance(error, grpc.aio.AbortError):
            # A servicer of grpc's own (health) has already ended the call.
            self._record(str(getattr(self._context.code(), "name", self._context.code())))
        elif self._is_gone(error):
            # Swallowing this would leak the call's state inside grpc. Raising it again is left to the interpreter.
            remaining_s = self._context.time_remaining()
            self._record("CANCELLED" if remaining_s is None or remaining_s > 0 else "DEADLINE_EXCEEDED")
        else:
            known = error if isinstance(error, AdamixError) else None
            if known is None or known.code is Code.INTERNAL:
                log.error(
                    "unexpected error in a call",
                    exc_info=(type(error), error, error.__traceback__),
                    extra={"request_id": self._call.request_id, "method": self._label},
                )
                known = status.internal(self._call.request_id, known)
            self._record(known.code.name)
            await self._abort(known)

    def _is_gone(self, error: BaseException) -> bool:
        """Whether the call was ended from outside, and not by an error that merely looks like it."""
        if isinstance(error, GeneratorExit):
            return True
        task = asyncio.current_task()
        return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0

    async def _abort(self, error: AdamixError) -> None:
        message = status.to_status(error, self._call.resource)
        trailers = [*status.to_trailers(error, message), (REQUEST_ID_KEY, self._call.request_id)]
        await self._context.abort(status.grpc_code(error), message.message, tuple(trailers))

    def _record(self, code: str) -> None:
        seconds = time.monotonic() - self._start
        self._recorder.inc("adamix_requests_total", self._label, code)
        self._recorder.observe("adamix_request_seconds", self._label, value=seconds)
        # The data plane is counted above; a line per call would cost more than the call.
        is_quiet = self._is_operators or self._call.method.startswith(_DATA_PLANE)
        level = logging.DEBUG if is_quiet else logging.INFO
        if log.isEnabledFor(level):
            log.log(
                level,
                "call",
                extra={
                    "request_id": self._call.request_id,
                    "method": self._label,
                    "code": code,
                    "seconds": round(seconds, 6),
                    "tenant": self._call.tenant,
                    "resource": self._call.resource,
                    "peer": self._context.peer(),
                },
            )


def own_limit_s(remaining_s: float | None, default_s: float) -> float | None:
    """The time limit the server has to enforce by itself, in seconds; None where gRPC or nobody does.

    Args:
        remaining_s: until the client's own deadline, which gRPC enforces; None without one.
        default_s: for a client without one; infinite for calls without a total limit.
    """
    if remaining_s is None:
        return None if math.isinf(default_s) else default_s
    return MAX_TIMEOUT_S if remaining_s > MAX_TIMEOUT_S and not math.isinf(default_s) else None


def _parser(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError:
            raise InvalidRequest("the message is not a valid request", reason="MALFORMED_MESSAGE") from None

    return parse


async def _parsed(parse: Callable[[bytes], Any], raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield parse(raw)


def _defined(method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """`behaviour`, or for the plain function of a generated base class one that says UNIMPLEMENTED."""
    if inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour):
        return behaviour

    def undefined(_request: Any, _context: Context) -> Any:
        raise status.unimplemented(method[1:])

    return undefined


def _request_id(context: Context) -> str:
    """The caller's id for this call if it sent a harmless one, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return f"{_OWN_IDS}-{next(_counter):x}"
