"""One call, from its arrival to its status.

Copies what the call needs of its gRPC context, gives it its id, its deadline and its place among the calls, and turns
whatever goes wrong inside into a status. Nothing touches the context once the task of the call has ended: grpc has
freed what it points to. Knows gRPC and the error tree; knows no service and no message.
"""

import asyncio
import itertools
import logging
import math
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc.aio

from adamix.errors import AdamixError, Code, DeadlineExceeded
from adamix_server.access.principal import NOBODY, Principal
from adamix_server.access.redaction import without_secrets
from adamix_server.api import status
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.boundary.gate import Gate
from adamix_server.frontend.boundary.pace import Pace
from adamix_server.frontend.boundary.places import Places
from adamix_server.frontend.boundary.quota import Quota
from adamix_server.frontend.boundary.quota import Seat as QuotaSeat
from adamix_server.frontend.boundary.receiving import Messages, Parse, Receiver
from adamix_server.frontend.boundary.rooms import Origin, Room
from adamix_server.frontend.boundary.sending import REQUEST_ID_KEY, Departure, ReaderGone, Sending
from adamix_server.frontend.boundary.sessions import Basis, Session, Sessions, has_changed
from adamix_server.frontend.boundary.witness import Witness
from adamix_server.frontend.usage import Meter
from adamix_server.limits.messages import MAX_TIMEOUT_S
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# Ids made here: the first part is of this process, the second counts.
_OWN_IDS = secrets.token_hex(8)
_counter = itertools.count(1)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# For a status to reach a reader that does not read; after that it follows what the reader has not taken.
_STATUS_S = 0.1

# grpc.aio.ServicerContext: generic in grpc-stubs, but not when it runs.
Context = Any


class Carrier(ABC):
    """A context that is not grpc's own: of a call that comes another way, and says itself when it is over."""

    __slots__ = ()

    @abstractmethod
    def when_over(self, over: Callable[[Any], None]) -> None:
        """Call `over` once, when the last byte of the answer has left or never will; and never before the call ends."""


@dataclass(frozen=True, slots=True)
class Method:
    """What the boundary has to know of a method.

    Attributes:
        name: as it is called, `/package.Service/Method`.
        label: in metrics and logs.
        default_timeout_s: of a call without a deadline; infinite for one without a total limit.
        places: to receive its messages in.
        pace: at which its messages are received, of an upload the first one; None for as fast as they come.
        is_upload: its messages are parts of one file.
        answers_while_draining: an operator asks this until the end.
        is_kept: there is room for its calls when there is none for others.
        is_quiet: called so often that a line of log a call would cost more than the call.
        is_stream: of messages, one way or both: it may outlive its caller's credential.
        is_audited: each of its calls is written down, however it ends.
    """

    name: str
    label: str
    default_timeout_s: float
    places: Places
    pace: Pace | None
    is_upload: bool
    answers_while_draining: bool
    is_kept: bool
    is_quiet: bool
    is_stream: bool
    is_audited: bool


@dataclass(frozen=True, slots=True)
class Books:
    """What all calls of a front end share."""

    admission: Admission
    recorder: Recorder
    messages: Messages
    sending: Sending
    origin: Callable[[str], Origin]
    gate: Gate
    quota: Quota
    sessions: Sessions
    witness: Witness
    meter: Meter


