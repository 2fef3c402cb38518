"""One connection over HTTP: uvicorn's, with the limits of this server and answers in its own shape.

What uvicorn leaves to whoever stands before it: how long a head may be and may take, how long nothing may be asked, how
many connections there may be, what becomes of a body that was answered before it had come, and what is answered where
the bytes are no HTTP. Who leaves ends what is done for it at once. Knows no route.
"""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from adamix.errors import AdamixError, DeadlineExceeded, InvalidRequest, Unavailable
from adamix_server.frontend.http.errors import headers_too_large, status_of, to_reply
from adamix_server.frontend.http.request import CONNECTION
from adamix_server.limits.calls import FIRST_MESSAGE_S
from adamix_server.limits.http import IDLE_S, LINGER_S, MAX_HEADER_BYTES, MAX_PIPELINED

# For a client whose connection was one too many.
_FULL_RETRY_S = 1.0


_log = logging.getLogger("adamix_server.frontend.http.uvicorn")
_log.setLevel(logging.ERROR)


class Way:
    """A transport that can hold back what is written: the head of an answer leaves together with its body."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        """Keep what is written from now on."""
        self._held = []

    def release(self) -> None:
        """Send it, as one."""
        held, self._held = self._held, None
        if held:
            self._transport.write(b"".join(held))

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._transport.write(data)
        else:
            self._held.append(data)

    def close(self) -> None:
        self.release()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """See the module's docstring; made by uvicorn's configuration for each connection, with `max_connections`.

    Attributes:
        task: what works on the request at hand.
        is_refused: what came was no HTTP, or too much of it, and that was the last answer.
    """

    def __init__(self, *args: Any, max_connections: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self._max_connections = max_connections
        self.timeout_keep_alive = IDLE_S  # type: ignore[assignment] # any number of seconds
        self.task: asyncio.Task[Any] | None = None
        # Whoever sends bytes that are no HTTP must not fill the log.
        self.logger = _log
        # What waits for a head, or for the rest of a body that nobody reads; at most one of them at a time.
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_head = False
        self._is_in_body = False
        self.is_refused = False

    @property
    def is_held_back(self) -> bool:
        """Whether the body waits for a word of ours (`expect: 100-continue`), and so may never come."""
        # Of a request before the newest all has come.
        return not self.pipeline and self.cycle.waiting_for_100_continue

    def listen(self) -> None:
        """Notice from now on that the client leaves: with all of a body in hand, reading may still be paused."""
        if not self.pipeline:
            self.flow.resume_reading()

    async def drained(self) -> None:
        """Return once the reader has taken almost all that was written."""
        if self.flow.write_paused:
            await self.flow.drain()

    def drop(self) -> None:
        """End the connection now, with what has been written and not been sent."""
        if not self.is_refused:
            self.transport.abort()

    def hold(self) -> None:
        """Keep what is written until `release`."""
        self._way.hold()

    def release(self) -> None:
        """Send what was kept."""
        self._way.release()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._way = Way(transport)
        super().connection_made(self._way)  # type: ignore[arg-type] # as far as uvicorn asks for one
        if len(self.connections) > self._max_connections:
            self._refuse(
                Unavailable(
                    "this server has as many connections as it takes; try again",
                    reason="CONNECTIONS_FULL",
                    retry_after_s=_FULL_RETRY_S,
                )
            )
            return
        self.timeout_keep_alive_task = self.loop.call_later(IDLE_S, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._stop_timer()
        # Those that wait for their turn have not begun.
        self.pipeline.clear()
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # A line break between two requests is no request: only one that has begun ends the time without any.
        idle, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if idle is not None:
            if self._is_in_head or self._is_answering() or self.timeout_keep_alive_task is not None:
                idle.cancel()
            else:
                self.timeout_keep_alive_task = idle
        if self._is_in_head and self.parser is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(headers_too_large(MAX_HEADER_BYTES))
            elif self._timer is None:
                self._timer = self.loop.call_later(FIRST_MESSAGE_S, self._head_is_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0
        self.scope[CONNECTION] = self  # type: ignore[literal-required] # ASGI allows further keys

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:
            super().on_header(name, value)
            return
        # A trailer says nothing here: the request is being answered by what its head has said.
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > 2 * MAX_HEADER_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_timer()
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            return
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if head_bytes > MAX_HEADER_BYTES:
            self._refuse(headers_too_large(MAX_HEADER_BYTES))
            return
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._refuse(_malformed())
            return
        self._head_bytes = head_bytes
        self._is_in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._is_in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:
            # The rest of a body that had been answered.
            self._stop_timer()
            self._rest()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            # It ends when the last byte has left; its reader has as long for that as any other.
            self._rest()
        elif self._is_in_body and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self._stop_timer()
            self._timer = self.loop.call_later(LINGER_S, self.drop)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says as much
        """uvicorn's word for bytes that are no HTTP."""
        self._refuse(_malformed())

    def _unsupported_upgrade_warning(self) -> None:
        """Nobody is told: the request is answered as it would be without."""

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            # Whoever has not read it by now will not.
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _rest(self) -> None:
        """Nothing is asked now."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(IDLE_S, self.timeout_keep_alive_handler)

    def _head_is_late(self) -> None:
        self._timer = None
        self._refuse(DeadlineExceeded(f"no request came within {FIRST_MESSAGE_S:g} s", reason="MESSAGE_LATE"))

    def _refuse(self, error: AdamixError) -> None:
        """Answer without a request, and end the connection."""
        self._stop_timer()
        if self._is_answering():
            if self.pipeline or self.cycle.response_started:
                # An answer is on its way, or another one is due: this one would be taken for it.
                self.transport.abort()
                return
            # The request at hand is broken: this is the answer to it.
            self.cycle.disconnected = True
            if self.task is not None:
                self.task.cancel()
        self.is_refused = True
        reply = to_reply(error)
        headers = (
            ("content-type", reply.content_type),
            ("content-length", str(len(reply.body))),
            *reply.headers,
            ("connection", "close"),
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status_of(error)] + head.encode("latin-1") + b"\r\n" + reply.body)
        self.transport.close()
        self._rest()

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _malformed() -> InvalidRequest:
    return InvalidRequest("this is no valid HTTP request", reason="MALFORMED_REQUEST")
