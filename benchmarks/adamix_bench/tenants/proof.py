"""The rows of the proof that scenarios can show, read from their traces; the same on a server and on a made-up clock.

A scenario whose generator sent late is not judged: then the server was not asked what the row is about.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from adamix.errors import AdamixError
from adamix_bench.tenants import scenarios
from adamix_bench.tenants.report import Report
from adamix_bench.tenants.scenarios import BURSTS, NIGHTLY, OTHERS, POISSON, SEVERAL, VICTIM, Scenario, shares_of
from adamix_bench.tenants.settings import Sizes
from adamix_bench.tenants.trace import Trace

# Batches beside a hog are so long, and a light tenant waits for so many of them.
_SHORT_S, _SHORT_BATCHES = 0.04, 2.5
_BATCH_TOKENS = 256
# A generator that is later than this measures itself; where tenants always have more to ask, they do so all the same.
_MOST_LATE_S, _MOST_LATE_OF_MANY_S = 0.02, 0.5
_LONGER_S = 0.5
# The one that is short, and about a server.
QUICK_TRAP = "weight"

Say = Callable[[str], None]


class Stage(Protocol):
    """Where scenarios are carried out. `knee`: tokens a second that it answers at most."""

    knee: float

    def run(self, scenario: Scenario) -> Trace:
        """Raises AdamixError if it cannot."""


def attempt(report: Report, part: str, do: Callable[[], None], say: Say) -> None:
    """Do one part; one that fails leaves the others be."""
    try:
        do()
    except AdamixError as error:
        say(f"{part} failed: {error.message}")
        report.failures[part] = error.message
    report.save()


class Proof:
    """Carries out the scenarios of each part and enters its rows."""

    def __init__(self, stage: Stage, sizes: Sizes, report: Report, say: Say) -> None:
        self._stage, self._sizes, self._report, self._say = stage, sizes, report, say
        self._alone: Trace | None = None

    def parts(self) -> dict[str, Callable[[], None]]:
        """By their names on the command line. Each raises AdamixError when a scenario cannot be carried out."""
        return {
            "noisy-neighbour": self.noisy_neighbour,
            "fair-share": self.fair_share,
            "overload": self.overload,
            "batch-class": self.batch_class,
            "traps": self.traps,
        }

    def noisy_neighbour(self) -> None:
        sizes, report = self._sizes, self._report
        alone = self._run_alone()
        cases = []
        for scenario in _some(scenarios.floods(sizes.flood_s, sizes.many_tasks), sizes, 2):
            trace = self._run(scenario)
            kind, late = scenario.name.removeprefix("flood, "), _late(alone, trace)
            longer_ms = _longer_ms(trace, alone, VICTIM.tenant)
            failed = trace.unanswered(VICTIM.tenant)
            total = trace.tokens_per_s() / self._stage.knee
            what = f"victim's p99 beside a flood ({kind}), longer than alone, ms"
            target_ms = 1e3 * _SHORT_BATCHES * _SHORT_S
            report.add("noisy.p99", what, _unless(late, longer_ms), target_ms, at_least=False, note=late)
            what = f"victim's calls that failed ({kind})"
            report.add("noisy.failed", what, _unless(late, failed), 0, at_least=False, note=late)
            report.add("noisy.total", f"all tokens, over the knee ({kind})", _unless(late, total), 0.9, note=late)
            cases.append(
                {
                    "flood": kind,
                    "beside_p99_s": trace.p99_s(VICTIM.tenant),
                    "failed": failed,
                    "total_ratio": total,
                    "generator_late_s": trace.late_s,
                }
            )
        if (most := self._most_of_short_batches()) is not None:
            what = "the most that batches of 40 ms, one after another, give on this machine, over the knee"
            report.add("noisy.most", what, most)
        beside = [case["beside_p99_s"] for case in cases if isinstance(case["beside_p99_s"], float)]
        report.parts["noisy_neighbour"] = {
            "alone_p99_s": alone.p99_s(VICTIM.tenant),
            "beside_p99_s": max(beside, default=None),
            "failed": sum(int(case["failed"] or 0) for case in cases),
            "cases": cases,
        }

    def _most_of_short_batches(self) -> float | None:
        """Tokens over the knee; None where the machine's rates are not known."""
        if (rates := self._report.facts.get("rates_of_machine")) is None:
            return None
        tokens = max(0.0, _SHORT_S - rates["batch_s"]) / rates["token_s"]
        return float(tokens / _SHORT_S / self._stage.knee)

    def fair_share(self) -> None:
        seconds, found = self._sizes.share_s, []
        parts = [(scenarios.weights(seconds), 0.05), (scenarios.lengths(seconds), 0.10)]
        if self._sizes.all_rows:
            parts.append((scenarios.others_adapter(seconds), 0.10))
        for scenario, target in parts:
            trace = self._run(scenario)
            late, off = _late(trace, most_s=_MOST_LATE_OF_MANY_S), deviation(trace, scenario.tenants)
            what = f"tokens of a tenant in any 5 s, off its weight at most: {scenario.name}"
            self._report.add("fair.windows", what, _unless(late, off), target, at_least=False, note=late)
            tenants = [
                {"tenant": tenant, "weight": shares_of(tenant).weight, "tokens": trace.tokens(tenant, 1.0)}
                for tenant in scenario.tenants
            ]
            found.append({"scenario": scenario.name, "deviation": off, "tenants": tenants})
        self._report.parts["fair_share"] = {"tenants": found[0]["tenants"], "cases": found}

    def overload(self) -> None:
        seconds, rows = self._sizes.overload_s, []
        kinds = [(2.0, POISSON, 0.0, 1), (5.0, BURSTS, 0.5, 1)]
        if self._sizes.all_rows:
            kinds += [(5.0, POISSON, 0.0, 1), (2.0, BURSTS, 0.0, 1), (5.0, BURSTS, 0.0, 1), (2.0, POISSON, 0.5, 1)]
            kinds += [(times, cv, 0.0, SEVERAL) for times in (2.0, 5.0) for cv in (POISSON, BURSTS)]
        for times, cv, retries, tenants in kinds:
            scenario = scenarios.overload(seconds, times, cv, retries, tenants)
            trace = self._run(scenario)
            late, goodput = _late(trace), trace.goodput() / self._stage.knee
            refused_s, expired = trace.refusal_p99_s(), trace.expired_share()
            self._report.add(
                "overload.goodput", f"goodput over the knee, {scenario.name}", _unless(late, goodput), 0.9, note=late
            )
            refused_ms = None if refused_s is None else 1e3 * refused_s
            what = f"p99 of refusals, ms, {scenario.name}"
            self._report.add("overload.refusals", what, _unless(late, refused_ms), 20, at_least=False, note=late)
            target = 0.01 if cv == POISSON else 0.03
            what = f"of calls that were let in, expired, {scenario.name}"
            self._report.add("overload.expired", what, _unless(late, expired), target, at_least=False, note=late)
            if retries:
                what = f"the worst second's tokens over the mean, {scenario.name}"
                self._report.add("overload.steady", what, _unless(late, steadiness(trace)), note=late)
            rows.append(
                {
                    "times": times,
                    "cv": cv,
                    "tenants": tenants,
                    "retrying": retries,
                    "goodput_ratio": goodput,
                    "refusal_p99_s": refused_s,
                    "expired_share": expired,
                    "generator_late_s": trace.late_s,
                }
            )
        self._report.parts["overload"] = rows

    def batch_class(self) -> None:
        seconds = self._sizes.batch_s
        trace = self._run(scenarios.batch_class(seconds))
        least = min((trace.share(NIGHTLY, window) for window in trace.windows()), default=None)
        late = _late(trace, most_s=_MOST_LATE_OF_MANY_S)
        what = "tokens of the batch class in any 5 s, at 5x"
        self._report.add("batch.share", what, _unless(late, least), 0.045, note=late)
        alone, beside = self._run_alone(), self._run(scenarios.beside_batch_class(self._sizes.alone_s))
        late = _late(alone, beside)
        longer_ms = _longer_ms(beside, alone, VICTIM.tenant)
        what = "interactive p99 beside the batch class, longer than alone, ms"
        target_ms = 1e3 * self._batch_s()
        self._report.add("batch.p99", what, _unless(late, longer_ms), target_ms, at_least=False, note=late)
        self._report.parts["batch_class"] = {
            "least_share": least,
            "interactive_p99_s": beside.p99_s(VICTIM.tenant),
            "alone_p99_s": alone.p99_s(VICTIM.tenant),
        }

    def traps(self) -> None:
        rows = []
        traps = scenarios.traps(self._sizes.trap_s, self._sizes.idle_s)
        for kind, (usual, trap) in traps.items() if self._sizes.all_rows else [(QUICK_TRAP, traps[QUICK_TRAP])]:
            what = f"longest wait of others, longer than as usual, s: {trap.name}"
            try:
                # What cannot be carried out is found out first.
                after, before = self._run(trap), self._run(usual)
            except AdamixError as error:
                self._say(f"{trap.name}: {error.message}")
                self._report.add(f"traps.{kind}", what, None, _LONGER_S, at_least=False, note=error.message)
                continue
            late = _late(before, after)
            longer_s = max(after.longest_s(tenant) - before.longest_s(tenant) for tenant in OTHERS)
            self._report.add(f"traps.{kind}", what, _unless(late, longer_s), _LONGER_S, at_least=False, note=late)
            longest_s = max(after.longest_s(tenant) for tenant in OTHERS)
            rows.append({"name": trap.name, "longest_wait_s": longest_s, "longer_s": longer_s})
        self._report.parts["traps"] = rows

    def _run_alone(self) -> Trace:
        if self._alone is None:
            self._alone = self._run(scenarios.alone(self._sizes.alone_s))
        return self._alone

    def _batch_s(self) -> float:
        """Of 256 tokens: a quarter of a second's knee takes a quarter of a second, and each batch something beside."""
        found = self._report.facts.get("rates_of_machine")
        return found["batch_s"] + found["token_s"] * _BATCH_TOKENS if found else _BATCH_TOKENS / self._stage.knee

    def _run(self, scenario: Scenario) -> Trace:
        self._say(f"{scenario.name}, {scenario.seconds:g} s")
        trace = self._stage.run(scenario)
        self._report.traces[scenario.name] = trace
        return trace