class Enclosure:
    """Encloses one call. Leaving it with an error ends the call with that error's status.

    Attributes:
        departure: what the call sends.
    """

    __slots__ = (
        "_aborted",
        "_basis",
        "_books",
        "_call",
        "_context",
        "_counted",
        "_is_admitted",
        "_limit_s",
        "_method",
        "_receiver",
        "_seat",
        "_session",
        "_start",
        "_timer",
        "departure",
    )

    def __init__(self, books: Books, method: Method, context: Context) -> None:
        self._start = time.monotonic()
        self._books = books
        self._method = method
        self._context = context
        self._aborted: BaseException | None = None
        self._is_admitted = False
        self._counted: QuotaSeat | None = None
        self._seat: Room | None = None
        self._receiver: Receiver | None = None
        self._basis: Basis = ()
        self._session: Session | None = None
        self._timer: asyncio.Timeout | None = None
        origin = books.origin(context.peer())
        remaining_s: float | None = context.time_remaining()
        self._limit_s = own_limit_s(remaining_s, method.default_timeout_s)
        if self._limit_s is not None:
            remaining_s = self._limit_s
        deadline = math.inf if remaining_s is None else self._start + remaining_s
        self._call = Call(
            request_id_of(context.invocation_metadata()), method.name, deadline, principal=NOBODY, origin=origin
        )
        self.departure = Departure(books.sending, context, origin, self._call.request_id, self._start)

    async def __aenter__(self) -> "Enclosure":
        calls.enter(self._call)
        self._context.set_trailing_metadata(((REQUEST_ID_KEY, self._call.request_id),))
        if isinstance(self._context, Carrier):
            self._context.when_over(self._gone)
        else:
            self.departure.task.add_done_callback(self._gone)
        # All of this before a byte of its message is read.
        try:
            gate, sessions = self._books.gate, self._books.sessions
            self._basis = sessions.basis()
            self._call.principal = gate.identify(self._method.name, self._context)
            gate.check(self._method.name, self._call.principal)
            self._counted = await self._books.quota.enter(self._method.name, self._call.tenant)
            # That may have taken a while, in which nobody has looked at this call.
            self._check()
            self._admit()
        except AdamixError as refusal:
            self._count_out(is_refused=True)
            self._books.recorder.inc("adamix_rejected_total", refusal.reason)
            if self._call.tenant:
                self._books.recorder.inc("adamix_tenant_rejected_total", self._call.tenant, refusal.reason)
            self._books.meter.rejected(self._call.tenant, refusal.reason)
            await self._end(refusal)
        except asyncio.CancelledError as gone:
            # Its client has left while this front end asked for a slot.
            await self._end(gone)
        except Exception as error:  # noqa: BLE001 - `_end` logs it
            # Of any kind: `__aexit__` does not run for it, and grpc would answer with its text.
            self._count_out(is_refused=True)
            await self._end(error)
        if self._method.is_stream:
            self._session = sessions.open(self._call, self._recognise)
        self._call.check = self._check
        self._books.meter.called(self._call.principal)
        if self._limit_s is not None:
            self._timer = asyncio.timeout(self._limit_s)
            await self._timer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._timer is not None:
                await self._timer.__aexit__(kind, error, trace)
            # It knows the frames that know the message.
            del trace
        except TimeoutError:
            error = DeadlineExceeded("the call took longer than this server allows")
        finally:
            calls.forget(self._call)
            if self._receiver is not None:
                self._receiver.close()
            if self._is_admitted:
                self._books.admission.leave()
            # Before the answer leaves: whoever has it may call again.
            self._count_out()
            if self._session is not None:
                self._books.sessions.close(self._session)
        if self._session is not None and self._session.error is not None:
            error = await self._ended_by(self._session, self._session.error, error)
        if self._method.is_audited and isinstance(error, AdamixError) and error.code is Code.RESOURCE_EXHAUSTED:
            self._books.meter.rejected(self._call.tenant, error.reason)
        await self._end(error)

    def receiver(self, parse: Parse) -> Receiver:
        """The call's messages. To be asked for once."""
        books = self._books
        method, call = self._method, self._call
        self._receiver = Receiver(
            self._context,
            call.origin,
            call.tenant,
            method.places,
            books.messages,
            parse,
            method.pace,
            is_upload=method.is_upload,
        )
        return self._receiver

    async def only_message(self, messages: Receiver) -> Any:
        """The message of a call that has one. Raises as `Receiver.one`, and Unauthenticated.

        Its caller may have held it back until its key was revoked or had expired: so many calls as may run could be
        kept in hand.
        """
        message = await messages.one()
        self._check()
        return message

    def _check(self) -> None:
        """See `Call.check`. Nothing but a look, unless something has changed."""
        sessions = self._books.sessions
        basis = sessions.basis()
        if has_changed(basis, self._basis) or sessions.has_expired(self._call.principal):
            self._call.principal = self._recognise()
            self._basis = basis

    def _recognise(self) -> Principal:
        """Who makes the call, asked once more. Raises Unauthenticated, PermissionDenied."""
        return self._books.gate.admit(self._method.name, self._context)

    async def pace(self) -> None:
        """Wait until the call may be looked at: of one whose messages nobody reads."""
        if (pace := self._method.pace) is not None:
            await pace.turn(self._call.origin)

    def _admit(self) -> None:
        """Raises Unavailable or Overloaded."""
        books, origin = self._books, self._call.origin
        books.sending.check(origin)
        if not self._method.answers_while_draining:
            books.admission.enter()
            self._is_admitted = True
        try:
            self._seat = books.admission.seat(origin, self._call.tenant, is_kept=self._method.is_kept)
        except AdamixError:
            if self._is_admitted:
                books.admission.leave()
            raise

    def _count_out(self, *, is_refused: bool = False) -> None:
        """The call is none of its tenant's any more."""
        self._books.quota.leave(self._counted, is_refused=is_refused)
        self._counted = None

    @staticmethod
    async def _ended_by(session: Session, reason: AdamixError, error: BaseException | None) -> BaseException | None:
        """What a stream ends with whose caller is known no more."""
        if isinstance(error, asyncio.CancelledError):
            # Its client may have left as well.
            return reason if session.was_ended() else error
        await session.settle()
        return reason

    def _gone(self, _: Any) -> None:
        """The last byte was sent, or nobody reads it: by grpc, at the end of the call's task."""
        self._books.sending.ends.end(self.departure)
        self.departure.let_go()
        if self._seat is not None:
            call, call_s = self._call, time.monotonic() - self._start
            self._books.admission.rise(self._seat, call.origin, call.tenant, call_s)
        if self._aborted is not None:
            # grpc keeps it, it knows our frames, and these know what grpc keeps.
            _forget_frames(self._aborted)

    async def _end(self, error: BaseException | None) -> None:
        """Record the outcome; for an error that is ours to answer, end the call with its status."""
        # From here on grpc sends what is left, and the end.
        self.departure.since = time.monotonic()
        self._books.sending.ends.begin(self.departure)
        if error is None:
            self._record("OK")
        elif self._is_gone(error):
            self._record("CANCELLED" if time.monotonic() < self._call.deadline else "DEADLINE_EXCEEDED")
            # Swallowing this would leak the call's state inside grpc.
            raise asyncio.CancelledError from None
        else:
            known = error if isinstance(error, AdamixError) else None
            if known is None or known.code is Code.INTERNAL:
                log.error(
                    "unexpected error in a call",
                    exc_info=(type(error), error, error.__traceback__),
                    extra={"request_id": self._call.request_id, "method": self._method.label},
                )
                known = status.internal(self._call.request_id, known)
            self._record(known.code.name, known.reason)
            if known is error:
                # Nothing of a message is kept while the status waits to be sent.
                _forget_frames(error)
            del error
            await self._abort(known)

    @staticmethod
    def _is_gone(error: BaseException) -> bool:
        """Whether the call was ended from outside, and not by an error that merely looks like it."""
        if isinstance(error, ReaderGone):
            return True
        task = asyncio.current_task()
        return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0

    async def _abort(self, error: AdamixError) -> None:
        message = status.to_status(error, self._call.resource)
        request_id = self.departure.mark or self._call.request_id
        trailers = (*status.to_trailers(error, message), (REQUEST_ID_KEY, request_id))
        ending = self._context.abort(status.grpc_code(error), message.message, trailers)
        try:
            if not self.departure.is_stuck:
                await ending
            async with asyncio.timeout(_STATUS_S):
                await ending
        except TimeoutError:
            # The status waits behind what nobody reads. grpc takes this for the end of a call.
            raise asyncio.CancelledError from None
        except grpc.aio.InternalError:
            # The client has left meanwhile.
            raise asyncio.CancelledError from None
        except grpc.aio.AbortError as aborted:
            self._aborted = aborted
            raise

    def _record(self, code: str, reason: str = "") -> None:
        if self._method.is_audited or self._books.witness.is_turned_away(code):
            self._books.witness.saw(self._call, self._method.label, code, reason)
        seconds = time.monotonic() - self._start
        self._books.recorder.inc("adamix_requests_total", self._method.label, code)
        self._books.recorder.observe("adamix_request_seconds", self._method.label, value=seconds)
        level = logging.DEBUG if self._method.is_quiet else logging.INFO
        if log.isEnabledFor(level):
            log.log(
                level,
                "call",
                extra={
                    "request_id": self._call.request_id,
                    "method": self._method.label,
                    "code": code,
                    "seconds": round(seconds, 6),
                    "tenant": self._call.tenant,
                    "resource": without_secrets(self._call.resource),
                    "peer": self._call.origin.connection,
                },
            )


def _forget_frames(error: BaseException) -> None:
    error.__traceback__ = error.__context__ = error.__cause__ = None


def own_limit_s(remaining_s: float | None, default_s: float) -> float | None:
    """The time limit the server has to enforce by itself, in seconds; None where gRPC or nobody does.

    Args:
        remaining_s: until the client's own deadline, which gRPC enforces; None without one.
        default_s: for a client without one; infinite for calls without a total limit.
    """
    if remaining_s is None:
        return None if math.isinf(default_s) else default_s
    return MAX_TIMEOUT_S if remaining_s > MAX_TIMEOUT_S and not math.isinf(default_s) else None


def request_id_of(metadata: Any) -> str:
    """The caller's id for a call with this metadata, if it sent a harmless one; else a new one."""
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return f"{_OWN_IDS}-{next(_counter):x}"
