"""The boundary around every RPC: whatever happens inside, the caller gets a status with details, and nothing else.

Services are added to it as to a server. Each of their methods becomes one that reads its own messages as bytes: grpc
would else hold a message, and run nothing of ours, until all of it has come. So a call's limits come before its
message (`enclosure.py`), and a malformed message is answered in our words. One answer is returned, several are written
one at a time (`sending.py`). A method that a servicer does not define, or that nobody knows, is UNIMPLEMENTED.

A method that `access/rights.py` does not know keeps the server from starting.

Knows gRPC; of services it knows only which methods are whose.
"""

import contextlib
import inspect
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc

from adamix.errors import FailedPrecondition
from adamix_server.access import rights
from adamix_server.api import status
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.boundary.bounds import BOUNDS, Bounds
from adamix_server.frontend.boundary.enclosure import Books, Context, Enclosure, Method
from adamix_server.frontend.boundary.gate import Gate
from adamix_server.frontend.boundary.pace import Pace
from adamix_server.frontend.boundary.places import Places
from adamix_server.frontend.boundary.quota import Quota
from adamix_server.frontend.boundary.receiving import Messages
from adamix_server.frontend.boundary.rooms import Network, origins
from adamix_server.frontend.boundary.sending import Sending
from adamix_server.frontend.boundary.sessions import Sessions
from adamix_server.frontend.boundary.witness import Witness
from adamix_server.frontend.usage import Meter
from adamix_server.limits.messages import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from adamix_server.telemetry.metrics import Recorder

_DATA_PLANE = ("/adamix.v1.InferenceService/", "/inference.GRPCInferenceService/")
# Those of it that compute; the others tell about the server or a model.
_DATA_CALLS = ("/adamix.v1.InferenceService/", "/inference.GRPCInferenceService/ModelInfer")
# Streams that end by themselves; the others go on as long as their callers like.
_TIMED_STREAMS = ("/adamix.v1.InferenceService/Generate",)
_UPLOADS = ("/adamix.v1.AdapterService/RegisterAdapter",)
# Where things are changed, and looked at by those who may.
_AUDITED = ("/adamix.v1.AdapterService/", "/adamix.v1.AdminService/", "/adamix.v1.ServerService/Drain")
# What tells whether the server lives. Room is kept for it, and its small messages have places of their own.
_SIGNS_OF_LIFE = (
    "/grpc.health.v1.Health/Check",
    "/adamix.v1.ServerService/GetLoad",
    "/adamix.v1.ServerService/GetServerInfo",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)
