"""What became of the calls of a scenario, and what is read from that. Knows neither server nor simulator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

# `refused`: told at once; `expired`: let in, and not answered within its deadline; `failed`: anything else.
Outcome = Literal["ok", "refused", "expired", "failed"]

WINDOW_S = 5.0
# Until queues have filled.
SETTLED_S = 1.0


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """One call. Times are seconds from the start of the scenario.

    Attributes:
        due_s: when it should be sent; of one that is made again, when it was made.
        answered: tokens of its inputs that were answered, and `tokens` of all.
        reason: why it was refused or failed.
    """

    tenant: str
    due_s: float
    ended_s: float
    tokens: int
    answered: int
    outcome: Outcome
    reason: str = ""

    @property
    def latency_s(self) -> float:
        return max(0.0, self.ended_s - self.due_s)


# When, whose, and how many tokens were answered.
Served = tuple[float, str, int]


@dataclass(frozen=True)
class Trace:
    """One scenario carried out.

    Attributes:
        seconds: that calls were made for.
        calls: in order of their ends.
        served: answered tokens, in order; finer than calls where that is known.
        late_s: 99th percentile of how much later than due the generator sent.
        batches: tokens of batches, and the seconds that each took.
        computed_per_s: tokens a second by the engine's own count, once things have settled; None if it was not asked.
    """

    seconds: float
    calls: Sequence[Ended]
    served: Sequence[Served]
    late_s: float = 0.0
    batches: Sequence[tuple[int, float]] = ()
    computed_per_s: float | None = None

    def of(self, tenant: str, begin_s: float = 0.0, end_s: float = float("inf")) -> Iterator[Ended]:
        """The calls of a tenant that were due in between."""
        return (call for call in self.calls if call.tenant == tenant and begin_s <= call.due_s < end_s)

    def p99_s(self, tenant: str, outcome: Outcome = "ok") -> float | None:
        """Of the calls of a tenant that ended so, once things have settled; None if there are none."""
        return _p99([c.latency_s for c in self.of(tenant, SETTLED_S) if c.outcome == outcome])

    def refusal_p99_s(self) -> float | None:
        """Of all calls that were refused; None if none was."""
        return _p99([c.latency_s for c in self.calls if c.outcome == "refused" and c.due_s >= SETTLED_S])

    def longest_s(self, tenant: str, begin_s: float = SETTLED_S) -> float:
        """The longest that a call of a tenant took, however it ended."""
        return max((call.latency_s for call in self.of(tenant, begin_s)), default=0.0)

    def unanswered(self, tenant: str) -> int:
        """Calls of a tenant that were not answered whole."""
        return sum(call.outcome != "ok" for call in self.of(tenant))

    def tokens(self, tenant: str | None = None, begin_s: float = 0.0, end_s: float | None = None) -> int:
        """Answered in between; of everybody if no tenant is given."""
        until_s = self.seconds if end_s is None else end_s
        return sum(n for at, name, n in self.served if begin_s <= at < until_s and tenant in (None, name))

    def tokens_per_s(self) -> float:
        """Of everybody, once things have settled: as the engine counts, or else by the calls that were answered."""
        if self.computed_per_s is not None:
            return self.computed_per_s
        return self.tokens(None, SETTLED_S) / (self.seconds - SETTLED_S)

    def goodput(self) -> float:
        """Tokens a second of calls that were answered whole and in time, once things have settled."""
        good = sum(c.answered for c in self.calls if c.outcome == "ok" and SETTLED_S <= c.ended_s < self.seconds)
        return good / (self.seconds - SETTLED_S)

    def expired_share(self) -> float:
        """Of the calls that were let in, those that were not answered within their deadlines."""
        settled = [call for call in self.calls if call.due_s >= SETTLED_S]
        expired = sum(call.outcome == "expired" for call in settled)
        return expired / max(1, expired + sum(call.outcome == "ok" for call in settled))

    def windows(self) -> list[tuple[float, float]]:
        """Every five seconds once things have settled, one beginning each second."""
        count = int(self.seconds - SETTLED_S - WINDOW_S) + 1
        return [(SETTLED_S + second, SETTLED_S + second + WINDOW_S) for second in range(max(0, count))]

    def share(self, tenant: str, window: tuple[float, float]) -> float:
        """Of the tokens answered in a window, a tenant's; 0 if there are none."""
        return self.tokens(tenant, *window) / max(1, self.tokens(None, *window))

    def over_time(self, step_s: float = 0.5) -> tuple[list[float], dict[str, list[float]]]:
        """Tokens a second of each tenant in steps: the middle of each, and the rates."""
        steps = max(1, int(self.seconds / step_s))
        rates: dict[str, list[float]] = {}
        for at, tenant, tokens in self.served:
            if (step := int(at / step_s)) < steps:
                rates.setdefault(tenant, [0.0] * steps)[step] += tokens / step_s
        return [(step + 0.5) * step_s for step in range(steps)], dict(sorted(rates.items()))


def fit(batches: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Seconds of a batch, and of each of its tokens, as a line through what was measured; None without a slope."""
    if len({tokens for tokens, _ in batches}) < 2:
        return None
    tokens, seconds = np.array(batches, dtype=np.float64).T
    token_s, batch_s = np.polyfit(tokens, seconds, 1)
    return (max(0.0, float(batch_s)), float(token_s)) if token_s > 0 else None


def _p99(values: Sequence[float]) -> float | None:
    return float(np.percentile(values, 99)) if values else None
