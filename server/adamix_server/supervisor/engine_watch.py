"""Whether the engine gets on: by when it last ended a step, not by whether its process is there.

An engine with nothing to do ends a step every 50 ms. So one that ends none for `stall_s` is stuck, whatever it is stuck
in: stopped by a signal, waiting for a device, or in native code that holds everything up. It may get out of that by
itself, so it is given twice as long again before it is lost. Knows neither processes nor front ends.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import Enum

# An engine is lost after so many times what makes it stalled.
LOST_AFTER = 3
_LOOKS_PER_STALL = 20
_LONGEST_PERIOD_S = 0.25
# Looks that come late by less than this part of it are late because the machine is busy.
_LATE = 0.25


class Verdict(Enum):
    """What is to be thought of an engine."""

    MOVING = "moving"
    STALLED = "stalled"
    LOST = "lost"


class Progress:
    """When an engine last ended a step. Pure; times are seconds on CLOCK_MONOTONIC.

    Args:
        now: when the engine was ready. It ends its first step after that.
    """

    def __init__(self, stall_s: float, now: float) -> None:
        self._stall_s = stall_s
        self.last_step = now

    @property
    def lost_at(self) -> float:
        """When it will be lost, if it ends no step before."""
        return self.last_step + LOST_AFTER * self._stall_s

    def beat(self, last_step: float) -> None:
        """The engine says so. Beats may arrive late, and all at once."""
        self.last_step = max(self.last_step, last_step)

    def excuse(self, away_s: float, now: float) -> None:
        """Who watches was away for so long, until now: so may the engine have been, and what it said is unread."""
        self.last_step = min(self.last_step + away_s, now)

    def verdict(self, now: float) -> Verdict:
        since = now - self.last_step
        if since < self._stall_s:
            return Verdict.MOVING
        return Verdict.STALLED if now < self.lost_at else Verdict.LOST


class EngineWatch:
    """Watches one engine after another. All methods belong to the supervisor's event loop.

    Args:
        stall_s: without a step for so long, an engine is stalled.
        on_stalled: called when it is, with its progress; `on_moving` when it has ended a step after that.
        end: called when it is lost, to end it; watching goes on when that is done.
    """

    def __init__(
        self,
        stall_s: float,
        *,
        on_stalled: Callable[[Progress], None],
        on_moving: Callable[[], None],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._stall_s = stall_s
        self._on_stalled = on_stalled
        self._on_moving = on_moving
        self._end = end
        self._progress: Progress | None = None
        self._is_stalled = False

    @property
    def stalled(self) -> Progress | None:
        """Of the engine that stands still now."""
        return self._progress if self._is_stalled else None

    def ready(self) -> None:
        """The next engine has come up; it is watched from now on."""
        self._progress, self._is_stalled = Progress(self._stall_s, time.monotonic()), False

    def gone(self) -> None:
        """There is no engine to watch."""
        self._progress, self._is_stalled = None, False

    def beat(self, last_step: float) -> None:
        """The engine's watchdog says when it last ended a step."""
        if self._progress is not None:
            self._progress.beat(last_step)

    async def run(self) -> None:
        """Look at the engine until cancelled."""
        period_s = min(self._stall_s / _LOOKS_PER_STALL, _LONGEST_PERIOD_S)
        while True:
            due = time.monotonic() + period_s
            await asyncio.sleep(period_s)
            now = time.monotonic()
            if now - due > _LATE * self._stall_s and self._progress is not None:
                self._progress.excuse(now - due, now)
            await self._look(now)

    async def _look(self, now: float) -> None:
        if (progress := self._progress) is None:
            return
        match progress.verdict(now):
            case Verdict.MOVING if self._is_stalled:
                self._is_stalled = False
                self._on_moving()
            case Verdict.STALLED if not self._is_stalled:
                self._is_stalled = True
                self._on_stalled(progress)
            case Verdict.LOST:
                self._progress, self._is_stalled = None, False
                await self._end()
            case _:
                pass