# Called every second, and answered while the server drains.
_OPERATORS = (
    "/grpc.health.",
    "/grpc.reflection.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)

# grpc.RpcMethodHandler: generic in grpc-stubs, but not when it runs.
Handler = Any


class Boundary(grpc.GenericRpcHandler):  # type: ignore[type-arg] # not generic when it runs
    """Encloses every method that is added to it. Must be the server's only handler. Belongs to one event loop.

    Args:
        proxies: networks whose addresses stand for many callers, and so have no share of their own.
        gate: lets calls in; None lets everyone in.
        quota: of tenants; None where nobody has any.
        sessions: of the streams; None where credentials do not end.
        witness: sees calls end that are to be written down.
        meter: counts what callers use.
        is_shared: whether data calls run now; other calls then come at a steady rate.
    """

    def __init__(
        self,
        admission: Admission,
        recorder: Recorder,
        bounds: Bounds = BOUNDS,
        proxies: Sequence[Network] = (),
        gate: Gate | None = None,
        quota: Quota | None = None,
        sessions: Sessions | None = None,
        witness: Witness | None = None,
        meter: Meter | None = None,
        is_shared: Callable[[], bool] = lambda: False,
    ) -> None:
        def refused(reason: str) -> None:
            recorder.inc("adamix_rejected_total", reason)

        def refused_of(reason: str, tenant: str) -> None:
            refused(reason)
            if tenant:
                recorder.inc("adamix_tenant_rejected_total", tenant, reason)

        def places(size: int, seats: int, bounds: Bounds = bounds) -> Places:
            return Places(size, seats, bounds, refused)

        self._calls = places(bounds.reading, bounds.seats)
        self._uploads = places(bounds.reading_uploads, bounds.upload_seats)
        self._signs = places(bounds.reading_kept, 0, replace(bounds, patience_s=bounds.kept_patience_s))
        self._pace = Pace(is_shared)
        self._books = Books(
            admission,
            recorder,
            Messages(bounds, refused_of),
            Sending(bounds, recorder),
            origins(proxies),
            gate or Gate(),
            quota or Quota(),
            sessions or Sessions(),
            witness or Witness(),
            meter or Meter(),
        )
        self._services: list[grpc.GenericRpcHandler] = []  # type: ignore[type-arg] # not generic when it runs
        self._enclosed: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """What the generated `add_…_to_server` call of a server."""
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Counts of their calls begin at 0. Else nothing: they are the same methods, for servers that keep a queue
        for each.

        Raises:
            FailedPrecondition: nobody has said which right one of them needs (`METHOD_WITHOUT_RIGHT`).
        """
        if unknown := rights.missing(f"/{service}/{name}" for name in handlers):
            raise FailedPrecondition(
                f"access/rights.py does not say which right is needed for {', '.join(unknown)}",
                reason="METHOD_WITHOUT_RIGHT",
            )
        for name, handler in handlers.items():
            if _is_defined(_behaviour(handler)):
                self._books.recorder.inc("adamix_requests_total", f"{service}/{name}", "OK", by=0.0)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The enclosed method of a call that has arrived."""
        method = handler_call_details.method
        if (enclosed := self._enclosed.get(method)) is not None:
            return enclosed
        for service in self._services:
            # Also of services that were added without a word on their methods.
            if method in rights.NEEDS and (handler := service.service(handler_call_details)) is not None:
                self._enclosed[method] = self._enclose(method, handler)
                return self._enclosed[method]
        # Not remembered: a caller can invent any number of names.
        return self._unknown(method)

    def close(self) -> None:
        """End what looks at running calls from time to time."""
        for part in (self._calls, self._uploads, self._signs, self._books.sending):
            part.close()

    def _method(self, name: str, label: str, default_timeout_s: float, *, is_stream: bool = False) -> Method:
        is_sign_of_life = name in _SIGNS_OF_LIFE
        places = self._uploads if name in _UPLOADS else self._signs if is_sign_of_life else self._calls
        is_operators = name.startswith(_OPERATORS)
        return Method(
            name,
            label,
            default_timeout_s,
            places,
            pace=None if name.startswith(_DATA_CALLS) else self._pace,
            is_upload=name in _UPLOADS,
            answers_while_draining=is_operators,
            is_kept=is_sign_of_life,
            is_quiet=is_operators or name.startswith(_DATA_PLANE),
            is_stream=is_stream,
            is_audited=name.startswith(_AUDITED),
        )

    def _unknown(self, name: str) -> Handler:
        method = self._method(name, "unknown", math.inf)

        async def answer(_requests: AsyncIterator[bytes], context: Context) -> None:
            async with Enclosure(self._books, method, context) as enclosure:
                await enclosure.pace()
                raise status.unimplemented("this method")

        # A stream on both sides accepts a call of any kind.
        return grpc.stream_stream_rpc_method_handler(answer)

    def _enclose(self, name: str, handler: Handler) -> Handler:
        parse, serialize, books = handler.request_deserializer, handler.response_serializer, self._books
        takes_many = handler.request_streaming
        behaviour = _defined(name, _behaviour(handler))
        if not handler.response_streaming:
            timeout_s = MAX_TIMEOUT_S if takes_many else DEFAULT_TIMEOUT_S
            method = self._method(name, name[1:], timeout_s, is_stream=takes_many)

            async def answer_one(_requests: AsyncIterator[bytes], context: Context) -> bytes:
                async with Enclosure(books, method, context) as enclosure:
                    messages = enclosure.receiver(parse)
                    # A message is handed on without a name here, so that whoever gets it can let go of it.
                    answer = await behaviour(messages if takes_many else await enclosure.only_message(messages), None)
                    response: bytes = serialize(answer)
                    await enclosure.departure.hold(response)
                return response

            return grpc.stream_unary_rpc_method_handler(answer_one)

        timeout_s = MAX_TIMEOUT_S if name in _TIMED_STREAMS else math.inf
        method = self._method(name, name[1:], timeout_s, is_stream=True)

        async def answer_many(_requests: AsyncIterator[bytes], context: Context) -> None:
            async with Enclosure(books, method, context) as enclosure:
                messages, departure = enclosure.receiver(parse), enclosure.departure
                answers = behaviour(messages if takes_many else await enclosure.only_message(messages), departure)
                if inspect.isawaitable(answers):
                    # Of a method that is not defined; the others are generators.
                    await answers
                    return
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        await departure.write(serialize(answer))

        return grpc.stream_stream_rpc_method_handler(answer_many)


def _behaviour(handler: Handler) -> Callable[..., Any]:
    if handler.request_streaming:
        behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    found: Callable[..., Any] = behaviour
    return found


def _defined(method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """`behaviour`, or for the plain function of a generated base class one that says UNIMPLEMENTED."""
    if _is_defined(behaviour):
        return behaviour

    def undefined(_request: Any, _context: Any) -> Any:
        raise status.unimplemented(method[1:])

    return undefined


def _is_defined(behaviour: Callable[..., Any]) -> bool:
    """Whether it is a servicer's own, and not the plain function of a generated base class."""
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)
