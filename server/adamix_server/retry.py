"""When it is worth to try again: estimates from what was measured, for callers that are refused.

Pure: numbers in, seconds out; times are seconds on CLOCK_MONOTONIC. What callers are told differs from the estimate by
some chance (`jittered`), or all that were refused together would come back together; that is added in one place only,
where an error becomes a status (`api/status.py`). Knows neither errors nor who is refused.
"""

import random

# Sooner than a round trip nothing has changed; for longer than half a minute nothing here can be foreseen.
MIN_S, MAX_S = 0.1, 30.0
# What an estimate that was short is taken to be short by: a share of all the time that has passed, again and again.
_SHORT_BY = 0.5
_JITTER = 0.2


def within(seconds: float) -> float:
    """An estimate, brought within the bounds of what callers are told."""
    return min(max(seconds, MIN_S), MAX_S)


def jittered(seconds: float) -> float:
    """`seconds`, and up to a fifth more or less."""
    return seconds * random.uniform(1.0 - _JITTER, 1.0 + _JITTER)  # noqa: S311 - nothing is to be kept secret


def until_back(now: float, since: float, expected: float) -> float:
    """Seconds until somebody is back who has been away since `since`, and is expected at `expected`.

    Once that has passed, nobody knows: half as long again as it has been away.
    """
    return within(expected - now if expected > now else _SHORT_BY * (now - since))


def until_moving(now: float, since: float, expected: float) -> float:
    """Seconds until somebody moves again who has stood still since `since`, and is replaced at `expected` if not.

    What has stood still for so long may well do so for as long again; but not longer than until it is replaced.
    """
    return within(min(now - since, until_back(now, since, expected)))


class RoomTurns:
    """The order in which those that found a queue full are to come back, as its room is freed.

    Each gets the time at which as much will have been freed as it needs, behind those that were refused before it, so
    that they do not find it full again. Nobody is told to wait for longer than until everything that is in the queue
    now will have been computed: then all of the room is free.
    """

    def __init__(self) -> None:
        # Until then, what is freed has been promised.
        self._promised = float("-inf")

    def next(
        self,
        now: float,
        num_tokens: int,
        *,
        own_tokens: int,
        queued_tokens: int,
        tokens_per_s: float,
        batch_tokens: int,
    ) -> float:
        """Seconds until `num_tokens` will find room.

        Args:
            own_tokens: in the queue from here. What is freed of them is freed here.
            queued_tokens: in the queue from everybody, of which `own_tokens` may be a newer count.
            tokens_per_s: that the queue's owner computes.
            batch_tokens: that are freed together.
        """
        if tokens_per_s <= 0:
            return 1.0  # nothing is known of the queue: it has never been measured
        all_s = max(own_tokens, queued_tokens, 1) / tokens_per_s
        own_s = all_s * num_tokens / max(own_tokens, 1)
        self._promised = min(max(self._promised, now) + own_s, now + all_s)
        return within(self._promised - now + batch_tokens / tokens_per_s)
