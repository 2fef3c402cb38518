"""Child processes and the pipe that ties each to the supervisor.

Children are started by exec, never by fork: neither grpc nor torch survives a fork. The pipe carries frames and is the
child's lifeline: when it closes, the other side is gone, and the child exits.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Mapping

from adamix_server.frames import AnyFrame, StartEngine, StartFrontEnd, decode, encode

_FDS_VARIABLE = "ADAMIX_SUPERVISOR_FDS"
_LENGTH_BYTES = 4
_MAX_FRAME_BYTES = 64 << 20
_REAP_S = 0.5


class Child:
    """The supervisor's side of one child process. All methods belong to the supervisor's event loop.

    Attributes:
        is_ready: it has said so; until then there is nothing in it worth draining.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.is_ready = False
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, module: str, first: StartEngine | StartFrontEnd, environment: Mapping[str, str]) -> "Child":
        """Run `python -m module` with the given additions to the environment and send it its first frame.

        Raises:
            OSError: the machine has no room for one more process, or none for its pipes.
        """
        ends: list[int] = []
        try:
            ends += os.pipe()
            ends += os.pipe()
            child_reads, we_write, we_read, child_writes = ends
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                env={**os.environ, **environment, _FDS_VARIABLE: f"{child_reads},{child_writes}"},
                pass_fds=(child_reads, child_writes),
                stdin=asyncio.subprocess.DEVNULL,
                # An own group: Ctrl-C in a terminal reaches the supervisor alone, which then drains its children.
                process_group=0,
            )
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        os.close(child_reads)
        os.close(child_writes)
        child = cls(process, await _open_reader(we_read), await _open_writer(we_write))
        child.send(first)
        return child

    def send(self, frame: AnyFrame) -> None:
        """Queue a frame; lost without a word if the child is gone (`receive` says that)."""
        if not self._writer.is_closing():
            self._writer.write(_pack(frame))

    async def receive(self) -> AnyFrame | None:
        """The next frame, or None when the child is gone."""
        return await _read_frame(self._reader)

    async def stop(self, grace_s: float) -> int:
        """Close the pipe, wait, kill after `grace_s`; returns the exit status."""
        self._writer.close()
        try:
            return await asyncio.wait_for(self.process.wait(), grace_s)
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End it now; returns the exit status (negative: the signal that ended it)."""
        # One that has just died by itself is given time to be collected: the signal would take its status away from
        # asyncio, and the log would say 255 where it should say that the kernel killed it for its memory.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _REAP_S)
        if self.process.returncode is None:
            self.process.kill()
        self._writer.close()
        return await self.process.wait()


class SupervisorPipe:
    """The child's side."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._write_lock = threading.Lock()
        self._reader: asyncio.StreamReader | None = None

    @classmethod
    def from_environment(cls) -> "SupervisorPipe":
        """Raises SystemExit with a sentence when the process was not started by a supervisor."""
        text = os.environ.pop(_FDS_VARIABLE, "")
        try:
            read_fd, write_fd = (int(part) for part in text.split(","))
        except ValueError:
            raise SystemExit("this module is started by `adamix serve`, not by hand") from None
        # Not inherited further: a grandchild that held the pipe open would hide this child's death.
        os.set_inheritable(read_fd, False)
        os.set_inheritable(write_fd, False)
        return cls(read_fd, write_fd)

    def send(self, frame: AnyFrame) -> None:
        """Send from any thread. A supervisor that is gone is noticed by the reading side."""
        data = memoryview(_pack(frame))
        with self._write_lock:
            try:
                while data:
                    data = data[os.write(self._write_fd, data) :]
            except BrokenPipeError:
                return

    def receive_blocking(self) -> AnyFrame | None:
        """The next frame, or None when the supervisor is gone."""
        head = self._read_exactly(_LENGTH_BYTES)
        if head is None:
            return None
        body = self._read_exactly(int.from_bytes(head, "little"))
        return None if body is None else decode(body)

    async def receive(self) -> AnyFrame | None:
        """As `receive_blocking`, on the running event loop. Use one of the two, not both."""
        if self._reader is None:
            self._reader = await _open_reader(self._read_fd)
        return await _read_frame(self._reader)

    def _read_exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = os.read(self._read_fd, count - len(data))
            if not part:
                return None
            data += part
        return data


def _pack(frame: AnyFrame) -> bytes:
    data = encode(frame)
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


async def _read_frame(reader: asyncio.StreamReader) -> AnyFrame | None:
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "little")
        if size > _MAX_FRAME_BYTES:
            return None
        return decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def _open_reader(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_MAX_FRAME_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader


async def _open_writer(fd: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", buffering=0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)
