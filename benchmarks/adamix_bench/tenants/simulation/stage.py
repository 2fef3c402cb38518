"""A simulated server that scenarios are carried out on. The same seed gives the same trace, to the digit."""

import random

from adamix_bench.tenants.scenarios import Scenario, shares_of
from adamix_bench.tenants.simulation.clock import Clock
from adamix_bench.tenants.simulation.engine import Engine
from adamix_bench.tenants.simulation.front_end import Asked, FrontEnd
from adamix_bench.tenants.simulation.hardware import Hardware
from adamix_bench.tenants.trace import Ended, Outcome, Served, Trace
from adamix_bench.tenants.traffic import Call, Template, draw_calls, draw_templates, tokens_of
from adamix_server.access.quotas import DEFAULT_SHARES, Shares

# Who is refused so often gives up.
_MOST_TRIES = 8
_JITTER = 0.2


class SimulatedStage:
    """Args:
    front_ends: that share the engine; calls go to each in turn.
    """

    is_simulated = True

    def __init__(self, hardware: Hardware, seed: int, front_ends: int = 1) -> None:
        self.hardware = hardware
        self.knee = hardware.knee
        self.seed = seed
        self._front_ends = front_ends

    def run(self, scenario: Scenario) -> Trace:
        return _Run(self.hardware, scenario, self.seed, self._front_ends).trace()


class _Run:
    """One scenario being carried out."""

    def __init__(self, hardware: Hardware, scenario: Scenario, seed: int, front_ends: int) -> None:
        self._scenario = scenario
        self._random = random.Random(seed)  # noqa: S311 - nothing is to be kept secret
        self._clock = Clock()
        self._ended: list[Ended] = []
        self._served: list[Served] = []
        self._shares: dict[str, Shares] = {tenant: shares_of(tenant) for tenant in scenario.tenants}
        names = [str(number).encode() for number in range(front_ends)]
        peers: dict[bytes, FrontEnd] = {}
        self._engine = Engine(self._clock, hardware, peers, self._load_s, self._done, front_ends)
        for name in names:
            peers[name] = FrontEnd(name, self._clock, hardware, self._engine, self._share)
            peers[name].take(self._engine.first_credit(name))
        self._front_ends = list(peers.values())
        self._tell_shares()
        for at, tenant, shares in scenario.changes:
            self._clock.at(at, lambda tenant=tenant, shares=shares: self._change(tenant, shares))  # type: ignore[misc]
        templates = [draw_templates(caller, seed) for caller in scenario.callers]
        for number, call in enumerate(draw_calls(scenario.callers, scenario.seconds, hardware.knee, seed)):
            template = templates[call.caller][call.template]
            self._clock.at(call.due_s, lambda c=call, t=template, n=number: self._ask(c, t, n))  # type: ignore[misc]

    def trace(self) -> Trace:
        self._clock.run()
        return Trace(self._scenario.seconds, self._ended, self._served)

    def _ask(self, call: Call, template: Template, number: int, tries: int = 1) -> None:
        began, caller = self._clock.now, self._scenario.callers[call.caller]
        tokens = tokens_of(template)

        def end(outcome: Outcome, reason: str, after_s: float, answered: int) -> None:
            now = self._clock.now
            self._ended.append(Ended(caller.tenant, began, now, tokens, answered, outcome, reason))
            again_s = now + after_s * self._random.uniform(1 - _JITTER, 1 + _JITTER)
            if outcome == "refused" and call.retries and tries < _MOST_TRIES and again_s < self._scenario.seconds:
                self._clock.at(again_s, lambda: self._ask(call, template, number, tries + 1))

        inputs = [(f"{caller.owner}/{task}", length) for task, length in template]
        asked = Asked(caller.tenant, inputs, began + call.deadline_s, end, set())
        self._front_ends[number % len(self._front_ends)].ask(asked)

    def _share(self, tenant: str) -> Shares:
        return self._shares.get(tenant, DEFAULT_SHARES)

    def _change(self, tenant: str, shares: Shares) -> None:
        self._shares[tenant] = shares
        self._tell_shares()

    def _tell_shares(self) -> None:
        self._engine.set_shares({name: each for name, each in self._shares.items() if each != DEFAULT_SHARES})

    def _load_s(self, digest: str) -> float:
        return self._scenario.loads_s.get(digest.partition("/")[0], 0.0)

    def _done(self, tenant: str, tokens: int) -> None:
        self._served.append((self._clock.now, tenant, tokens))
