"""A clock that jumps to whatever happens next."""

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """What is to happen and when, in seconds; of what is to happen at the same time, what was asked for first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time: float, what: Callable[[], None]) -> None:
        """Do it then; now, if that has passed."""
        heapq.heappush(self._due, (max(time, self.now), next(self._numbers), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._due:
            self.now, _, what = heapq.heappop(self._due)
            what()
