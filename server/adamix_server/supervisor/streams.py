"""The two streams between the supervisor and a child that are no conversation: what it is told, and what it prints.

Neither makes anybody wait: a child that does not read is told later how things stand, and a child that prints without
end prints into a pipe that it does not wait for. Knows neither processes nor logs.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from adamix_server.channel.codec import ToChild, to_child
from adamix_server.channel.outbox import Outbox
from adamix_server.channel.pipe import pack

_MAX_LINE_BYTES = 65_536


class Mouth(asyncio.BaseProtocol):
    """What is said to a child. One that does not listen hears later how things stand, and nothing grows meanwhile."""

    def __init__(self) -> None:
        self._outbox = Outbox[ToChild]()
        self._transport: asyncio.WriteTransport | None = None
        self._is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        # At most the frame that is being written waits in the transport.
        self._transport.set_write_buffer_limits(0)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - part of the protocol
        self._transport = None

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._write()

    def send(self, frame: ToChild) -> None:
        self._outbox.put(frame)
        self._write()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close, whatever is not written yet."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self) -> None:
        if self._transport is None or self._transport.is_closing():
            self._outbox.clear()
            return
        while not self._is_full and (frame := self._outbox.take()) is not None:
            self._transport.write(pack(to_child.encode(frame)))


class Output(asyncio.Protocol):
    """What a child prints, by lines.

    Attributes:
        ended: nobody holds the other end any more.
    """

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.ended = asyncio.Event()
        self._take = take
        self._transport: asyncio.BaseTransport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._take(line)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - part of the protocol
        if self._rest:
            self._take(self._rest)
        self._rest, self._transport = b"", None
        self.ended.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
