"""One message of a call: a place, the bytes, room for them, and what they say.

In this order, so that a caller costs nothing before its turn. Fields that this server does not know are discarded, and
a message that is mostly such is refused. Neither the bytes nor the message are kept here; the room they take is the
call's until it ends or asks for its next message. A tenant has its share of that room, beside the connection's.
Knows messages of protobuf; knows no service.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError, Message

from adamix.errors import InvalidRequest, Overloaded
from adamix_server import retry
from adamix_server.frontend.boundary.bounds import COPIES, SMALL_BYTES, UNKNOWN_FLOOR_BYTES, Bounds
from adamix_server.frontend.boundary.pace import Pace
from adamix_server.frontend.boundary.places import Places
from adamix_server.frontend.boundary.rooms import Origin, Room, TenantParts
from adamix_server.limits.messages import MAX_MESSAGE_BYTES

# grpc.aio.ServicerContext: generic in grpc-stubs, but not when it runs.
Context = Any
Parse = Callable[[bytes], Any]
# Counts a refusal for a reason, of a tenant.
RefusedOf = Callable[[str, str], None]


def uncounted_of(_reason: str, _tenant: str) -> None:
    """What counts nothing."""


class Messages:
    """The room that the messages of all calls have in memory. Belongs to one event loop."""

    def __init__(self, bounds: Bounds, refused: RefusedOf = uncounted_of) -> None:
        self._room = Room(bounds.message_bytes, least=COPIES * MAX_MESSAGE_BYTES)
        self._tenants = TenantParts(bounds.message_bytes)
        self._patience_s = bounds.bytes_s
        self._refused = refused
        self._freed: asyncio.Event = asyncio.Event()

    def take(self, origin: Origin, tenant: str, num_bytes: int) -> bool:
        """Room for a message for as long as it is used, if it can be read now."""
        need = COPIES * num_bytes
        if not self._tenants.may_take(tenant, need) or not self._room.take(origin, num_bytes, need):
            return False
        self._tenants.take(tenant, num_bytes)
        return True

    def give(self, origin: Origin, tenant: str, num_bytes: int) -> None:
        self._room.give(origin, num_bytes)
        self._tenants.give(tenant, num_bytes)
        self._freed.set()

    async def wait(self, origin: Origin, tenant: str, num_bytes: int) -> None:
        """`take` as soon as there is room. Raises Overloaded (`BYTES_IN_FLIGHT`) if there is none for too long."""
        try:
            async with asyncio.timeout(self._patience_s):
                while not self.take(origin, tenant, num_bytes):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            self._refused("BYTES_IN_FLIGHT", tenant)
            raise Overloaded(
                "too many bytes of messages are being worked on; try again, or send smaller ones",
                reason="BYTES_IN_FLIGHT",
                # It was waited for for so long already, and may well take as long again.
                retry_after_s=retry.within(self._patience_s),
            ) from None


class Receiver:
    """The messages of one call, one after the other; an iterator of them.

    Args:
        tenant: the caller's; empty for nobody known.
        places: to read in.
        messages: the room of all calls.
        parse: bytes -> message, as the stubs of protobuf give it. Raises DecodeError.
        pace: at which messages are received; None for as fast as they come.
        is_upload: only its first message is subject to that.
    """

    __slots__ = (
        "_context",
        "_held",
        "_is_first",
        "_is_upload",
        "_messages",
        "_origin",
        "_pace",
        "_parse",
        "_places",
        "_tenant",
    )

    def __init__(
        self,
        context: Context,
        origin: Origin,
        tenant: str,
        places: Places,
        messages: Messages,
        parse: Parse,
        pace: Pace | None = None,
        *,
        is_upload: bool = False,
    ) -> None:
        self._pace = pace
        self._is_upload = is_upload
        self._context = context
        self._origin = origin
        self._tenant = tenant
        self._places = places
        self._messages = messages
        self._parse = parse
        self._is_first = True
        self._held = 0

    def __aiter__(self) -> "Receiver":
        return self

    async def __anext__(self) -> Any:
        """The next message; StopAsyncIteration when the client has sent all.

        Raises:
            DeadlineExceeded: the first one did not come (`MESSAGE_LATE`).
            Overloaded: no place to receive it in (`READING_FULL`), or no room for its bytes (`BYTES_IN_FLIGHT`).
            InvalidRequest: it cannot be parsed, or is mostly fields that nobody knows.
        """
        if self._held:
            self.close()
        places, origin = self._places, self._origin
        if self._pace is not None and (self._is_first or not self._is_upload):
            await self._pace.turn(origin)
        place = places.take(origin, is_first=self._is_first) or await places.turn(origin, is_first=self._is_first)
        is_small = None
        try:
            raw = await self._context.read()
            if raw is grpc.aio.EOF:  # type: ignore[attr-defined] # the stubs do not have it
                raise StopAsyncIteration
            self._is_first = False
            num_bytes = len(raw) or 1
            is_small = num_bytes <= SMALL_BYTES
            if is_small:
                places.give(place, is_small=True)
            if not self._messages.take(origin, self._tenant, num_bytes):
                await self._messages.wait(origin, self._tenant, num_bytes)
            self._held = num_bytes
            message = parsed(self._parse, raw)
        except asyncio.CancelledError:
            if place.error is not None and place.was_ended():
                raise place.error from None
            raise
        finally:
            if not is_small:
                places.give(place, is_small=is_small)
        # An error knows the frames it came through.
        del raw
        if isinstance(message, InvalidRequest):
            raise message
        return message

    async def one(self) -> Any:
        """The only message of a call. What else may follow is not read. Raises as the iteration does."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            # The end of a call that was cancelled looks the same, and its cancellation is on the way.
            await asyncio.sleep(0)
            raise InvalidRequest("the call ended without a message", reason="MESSAGE_MISSING") from None

    def close(self) -> None:
        """The last message is done with."""
        if self._held:
            self._messages.give(self._origin, self._tenant, self._held)
            self._held = 0


def parsed(parse: Parse, raw: bytes) -> Any:
    """The message that `raw` is, without unknown fields; or what is wrong with it, an InvalidRequest."""
    try:
        message: Message = parse(raw)
    except DecodeError:
        return InvalidRequest("the message is not a valid request", reason="MALFORMED_MESSAGE")
    message.DiscardUnknownFields()
    if len(raw) > UNKNOWN_FLOOR_BYTES and 2 * message.ByteSize() < len(raw):
        return InvalidRequest(
            "more than half of the message is fields that this server does not know", reason="TOO_MANY_UNKNOWN_FIELDS"
        )
    return message
