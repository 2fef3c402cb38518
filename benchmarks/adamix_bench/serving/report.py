"""The outcome of a run: one JSON document that is saved after every part, tables for people, one plot."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from adamix.errors import AdamixError
from adamix_bench import reports
from adamix_bench.measure import Goal, Spread, rates
from adamix_bench.serving.load import Outcome
from adamix_bench.serving.workload import Requests

FORMAT = "adamix-bench-serving/1"
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Way:
    """What one way of answering did over the turns.

    Attributes:
        inputs_per_s: answered without an error.
        tokens_per_input: mean over its requests.
        goodput: answers a second that came within the limit of latency; None in process, where nobody waits.
        latencies_s: of the calls of all turns that were answered: a quick refusal would flatter.
        errors: inputs by status code.
        client_cpu: share of a core that the load generator used.
    """

    inputs_per_s: Spread
    tokens_per_input: float
    goodput: Spread | None = None
    latencies_s: Sequence[float] = ()
    errors: dict[str, int] = field(default_factory=dict)
    client_cpu: float | None = None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], tokens_per_input: float, slo_s: float) -> "Way":
        """Of the outcomes of the load generator, one per turn. Raises AdamixError when a turn had no answer at all."""
        errors: Counter[str] = Counter()
        for outcome in outcomes:
            errors.update(outcome.errors)
            if not any(outcome.answered):
                raise AdamixError(f"the server answered nothing: {', '.join(outcome.errors) or 'no calls'}")
        good = [sum(n for n, s in zip(o.answered, o.latency_s, strict=True) if s <= slo_s) / o.wall_s for o in outcomes]
        return cls(
            inputs_per_s=Spread(tuple(sum(o.answered) / o.wall_s for o in outcomes)),
            tokens_per_input=tokens_per_input,
            goodput=Spread(tuple(good)),
            latencies_s=[s for o in outcomes for n, s in zip(o.answered, o.latency_s, strict=True) if n],
            errors=dict(errors),
            client_cpu=sum(o.cpu_s for o in outcomes) / sum(o.wall_s for o in outcomes),
        )

    @classmethod
    def of_any(cls, results: Sequence[float | Outcome], requests: Requests, slo_s: float) -> "Way":
        """Of one result per turn: outcomes of the load generator, or the seconds that all requests took in process."""
        tokens_per_input = requests.num_tokens / len(requests)
        outcomes = [result for result in results if isinstance(result, Outcome)]
        if outcomes:
            return cls.of(outcomes, tokens_per_input, slo_s)
        return cls(rates(len(requests), [result for result in results if isinstance(result, float)]), tokens_per_input)

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent)) * 1e3

    def to_json(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "inputs_per_s": self.inputs_per_s.to_json(),
            "tokens_per_s": self.inputs_per_s.median * self.tokens_per_input,
        }
        if self.goodput is not None:
            result["goodput_inputs_per_s"] = self.goodput.to_json()
            result["latency_ms"] = {f"p{p}": self.percentile_ms(p) for p in _PERCENTILES}
            result["calls"] = len(self.latencies_s)
            result["errors"] = self.errors
            result["client_cpu_share"] = self.client_cpu
        return result


@dataclass
class Report:
    """Everything known so far.

    Attributes:
        equal: largest difference of logits, or of hidden states, by pair of ways.
        cpu_ms: milliseconds of processor time by way: what each kind of process spent on an input, and on a call.
        facts: what else a reader of the numbers needs.
        failures: parts that could not be measured, with the reason.
    """

    out: Path
    settings: dict[str, Any]
    machine: dict[str, Any]
    command: Sequence[str]
    ways: dict[str, Way] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    equal: dict[str, float] = field(default_factory=dict)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    cpu_ms: dict[str, dict[str, Spread]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "complete": self.complete,
            "command": ["adamix", *self.command],
            "settings": self.settings,
            "machine": {**self.machine, "load_average_at_the_end": os.getloadavg()[0]},
            "ways": {name: way.to_json() for name, way in self.ways.items()},
            "goals": [goal.to_json() for goal in self.goals],
            "equal": {"max_abs_diff": self.equal},
            "shares_of_time": self.shares,
            "cpu_ms": {way: {what: s.to_json() for what, s in costs.items()} for way, costs in self.cpu_ms.items()},
            "facts": self.facts,
            "failures": self.failures,
        }

    def save(self) -> None:
        """Write what there is; a run that is cut short later leaves this behind."""
        reports.save(self.to_json(), self.out / "serving.json")

    def tables(self) -> Group:
        parts = [_ways_table(self.ways)] if self.ways else []
        if self.goals:
            parts.append(reports.goals_table(self.goals))
        if self.shares:
            parts.append(_shares_table(self.shares))
        if self.cpu_ms:
            parts.append(_cpu_table(self.cpu_ms))
        return Group(*parts)


def plot(report: Report) -> Path | None:
    """Throughput of every way, and how long calls took; None if nothing was measured."""
    if not report.ways:
        return None
    figure, (speed, wait) = reports.pyplot().subplots(
        1, 2, figsize=(11, 1.6 + 0.32 * len(report.ways)), layout="constrained"
    )
    speeds = {name: way.inputs_per_s for name, way in report.ways.items()}
    speed.bar_label(reports.bars(speed, speeds), [f" {rate.median:,.0f}" for rate in speeds.values()], fontsize=7)
    speed.margins(x=0.15)
    speed.set(title="Inputs a second (median, lowest, highest)")
    for name, way in report.ways.items():
        if way.latencies_s:
            ordered = np.sort(way.latencies_s) * 1e3
            wait.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), label=name)
    wait.set(title="Calls answered within", xlabel="ms", xscale="log", ylim=(0, 1.02))
    if wait.lines:
        wait.legend(fontsize=6, frameon=False)
    return reports.save_figure(figure, report.out / "serving.png")


def _ways_table(ways: dict[str, Way]) -> Table:
    table = Table("way", "inputs/s", "min..max", "tokens/s", "p50 ms", "p90 ms", "p99 ms", "goodput", "errors")
    for name, way in ways.items():
        rate = way.inputs_per_s
        cells = [name, f"{rate.median:,.0f}", f"{rate.lowest:,.0f}..{rate.highest:,.0f}"]
        cells.append(f"{rate.median * way.tokens_per_input:,.0f}")
        if way.goodput is None:
            cells += [""] * 5
        else:
            cells += [f"{way.percentile_ms(p):,.1f}" for p in _PERCENTILES]
            cells += [
                f"{way.goodput.median:,.0f}",
                ", ".join(f"{count} {code}" for code, count in way.errors.items()) or "0",
            ]
        table.add_row(*cells)
    return table


def _shares_table(shares: dict[str, dict[str, float]]) -> Table:
    table = Table("where the time goes", *shares)
    for kind in dict.fromkeys(kind for way in shares.values() for kind in way):
        table.add_row(kind, *(f"{way.get(kind, 0.0):.1%}" for way in shares.values()))
    return table


def _cpu_table(cpu_ms: dict[str, dict[str, Spread]]) -> Table:
    table = Table("ms of processor time", *cpu_ms)
    for what in dict.fromkeys(what for costs in cpu_ms.values() for what in costs):
        table.add_row(what, *(f"{costs[what].median:.3f}" for costs in cpu_ms.values()))
    return table
