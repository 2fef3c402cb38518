"""One child process, kept running: started, followed, replaced when it ends or falls silent, given up on, drained.

Knows how a child lives; what it does, and what its frames mean, is the supervisor's matter.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from adamix.errors import FailedPrecondition
from adamix_server.channel.codec import FromChild, ToChild
from adamix_server.channel.supervisor_frames import Drain, Drained, Fatal, Ready
from adamix_server.supervisor.child import Child
from adamix_server.supervisor.patience import Patience

log = logging.getLogger(__name__)

# A child may be loading weights before it says its first word.
_START_S = 900.0
# A child that dies before it was ever ready this many times in a row will not come up by trying again.
_MAX_FAILED_STARTS = 5
_LONGEST_PAUSE_S = 30.0
_MAX_DOUBLINGS = 10


class Keeper:
    """Keeps one child running until the server stops.

    Args:
        name: of the child, for people.
        silence_s: a child that has spoken and then says nothing for so long is stuck, and is replaced.
        start: starts the next child.
        on_frame: called with everything a child says.
        on_end: called when a child has ended for certain.
        stopping: set when the server stops; no child is started after that.
    """

    def __init__(
        self,
        name: str,
        silence_s: float,
        *,
        start: Callable[[], Awaitable[Child]],
        on_frame: Callable[[FromChild], None],
        on_end: Callable[[], None],
        stopping: asyncio.Event,
    ) -> None:
        self.name = name
        self._silence_s = silence_s
        self._start = start
        self._on_frame = on_frame
        self._on_end = on_end
        self._stopping = stopping
        self._child: Child | None = None
        self._patience = Patience(_START_S)
        self._receiving: asyncio.Task[FromChild | None] | None = None
        self._ended = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether the child that runs now has said that it serves."""
        return self._child is not None and self._child.is_ready

    @property
    def silent_s(self) -> float:
        """Seconds since the child that runs now last said something."""
        return self._patience.silent_s()

    def send(self, frame: ToChild) -> None:
        """Send to the child that runs now, if there is one."""
        if self._child is not None:
            self._child.send(frame)

    async def run(self) -> None:
        """Run one child after another; returns when the server stops and the last one has ended.

        Raises:
            FailedPrecondition: no child ever became ready, and one said why (with its sentence), or trying again did
                not help. Once one was ready, what keeps the next from starting is taken to pass.
        """
        was_ever_ready, failed_starts = False, 0
        while not self._stopping.is_set():
            try:
                child = self._child = await self._start()
            except OSError as error:
                if not was_ever_ready:
                    raise FailedPrecondition(
                        f"the {self.name} process cannot be started: {error.strerror}", reason="CANNOT_START"
                    ) from error
                # What a busy machine has too little of now (memory, processes, descriptors), it may have again soon.
                log.error("child cannot be started now", extra={"child": self.name, "reason": error.strerror})  # noqa: TRY400
                failed_starts += 1
                await self._pause(failed_starts)
                continue
            fatal = await self._follow(child)
            status = await child.kill()
            self._child = None
            self._on_end()
            if self._stopping.is_set():
                break
            was_ever_ready |= child.is_ready
            failed_starts = 0 if child.is_ready else failed_starts + 1
            log.error("child ended", extra={"child": self.name, "status": status})
            if not was_ever_ready:
                self._give_up(fatal, failed_starts, status)
            await self._pause(failed_starts)
        self._ended.set()

    async def replace(self) -> None:
        """End the child that runs now, at once; the next one is started as after any other end."""
        if (child := self._child) is not None:
            await child.kill()
            # One that the kernel holds keeps its pipe open: it is listened to no more.
            if self._child is child and self._receiving is not None:
                self._receiving.cancel()

    async def drain(self, order: Drain, patience_s: float) -> None:
        """Let the child finish what runs in it, once `stopping` is set; end it after `patience_s`.

        In one that is not ready nothing runs.
        """
        if (child := self._child) is None:
            return
        if not child.is_ready:
            await child.kill()
            return
        child.send(order)
        try:
            await asyncio.wait_for(self._ended.wait(), patience_s)
        except TimeoutError:
            log.error("child did not drain", extra={"child": self.name, "after_s": patience_s})  # noqa: TRY400 - the trace says nothing
            await child.kill()

    async def end(self, grace_s: float) -> None:
        """End the child that still runs, if any: at once, or if it is ready within `grace_s`."""
        if (child := self._child) is not None:
            await child.stop(grace_s if child.is_ready else 0)

    async def _follow(self, child: Child) -> Fatal | None:
        """Listen to a child until it ends or falls silent; what it said if it cannot start."""
        patience = self._patience = Patience(_START_S)
        receiving = self._receiving = asyncio.create_task(child.receive())
        try:
            # A stop while it was being started: it has heard nothing of it.
            while not self._stopping.is_set() or child.is_ready:
                await asyncio.wait({receiving}, timeout=patience.beat_s)
                if not receiving.done():
                    if patience.is_over:
                        log.error("child is stuck", extra={"child": self.name, "silent_s": patience.limit_s})
                        return None
                    continue
                if receiving.cancelled():
                    return None
                frame = receiving.result()
                if frame is None or isinstance(frame, Drained):
                    return None
                if isinstance(frame, Fatal):
                    log.error("child cannot start", extra={"child": self.name, "reason": frame.message})
                    return frame
                child.is_ready |= isinstance(frame, Ready)
                patience = self._patience = Patience(self._silence_s)
                self._on_frame(frame)
                receiving = self._receiving = asyncio.create_task(child.receive())
        finally:
            receiving.cancel()
            self._receiving = None
        return None

    async def _pause(self, failed_starts: int) -> None:
        """Wait before the next try, the longer the more have failed; not once the server stops."""
        # Hours of failures are too many doublings for a number.
        pause_s = min(0.1 * 2 ** min(failed_starts, _MAX_DOUBLINGS), _LONGEST_PAUSE_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pause_s)

    def _give_up(self, fatal: Fatal | None, failed_starts: int, status: int) -> None:
        """Raises FailedPrecondition if there is no use in trying again."""
        if fatal is not None:
            raise FailedPrecondition(fatal.message, reason="CANNOT_START")
        if failed_starts >= _MAX_FAILED_STARTS:
            raise FailedPrecondition(
                f"the {self.name} process ended {failed_starts} times before it was ready (last status {status}); "
                "its own log lines above say why",
                reason="CANNOT_START",
            )
