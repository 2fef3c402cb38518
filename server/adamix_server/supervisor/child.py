"""The parent's end of a child process: started, spoken to over a pipe, stopped or killed.

Children are started by exec, never by fork: neither grpc nor torch survives a fork. The child's end of the pipe is
`channel/pipe.py`. Knows no kind of child.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping

from adamix_server.channel.codec import FromChild, ToChild, from_child, to_child
from adamix_server.channel.pipe import FDS_VARIABLE, open_reader, pack, read_frame
from adamix_server.channel.supervisor_frames import StartEngine, StartFrontEnd

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
                env={**os.environ, **environment, FDS_VARIABLE: f"{child_reads},{child_writes}"},
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
        child = cls(process, await open_reader(we_read), await _open_writer(we_write))
        child.send(first)
        return child

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, frame: ToChild) -> None:
        """Queue a frame; lost without a word if the child is gone (`receive` says that)."""
        if not self._writer.is_closing():
            self._writer.write(pack(to_child.encode(frame)))

    async def receive(self) -> FromChild | None:
        """The next frame, or None when the child is gone."""
        return await read_frame(self._reader, from_child)

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


async def _open_writer(fd: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", buffering=0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)
