"""A token bucket that goes into debt.

It is open while its level is above 0, whatever the next call takes: one larger than the burst would never fit
otherwise. What it takes too much is a debt, and the bucket stays closed until that is paid; so the average is exact.
Pure: the clock is the caller's, in seconds. One that jumps back costs nothing, one that jumps ahead fills the bucket at
most.
"""

# After its debt is paid to the last digit a bucket is empty; so much later something is in it.
_OPENS_S = 0.001


class Bucket:
    """What is left of a rate.

    Args:
        rate: units a second.
        burst: units that it holds at most; it begins with them.
        now: seconds on the caller's clock, as everywhere here.
        least: units that must be left for it to be open: of what always comes in whole ones, one.
    """

    __slots__ = ("_burst", "_least", "_level", "_rate", "_since")

    def __init__(self, rate: float, burst: float, now: float, least: float = 0.0) -> None:
        self._rate = rate
        self._burst = burst
        self._least = least
        self._level = burst
        self._since = now

    def level(self, now: float) -> float:
        """Units that are left; below 0, that are owed."""
        elapsed_s, self._since = now - self._since, now
        if elapsed_s > 0:
            self._level = min(self._burst, self._level + elapsed_s * self._rate)
        return self._level

    def lend(self, least: float, most: float, now: float) -> float:
        """Units that are given: 0 if it is closed, else as many of `most` as are left, but not less than `least`."""
        if not self._is_open(now):
            return 0.0
        level = self._level
        given = max(least, min(most, level))
        self._level -= given
        return given

    def take(self, units: float, now: float) -> bool:
        """Take so many, all or none; False if it is closed."""
        if not self._is_open(now):
            return False
        self._level -= units
        return True

    def give(self, units: float) -> None:
        """Put back what was taken and not used."""
        self._level = min(self._burst, self._level + units)

    def closed_s(self, now: float) -> float | None:
        """Seconds until it is open, 0 if it is; None for never."""
        if self._is_open(now):
            return 0.0
        can_open = self._rate > 0 and self._burst >= self._least and self._burst > 0
        return (self._least - self._level) / self._rate + _OPENS_S if can_open else None

    def used(self, now: float) -> float:
        """How much of its burst is taken, as a share of it: 1 when it is empty, more when it is in debt."""
        return 1.0 - self.level(now) / self._burst if self._burst > 0 else 0.0

    def is_full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        return self.level(now) >= self._burst

    def reshape(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate and burst from now on; what is left or owed stays."""
        if (rate, burst) != (self._rate, self._burst):
            self._level = min(self.level(now), burst)
            self._rate, self._burst = rate, burst

    def _is_open(self, now: float) -> bool:
        level = self.level(now)
        return level > 0 and level >= self._least
