"""The parent's end of a child process: started, spoken to over a pipe, listened to, stopped or killed.

Children are started by exec, never by fork: neither grpc nor torch survives a fork. The child's end of the pipe is
`channel/pipe.py`. What a child writes on stdout and stderr, also in C, comes here by a pipe that never makes it wait,
and goes into the log. Knows no kind of child.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial

from adamix_server.channel.codec import FromChild, ToChild, from_child
from adamix_server.channel.pipe import FDS_VARIABLE, open_reader, read_frame
from adamix_server.channel.supervisor_frames import StartEngine, StartFrontEnd
from adamix_server.supervisor.streams import Mouth, Output
from adamix_server.telemetry import logs

log = logging.getLogger(__name__)

_REAP_S = 0.5
# A killed process that is still there is held by the kernel: it runs no more, and is not waited for.
_DEATH_S = 5.0


class Child:
    """The supervisor's side of one child process. All methods belong to the supervisor's event loop.

    Attributes:
        is_ready: it has said so; until then there is nothing in it worth draining.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        mouth: Mouth,
        output: Output,
    ) -> None:
        self.process = process
        self.is_ready = False
        self._reader = reader
        self._mouth = mouth
        self._output = output

    @classmethod
    async def start(cls, module: str, first: StartEngine | StartFrontEnd, environment: Mapping[str, str]) -> "Child":
        """Run `python -m module` with the given additions to the environment and send it its first frame.

        Raises:
            OSError: the machine has no room for one more process, or none for its pipes.
        """
        ends: list[int] = []
        try:
            for _ in range(3):
                ends += os.pipe()
            child_reads, we_write, we_read, child_writes, we_hear, child_says = ends
            # Whatever the child prints while nobody listens is lost to it, rather than waited for.
            os.set_blocking(child_says, False)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                env={**os.environ, **environment, FDS_VARIABLE: f"{child_reads},{child_writes}"},
                pass_fds=(child_reads, child_writes),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=child_says,
                stderr=child_says,
                # An own group: Ctrl-C in a terminal reaches the supervisor alone, which then drains its children.
                process_group=0,
            )
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        for end in (child_reads, child_writes, child_says):
            os.close(end)
        name = first.name if isinstance(first, StartFrontEnd) else f"engine-{first.engine_id}"
        output = Output(partial(logs.relay, name))
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: output, os.fdopen(we_hear, "rb", buffering=0))
        reader = await open_reader(we_read)
        _, mouth = await loop.connect_write_pipe(Mouth, os.fdopen(we_write, "wb", buffering=0))
        child = cls(process, reader, mouth, output)
        child.send(first)
        return child

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, frame: ToChild) -> None:
        """Queue a frame; lost without a word if the child is gone (`receive` says that)."""
        self._mouth.send(frame)

    async def receive(self) -> FromChild | None:
        """The next frame, or None when the child is gone."""
        return await read_frame(self._reader, from_child)

    async def stop(self, grace_s: float) -> int:
        """Close the pipe, wait, kill after `grace_s`; returns the exit status."""
        self._mouth.close()
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
        self._mouth.abort()
        try:
            status = await asyncio.wait_for(self.process.wait(), _DEATH_S)
        except TimeoutError:
            log.error("a killed child does not end: the kernel holds it", extra={"pid": self.process.pid})  # noqa: TRY400 - the trace says nothing
            status = -signal.SIGKILL
        # What it said last explains how it ended. A process of its own may hold the pipe open.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._output.ended.wait(), _REAP_S)
        self._output.close()
        return status
