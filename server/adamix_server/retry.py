"""When it is worth to try again: estimates from what was measured, for callers that are refused.

Pure: numbers in, seconds out; times are seconds on CLOCK_MONOTONIC. What callers are told differs from the estimate by
some chance (`jittered`), or all that were refused together would come back together; that is added in one place only,
where an error becomes a status (`api/status.py`). Knows neither errors nor who is refused.
"""

import random

# Sooner than a round trip nothing has changed; for longer than half a minute nothing here can be foreseen.
MIN_S, MAX_S = 0.1, 30.0
# Who has been away, or a trouble that has lasted, may well go on for this share of that time: less is not worth a try.
_GOES_ON = 1 / 3
_JITTER = 0.2
# So that whom chance sends first comes when it was foreseen, and not a fifth before: a library tries few times.
_MARGIN = 1 / (1 - _JITTER)
# Of a trouble that has only just begun.
_FIRST_S = 1.0
# How far ahead room is promised at least, however soon the room that there is will be empty: simulated with far more
# callers than room, an answer takes 4 tries instead of 40. No further, because some of them never come back.
_PROMISED_S = 5.0


def within(seconds: float) -> float:
    """An estimate, brought within the bounds of what callers are told."""
    return min(max(seconds, MIN_S), MAX_S)


def jittered(seconds: float) -> float:
    """`seconds`, and up to a fifth more or less."""
    return seconds * random.uniform(1.0 - _JITTER, 1.0 + _JITTER)  # noqa: S311 - nothing is to be kept secret


def delayed(seconds: float) -> float:
    """`seconds`, and up to a fifth more: where it is known, and no estimate, that sooner is of no use."""
    return seconds * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - nothing is to be kept secret


def until_back(now: float, since: float, expected: float) -> float:
    """Seconds until somebody is back who has been away since `since`, and is expected at `expected`.

    The longer it has been away, the less its return can be foreseen to a second.
    """
    return within(max(_MARGIN * (expected - now), _GOES_ON * (now - since)))


def until_moving(now: float, since: float, expected: float) -> float:
    """Seconds until somebody moves again who has stood still since `since`, and is replaced at `expected` if not.

    What has stood still for so long may well do so for as long again; but not longer than until it is replaced.
    """
    return within(min(now - since, until_back(now, since, expected)))


class Lasting:
    """A trouble of the machine that ends nobody knows when: once it has lasted, it may well go on.

    One that nobody met for half a minute has ended. From any thread.
    """

    def __init__(self) -> None:
        self._first = self._last = float("-inf")

    def next(self, now: float) -> float:
        """Seconds until it is worth to see whether it has ended. Somebody has just met it."""
        if now - self._last > MAX_S:
            self._first = now
        self._last = now
        return within(max(_FIRST_S, _GOES_ON * (now - self._first)))


class RoomTurns:
    """The order in which those that found a room full are to come back, as it is emptied.

    Each gets the time at which as much will have been freed as it needs, behind those that were refused before it, so
    that they do not find it full again. Nobody is told to wait for longer than until everything that is in the room now
    will be gone, or some seconds: then all of it is free. What fills the room (tokens, bytes, calls) is not known here.
    """

    def __init__(self) -> None:
        # Until then, what is freed has been promised.
        self._promised = float("-inf")

    def next(self, now: float, size: float, *, own: float, queued: float, per_s: float, batch: float = 0.0) -> float:
        """Seconds until `size` will find room.

        Args:
            own: is in the room from here. What is freed of it is freed here.
            queued: is in the room from everybody; `own` may be a newer count.
            per_s: leaves the room in a second.
            batch: leaves it together.
        """
        if per_s <= 0:
            return _FIRST_S  # nothing is known of the room: it has never been measured
        all_s = max(own, queued, 1.0) / per_s
        own_s = all_s * size / max(own, 1.0)
        self._promised = min(max(self._promised, now) + own_s, now + max(all_s, _PROMISED_S))
        return within(self._promised - now + batch / per_s)
