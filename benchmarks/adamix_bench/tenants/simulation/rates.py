"""A rate lent out to several front ends on a made-up clock: the server's lender and borrowers, and unevenly many calls.

A frame between a front end and the supervisor takes some milliseconds. Each call takes its tokens, or is refused.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adamix_bench.serving.workload import draw_arrivals
from adamix_bench.tenants.simulation.clock import Clock
from adamix_server.access.borrowing import Borrower, Refusal, Waiting
from adamix_server.access.leases import Ask, Flow, Lender, Letter
from adamix_server.limits.quotas import LEASE_S

# Of the calls, by front end.
SKEW = (0.80, 0.15, 0.05)
_LINK_S = 0.002
_TIDY_S = 0.05
_KEY = ("tenant", "input_tokens_per_s")


@dataclass(frozen=True)
class Admitted:
    """What came of a demand.

    Attributes:
        tokens: admitted, and `wanted`.
        ceiling: of what may be admitted: the rate, the burst, a lease a front end, and one call.
    """

    tokens: int
    wanted: int
    entitled: float
    ceiling: float


class _Asker(Waiting):
    """A call that waits for the lender."""

    def __init__(self, on_settled: Callable[[Refusal | None], None]) -> None:
        super().__init__()
        self._on_settled = on_settled

    def settle(self, refusal: Refusal | None) -> None:
        self._on_settled(refusal)


class _Rates:
    """One tenant's rate over front ends."""

    def __init__(self, rate: float, front_ends: int) -> None:
        self.clock = Clock()
        self.limit = Flow(rate, rate)
        self.admitted = 0
        self._lender = Lender()
        self._borrowers = {str(number): Borrower(number, front_ends) for number in range(front_ends)}

    def tidy(self, name: str, until_s: float) -> None:
        """Now, and every while."""
        self._borrowers[name].tidy(self.clock.now)
        self._say(name)
        if self.clock.now < until_s:
            self.clock.after(_TIDY_S, lambda: self.tidy(name, until_s))

    def call(self, name: str, tokens: int) -> None:
        def settle(refusal: Refusal | None) -> None:
            self.admitted += 0 if refusal else tokens

        asker = _Asker(settle)
        outcome = self._borrowers[name].take(_KEY, self.limit, tokens, self.clock.now, asker)
        if outcome is None:
            settle(None)
        self._say(name)

    def _say(self, name: str) -> None:
        if asks := self._borrowers[name].said():
            self.clock.after(_LINK_S, lambda: self._heard(name, asks))

    def _heard(self, name: str, asks: list[Ask]) -> None:
        for letter in self._lender.ask(name, asks, self.clock.now):
            self._deliver(letter)

    def _deliver(self, letter: Letter) -> None:
        name, loan = letter

        def arrive() -> None:
            self._borrowers[name].lent([loan], self.clock.now)
            self._say(name)

        self.clock.after(_LINK_S, arrive)


def admit(rate: float, demand: float, seconds: float, seed: int, tokens_per_call: int = 200) -> Admitted:
    """Demand a rate so many times over, unevenly by front end, for some seconds."""
    rates = _Rates(rate, len(SKEW))
    chance = random.Random(seed)  # noqa: S311 - nothing is to be kept secret
    calls_per_s = demand * rate / tokens_per_call
    due = draw_arrivals(calls_per_s, 1.0, round(2 * calls_per_s * seconds) + 100, np.random.default_rng(seed)).tolist()
    names = [str(number) for number in range(len(SKEW))]
    wanted = most = 0
    for time in due:
        if time >= seconds:
            break
        name, tokens = chance.choices(names, SKEW)[0], chance.randint(tokens_per_call // 2, 3 * tokens_per_call // 2)
        wanted, most = wanted + tokens, max(most, tokens)
        rates.clock.at(time, lambda name=name, tokens=tokens: rates.call(name, tokens))  # type: ignore[misc]
    for name in names:
        rates.tidy(name, seconds)
    rates.clock.run()
    ceiling = rate * seconds + rates.limit.burst + len(SKEW) * rate * LEASE_S + most
    return Admitted(rates.admitted, wanted, rate * seconds, ceiling)
