"""The pipe that ties a child process to the supervisor: the child's end, and how frames lie in it.

It is the child's lifeline: when it closes, the other side is gone, and the child exits. Bytes that are no frame of the
direction they came by mean the same. A supervisor that does not read now is no reason to wait: what is to be said to
it waits in an `Outbox`. The supervisor's end is `supervisor/child.py`.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from adamix_server.channel.codec import Codec, FromChild, NotAFrame, ToChild, Word, from_child, to_child
from adamix_server.channel.outbox import Outbox
from adamix_server.channel.supervisor_frames import Account, Sample, Stats

log = logging.getLogger(__name__)

F = TypeVar("F")

FDS_VARIABLE = "ADAMIX_SUPERVISOR_FDS"
_LENGTH_BYTES = 4
_MAX_FRAME_BYTES = 64 << 20
# How long a process that ends tries to have its last words taken.
LAST_WORDS_S = 1.0


class SupervisorPipe:
    """The child's end. Nothing but `receive_blocking` and `flush` ever waits for the supervisor."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._outbox = Outbox[FromChild]()
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_gone = False
        self._writer: threading.Thread | None = None
        self._reader: asyncio.StreamReader | None = None

    @classmethod
    def from_environment(cls) -> "SupervisorPipe":
        """Raises SystemExit with a sentence when the process was not started by a supervisor."""
        text = os.environ.pop(FDS_VARIABLE, "")
        try:
            read_fd, write_fd = (int(part) for part in text.split(","))
        except ValueError:
            raise SystemExit("this module is started by `adamix serve`, not by hand") from None
        # Not inherited further: a grandchild that held the pipe open would hide this child's death.
        os.set_inheritable(read_fd, False)
        os.set_inheritable(write_fd, False)
        return cls(read_fd, write_fd)

    def send(self, frame: Word) -> None:
        """Send from any thread. A supervisor that is gone is noticed by the reading side."""
        with self._changed:
            self._outbox.put(frame)
            self._wake()

    def report(self, drain: Callable[[], list[Sample]]) -> None:
        """Say that this process lives, from any thread, with what `drain` gives once the supervisor reads it."""
        with self._changed:
            self._outbox.put_made(Stats, lambda: Stats(samples=drain()))
            self._wake()

    def account(self, make: Callable[[], Account]) -> None:
        """Say what is to be written down, from any thread: what `make` gives once the supervisor reads it."""
        with self._changed:
            self._outbox.put_made(Account, make)
            self._wake()

    def flush(self, timeout_s: float = LAST_WORDS_S) -> None:
        """Before the process ends: wait until everything is written, but not for ever."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outbox and not self._is_writing, timeout_s)

    def _wake(self) -> None:
        if self._is_gone:
            self._outbox.clear()
        elif self._writer is None:
            self._writer = threading.Thread(target=self._write, daemon=True, name="to-supervisor")
            self._writer.start()
        self._changed.notify_all()

    def _write(self) -> None:
        """In a thread of its own, the only one that a full pipe stops."""
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._outbox))
                frame = self._outbox.take()
                self._is_writing = True
            if frame is None:
                continue
            data = memoryview(pack(from_child.encode(frame)))
            try:
                while data:
                    data = data[os.write(self._write_fd, data) :]
            except OSError:
                break
        with self._changed:
            self._is_gone, self._is_writing = True, False
            self._outbox.clear()
            self._changed.notify_all()

    def receive_blocking(self) -> ToChild | None:
        """The next frame, or None when the supervisor is gone."""
        head = self._read_exactly(_LENGTH_BYTES)
        if head is None:
            return None
        body = self._read_exactly(int.from_bytes(head, "little"))
        return None if body is None else _decode(body, to_child)

    async def receive(self) -> ToChild | None:
        """As `receive_blocking`, on the running event loop. Use one of the two, not both."""
        if self._reader is None:
            self._reader = await open_reader(self._read_fd)
        return await read_frame(self._reader, to_child)

    def _read_exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = os.read(self._read_fd, count - len(data))
            if not part:
                return None
            data += part
        return data


def pack(data: bytes) -> bytes:
    """A frame as it lies in the pipe, after its length."""
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


async def read_frame(reader: asyncio.StreamReader, codec: Codec[F]) -> F | None:
    """The next frame; None when the other side is gone, or says what is none."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "little")
        if size > _MAX_FRAME_BYTES:
            return None
        return _decode(await reader.readexactly(size), codec)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def open_reader(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_MAX_FRAME_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader


def _decode(data: bytes, codec: Codec[F]) -> F | None:
    try:
        return codec.decode(data)
    except NotAFrame as error:
        log.error("what came by the pipe is no frame: %s", error)  # noqa: TRY400 - the trace says nothing
        return None
