"""A client's connection to its server: the channel, the stubs on it, and a new one when the network forgot the old.

A connection can die without a word: a router drops it, the machine behind it moves. Pings find that out while calls
wait (keepalive); where even those are answered by something in between, or are off, several deadlines in a row without
a byte from the server do. The channel is then made anew; calls of other threads end on the old one. Knows how calls end
on the wire; knows no method.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from adamix_client import status
from adamix_client.bounds import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from adamix_client.destination import NO_CREDENTIALS, Credentials, Destination
from adamix_client.errors import AdamixError, Code, FailedPrecondition, NotFound, Unavailable
from adamix_protos.v1 import adapters_pb2_grpc, admin_pb2_grpc, inference_pb2_grpc, server_pb2_grpc

# The server takes a ping every 10 s, and ends connections with more.
KEEPALIVE_S = 20.0
KEEPALIVE_TIMEOUT_S = 5.0
# Deadlines in a row, without a byte from the server, after which a connection counts as dead.
MAX_SILENT_DEADLINES = 3
_NEVER_MS = 2**31 - 1
_CLOSE_S = 1.0
# One method with an empty request and one number in its answer: not worth a library. Bytes go in and come out.
_HEALTH = "/grpc.health.v1.Health/Check"
HEALTH_OF_ALL, SERVING = b"", b"\x08\x01"
_HEALTH_STATUSES = {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING", b"\x08\x03": "SERVICE_UNKNOWN"}
# Names of services are far shorter, and so have their length in one byte.
_MAX_SERVICE_BYTES = 127

Option = str | int


def health_request(service: str) -> bytes:
    """The request for one service by its full name. Raises NotFound: no service has such a name."""
    name = service.encode("utf-8", "replace")
    if len(name) > _MAX_SERVICE_BYTES:
        raise NotFound("there is no such service")
    return bytes((0x0A, len(name))) + name if name else HEALTH_OF_ALL


def health_status(answer: bytes) -> str:
    """What an answer says, by its name in grpc.health.v1."""
    return _HEALTH_STATUSES.get(answer, "UNKNOWN")


def channel_options(
    *,
    keepalive_s: float = KEEPALIVE_S,
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
    extra: Mapping[str, Option] | None = None,
) -> list[tuple[str, Option]]:
    """What every channel to a server of ours is made with.

    Args:
        keepalive_s: of silence, after which the server is pinged, also without a call; `math.inf` for never.
        keepalive_timeout_s: without an answer to that, after which the connection is dead.
        extra: further options of grpc, or other values for these.
    """
    options: dict[str, Option] = {
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        # Equal, because between the two grpc draws by chance.
        "grpc.max_metadata_size": MAX_METADATA_BYTES,
        "grpc.absolute_max_metadata_size": MAX_METADATA_BYTES,
        "grpc.keepalive_time_ms": _milliseconds(keepalive_s),
        "grpc.keepalive_timeout_ms": _milliseconds(keepalive_timeout_s),
        # Of pings that grpc sends of its own, beside which the one above is not sent: 60 s otherwise.
        "grpc.http2.ping_timeout_ms": _milliseconds(keepalive_timeout_s),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        # After an outage of any length; 120 s otherwise.
        "grpc.max_reconnect_backoff_ms": 5_000,
        "grpc.enable_retries": 0,
        # A connection for every client, so that several in one process spread over the front ends of a server.
        "grpc.use_local_subchannel_pool": 1,
    }
    return list({**options, **(extra or {})}.items())


def _milliseconds(seconds: float) -> int:
    """As grpc takes it, for which the largest number is never."""
    return round(min(seconds * 1000, _NEVER_MS))


class Link:
    """One channel and the stubs on it. What it counts belongs to the connection.

    Args:
        channel: of `grpc` or of `grpc.aio`.
        metadata: that every call shows.
    """

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.channel = channel
        self.metadata = metadata
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.server = server_pb2_grpc.ServerServiceStub(channel)
        self.health = channel.unary_unary(_HEALTH, None, None)
        self.running = 0
        self.silent_deadlines = 0
        # Until then: when it was made.
        self.heard_at = time.monotonic()

    def heard(self) -> None:
        """Something came from the server."""
        self.silent_deadlines = 0
        self.heard_at = time.monotonic()


class Connection:
    """The way to one server. Safe to share between threads; of no use to a forked process.

    The one for event loops is `adamix_client.aio.connection.AsyncConnection`.

    Args:
        address: `host:port`, or `grpcs://host:port` for TLS.
        options: of its channels.
        renewal_s: the shortest silence, and so the shortest time between two channels, for which deadlines that passed
            make one anew: a busy server that misses short ones is as silent as a dead one.
        credentials: what it trusts and shows.

    Raises:
        InvalidConfig: as `Destination` does.
    """

    # What makes channels.
    _library: Any = grpc

    def __init__(
        self,
        address: str,
        options: Sequence[tuple[str, Option]],
        renewal_s: float,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self.address = address
        self._destination = Destination(address, credentials)
        self._options = options
        self._renewal_s = renewal_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._is_forked = False
        # Made when the first call is: one of `grpc.aio` belongs to the event loop that it is made in.
        self._link: Link | None = None
        # The one in use, and older ones on which calls still run.
        self._links: set[Link] = set()
        _connections.add(self)

    @property
    def shows_who_calls(self) -> bool:
        """Whether its server is told who calls."""
        return self._destination.shows_who_calls

    @contextmanager
    def calling(self) -> Iterator[Link]:
        """The link to make one call on. In the block, what grpc raises becomes the AdamixError that it stands for.

        Raises:
            FailedPrecondition: the client is closed (`CLIENT_CLOSED`), or another process's (`CLIENT_FORKED`).
            Unavailable: there is no server.
            AdamixError: whatever the server answers with.
        """
        self.check_usable()
        with self._lock:
            self.check_usable()
            if (link := self._link) is None:
                link = self._link = self._connect()
                self._links.add(link)
            link.running += 1
        try:
            yield link
            link.heard()
        except grpc.RpcError as error:
            raise self._failure(error, link) from None
        except (ValueError, grpc.aio.UsageError):
            # What grpc says where a thread closes the channel that another is about to use.
            if (reason := self._unusable()) is not None:
                raise reason from None
            raise
        finally:
            with self._lock:
                link.running -= 1
            self._close_retired(link)

    def messages(self, begin: Callable[[Link], Any]) -> Generator[Any, None, None]:
        """What comes over the stream that `begin` opens. Raises as `calling`; closing it ends the stream."""
        with self.calling() as link:
            call = begin(link)
            try:
                for message in call:
                    link.heard()
                    yield message
                    self.check_usable()
            finally:
                self.cancel(call)

    def check_usable(self) -> None:
        """Raise FailedPrecondition where there will be no further call."""
        if (reason := self._unusable()) is not None:
            raise reason

    def cancel(self, call: Any) -> None:
        """End a call that may still run; not one of the parent process, whose locks may be held for ever here."""
        if not self._is_forked:
            call.cancel()

    def renew(self, link: Link) -> None:
        """Make the channel anew, because this one is dead. Calls that run on it go on there."""
        with self._lock:
            if link is self._link and not self._closed.is_set():
                self._link = self._connect()
                self._links.add(self._link)
        self._close_retired(link)

    def wait_closed(self, timeout_s: float) -> bool:
        """Sleep; whether the client was closed meanwhile."""
        return self._closed.wait(timeout_s)

    def close(self) -> None:
        """End everything that runs. Waits no longer than a moment for calls that do not end."""
        for link in self.retire_all():
            self._shut(link)

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def retire_all(self) -> set[Link]:
        """There will be no further call. All links that there are, for whoever closes them; none once forked."""
        if self._is_forked:
            return set()
        self._closed.set()
        with self._lock:
            links, self._links = self._links, set()
        return links

    def leave_to_parent(self) -> None:
        """In a process that was just forked: touch nothing. Closing would wait for threads that are not here."""
        self._is_forked = True
        self._lock = threading.Lock()

    def _unusable(self) -> FailedPrecondition | None:
        if self._is_forked:
            return FailedPrecondition(
                "this client was made before the process was forked, and its connection is the parent's; "
                "make one after the fork, in each process",
                reason="CLIENT_FORKED",
            )
        if self._closed.is_set():
            return FailedPrecondition("this client is closed", reason="CLIENT_CLOSED")
        return None

    def _connect(self) -> Link:
        destination, options = self._destination, self._options
        if (credentials := destination.channel_credentials()) is not None:
            channel = self._library.secure_channel(destination.target, credentials, options)
        else:
            if destination.metadata:
                # In clear it goes to this machine, and through nobody.
                options = [*options, ("grpc.enable_http_proxy", 0)]
            channel = self._library.insecure_channel(destination.target, options)
        return Link(channel, destination.metadata)

    def _shut(self, link: Link) -> None:
        # gRPC waits for every call of a channel: for ever for one that Ctrl-C found in its beginning.
        closing = threading.Thread(target=link.channel.close, name="close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _close_retired(self, link: Link) -> None:
        """Close a channel that is not in use any more once nothing runs on it."""
        with self._lock:
            if self._is_forked or link is self._link or link.running or link not in self._links:
                return
            self._links.discard(link)
        self._shut(link)

    def _failure(self, error: grpc.RpcError, link: Link) -> AdamixError:
        found = status.from_rpc_error(error)
        if found.code is Code.DEADLINE_EXCEEDED and not error.trailing_metadata():
            self._missed(link)
        else:
            link.heard()
        # A call that meets a port while it closes is cancelled by the transport; this client itself cancels none.
        if found.code in (Code.UNAVAILABLE, Code.CANCELLED) and found.reason == type(found).default_reason:
            found = self._unusable() or Unavailable(f"no server answers at {self.address}: {found.message}")
        return found

    def _missed(self, link: Link) -> None:
        """A deadline passed on a link without a byte."""
        with self._lock:
            link.silent_deadlines += 1
            is_dead = link.silent_deadlines >= MAX_SILENT_DEADLINES
        if is_dead and time.monotonic() - link.heard_at >= self._renewal_s:
            self.renew(link)


_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for connection in _connections:
        connection.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
