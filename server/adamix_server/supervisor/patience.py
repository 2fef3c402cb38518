"""How long somebody has been silent, as far as this process was there to listen.

A process can stand still while the clock goes on: stopped by a signal, frozen with its container, moved with its
machine. What others said meanwhile waits to be read, and their silence is none. Pure; knows neither children nor pipes.
"""

import time
from collections.abc import Callable

_LONGEST_BEAT_S = 1.0
_BEATS = 4


class Patience:
    """With somebody who has to speak again within `limit_s`.

    `silent_s` is to be asked at least every `beat_s`. Asked much later than that, this process itself has stood still:
    the silence then begins anew.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self.beat_s = min(_LONGEST_BEAT_S, limit_s / _BEATS)
        self._clock = clock
        self.heard()

    def heard(self) -> None:
        """Somebody has spoken just now."""
        self._since = self._last_look = self._clock()

    def silent_s(self) -> float:
        """Seconds since somebody spoke, or since this process came back."""
        now = self._clock()
        if now - self._last_look > 2 * self.beat_s:
            self._since = now
        self._last_look = now
        return now - self._since

    @property
    def is_over(self) -> bool:
        """Asks `silent_s`."""
        return self.silent_s() >= self.limit_s
