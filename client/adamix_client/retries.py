"""When a call that failed may be sent again, and after how long. Pure: knows errors and a clock, and no connection.

A server that says when to come back is not asked before that. Without a word of it pauses grow, and no two clients make
the same ones. A budget keeps many calls that fail from becoming many more: in the long run a fifth of all calls.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from adamix_client.errors import AdamixError, Code, InvalidConfig, Unavailable


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How a client asks again. Raises InvalidConfig on values outside their ranges.

    Attributes:
        max_attempts: of one call, the first one included: 1 to 100; 1 is never again.
        first_pause_s: before the second attempt, in seconds; each is twice as long as the one before.
        longest_pause_s: which none exceeds but where the server asks for more.
        budget_ratio: retries in the long run, as a share of the calls.
        budget_reserve: retries that may be made beyond that, at once.
    """

    max_attempts: int = 5
    first_pause_s: float = 0.05
    longest_pause_s: float = 5.0
    budget_ratio: float = 0.2
    budget_reserve: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 100:
            raise InvalidConfig("max_attempts must be 1 to 100", field="max_attempts")
        if not 0 < self.first_pause_s <= self.longest_pause_s:
            raise InvalidConfig("the first pause must be over 0 and not over the longest", field="first_pause_s")
        if not 0 <= self.budget_ratio <= 1:
            raise InvalidConfig("budget_ratio must be 0 to 1", field="budget_ratio")
        if not self.budget_reserve >= 0:
            raise InvalidConfig("budget_reserve must not be negative", field="budget_reserve")


DEFAULT_RETRIES = RetryPolicy()
NEVER_AGAIN = RetryPolicy(max_attempts=1)


class RetryBudget:
    """What one client may ask again. For all its threads."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._left = policy.budget_reserve
        # What calls have earned is kept up to one retry, or there would never be one without a reserve.
        self._most = max(policy.budget_reserve, 1.0)
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A call begins."""
        with self._lock:
            self._left = min(self._most, self._left + self._policy.budget_ratio)

    def spend(self) -> bool:
        """Whether there is one more retry; takes it."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Attempts:
    """One call, from its first attempt to its last.

    Args:
        timeout_s: for all of it, in seconds, pauses included.
        is_safe: whether the call may be carried out twice.
        clock, draw: of seconds, and of numbers in 0..1.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        timeout_s: float,
        *,
        is_safe: bool = True,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._is_safe = is_safe
        self._clock = clock
        self._draw = draw
        self._ends_at = clock() + timeout_s
        self._failed = 0
        budget.earn()

    @property
    def left_s(self) -> float:
        return max(self._ends_at - self._clock(), 0.0)

    def lay(self, seconds: float) -> None:
        """An attempt was over for so long before anybody looked; that is no time of the call."""
        self._ends_at += seconds

    def pause_s(self, error: AdamixError) -> float | None:
        """Seconds to wait before the next attempt, after one that ended so; None where there is none."""
        self._failed += 1
        policy = self._policy
        if not self._is_safe or not may_pass(error) or self._failed >= policy.max_attempts:
            return None
        found_s = pause_s(
            self._failed - 1,
            error.retry_after_s,
            first_s=policy.first_pause_s,
            longest_s=policy.longest_pause_s,
            draw=self._draw,
        )
        if found_s >= self.left_s or not self._budget.spend():
            return None
        return found_s


def may_pass(error: AdamixError) -> bool:
    """Whether the same call may succeed later: nobody answered, or the server says when to come back."""
    if error.code is Code.UNAVAILABLE:
        return error.retry_after_s is not None or error.reason == Unavailable.default_reason
    return error.code is Code.RESOURCE_EXHAUSTED and error.retry_after_s is not None


def pause_s(
    number: int,
    advised_s: float | None,
    *,
    first_s: float,
    longest_s: float,
    draw: Callable[[], float] = random.random,
) -> float:
    """The pause of this number, from 0: of growing length, never the same for two clients, nor less than advised."""
    ceiling_s = min(longest_s, first_s * 2.0 ** min(number, 30))
    return max(ceiling_s * (0.5 + 0.5 * draw()), advised_s or 0.0)
