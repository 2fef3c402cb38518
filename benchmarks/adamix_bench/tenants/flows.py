"""A rate of tokens over several front ends: is all of it admitted, and never more? Measured, or simulated."""

from collections.abc import Callable
from dataclasses import replace

from adamix_bench.serving.workload import Lengths
from adamix_bench.tenants.report import Report
from adamix_bench.tenants.scenarios import Scenario
from adamix_bench.tenants.simulation import rates
from adamix_bench.tenants.stage import ServerStage
from adamix_bench.tenants.traffic import Caller, draw_templates, tokens_of
from adamix_server.limits.quotas import LEASE_S

RATE = 2000
LIMITED = "limited"
_TIMES = (2.0, 0.9)
# Calls that are small beside the burst: else demand below the rate is refused as chance has it.
_CALLER = Caller(
    tenant=LIMITED,
    knees=1.0,
    inputs_per_call=4,
    lengths=Lengths(median=14, sigma=0.2, shortest=8, longest=24),
    tasks=1,
)


def simulate(seconds: float, report: Report, seed: int) -> None:
    """Three front ends with 80, 15 and 5 of 100 calls."""
    found = {times: rates.admit(RATE, times, seconds, seed, tokens_per_call=60) for times in _TIMES}
    for times, admitted in found.items():
        _enter(report, times, admitted)
    report.parts["rates"] = _document(found)


def measure(stage: ServerStage, seconds: float, report: Report, say: Callable[[str], None]) -> None:
    """As many front ends as the server has. Raises AdamixError when it does not answer."""
    found: dict[float, rates.Admitted] = {}
    most = max(tokens_of(template) for template in draw_templates(_CALLER, 0))
    for times in _TIMES:
        say(f"rates: {times:g} times {RATE} tokens a second, {seconds:g} s")
        caller = replace(_CALLER, knees=times * RATE / stage.knee)
        scenario = Scenario(name=f"{times:g}x a rate of {RATE}", callers=[caller], seconds=seconds)
        trace = report.traces[scenario.name] = stage.run(scenario)
        admitted = sum(call.answered for call in trace.calls if call.outcome == "ok")
        wanted = sum(call.tokens for call in trace.calls)
        ceiling = RATE * seconds + RATE + stage.server.front_ends * RATE * LEASE_S + most
        found[times] = rates.Admitted(admitted, wanted, RATE * seconds, ceiling)
        _enter(report, times, found[times])
    report.parts["rates"] = _document(found)


def _enter(report: Report, times: float, admitted: rates.Admitted) -> None:
    if times > 1:
        what = "admitted of a rate at 2x, over rate, burst, leases and one call"
        report.add("rates.ceiling", what, admitted.tokens / admitted.ceiling, 1.0, at_least=False)
        report.add("rates.2x", "admitted of a rate at 2x, over the rate", admitted.tokens / admitted.entitled, 0.99)
    else:
        report.add("rates.0.9x", "admitted at 0.9x of a rate, over the demand", admitted.tokens / admitted.wanted, 0.99)


def _document(found: dict[float, rates.Admitted]) -> dict[str, object]:
    over = found[_TIMES[0]]
    return {
        "admitted_ratio": over.tokens / over.entitled,
        "cases": [
            {
                "times": times,
                "admitted_tokens": each.tokens,
                "wanted_tokens": each.wanted,
                "entitled_tokens": each.entitled,
                "ceiling_tokens": each.ceiling,
            }
            for times, each in found.items()
        ],
    }
