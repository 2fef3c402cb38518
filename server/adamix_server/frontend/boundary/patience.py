"""Ends waits that last too long: one timer for all of them, since a timer a call would cost more than its books.

Belongs to one event loop. Knows tasks; knows not what they wait for.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar


class Wait:
    """One wait of one task: that in which it is made.

    Args:
        loop: the task's.
        since: on the loop's clock.
    """

    __slots__ = ("_cancelling", "is_over", "since", "task")

    task: "asyncio.Task[Any]"

    def __init__(self, loop: asyncio.AbstractEventLoop, since: float) -> None:
        # To look the loop up would cost as much as all the rest.
        self.task = asyncio.current_task(loop)  # type: ignore[assignment] # there is one
        self.since = since
        self.is_over = False
        self._cancelling = self.task.cancelling()

    def end(self) -> None:
        """Throw CancelledError into the task where it waits."""
        self.is_over = True
        self.task.cancel()

    def was_ended(self) -> bool:
        """Whether the CancelledError at hand came from `end` alone. If so, it counts as dealt with."""
        return self.is_over and self.task.uncancel() <= self._cancelling


W = TypeVar("W", bound=Wait)


class Patience(Generic[W]):
    """Waits that all have the same limit, so that the oldest is the first to end.

    Args:
        limit_s: seconds that a wait may last.
        over: what is done with one that lasts longer; without it, its task is cancelled there.
    """

    def __init__(self, limit_s: float, over: Callable[[W], None] = Wait.end) -> None:
        self._limit_s = limit_s
        self._over = over
        self._loop = asyncio.get_running_loop()
        # In the order in which they began.
        self._waits: dict[W, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, wait: W) -> None:
        """Watch a wait that begins now."""
        self._waits[wait] = None
        if self._timer is None:
            self._timer = self._loop.call_at(wait.since + self._limit_s, self._look)

    def end(self, wait: W) -> None:
        """The wait is over, however it ended. Does nothing the second time."""
        self._waits.pop(wait, None)

    def close(self) -> None:
        """Watch no more."""
        self._waits.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        self._timer = None
        while self._waits:
            wait = next(iter(self._waits))
            if (due := wait.since + self._limit_s) > now:
                self._timer = self._loop.call_at(due, self._look)
                return
            del self._waits[wait]
            self._over(wait)