def _some(found: list[Scenario], sizes: Sizes, count: int) -> list[Scenario]:
    return found if sizes.all_rows else found[:count]


def deviation(trace: Trace, tenants: Sequence[str]) -> float | None:
    """The most that any tenant's tokens were off its share by weight in any window, as a part of that share."""
    weights = {tenant: shares_of(tenant).weight for tenant in tenants}
    total = sum(weights.values())
    offs = [
        abs(trace.share(tenant, window) * total / weight - 1)
        for window in trace.windows()
        for tenant, weight in weights.items()
    ]
    return max(offs, default=None)


def steadiness(trace: Trace) -> float | None:
    """Tokens of the second with the fewest over those of the mean, once things have settled."""
    seconds = [trace.tokens(None, at, at + 1.0) for at in range(1, int(trace.seconds))]
    return min(seconds) / (sum(seconds) / len(seconds)) if any(seconds) else None


def _longer_ms(beside: Trace, alone: Trace, tenant: str) -> float | None:
    waits = beside.p99_s(tenant), alone.p99_s(tenant)
    return None if waits[0] is None or waits[1] is None else 1e3 * (waits[0] - waits[1])


def _late(*traces: Trace, most_s: float = _MOST_LATE_S) -> str:
    """What is said instead of a number, if the generator was late."""
    late_s = max(trace.late_s for trace in traces)
    return f"the generator was {1e3 * late_s:.0f} ms late" if late_s > most_s else ""


def _unless(late: str, value: float | None) -> float | None:
    return None if late else value
