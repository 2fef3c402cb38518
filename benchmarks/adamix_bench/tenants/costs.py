"""What identity, rights, quotas and fairness cost: two servers, one of which asks nobody anything, in turns.

What is compared is processor time from /proc of the same calls, single inputs at a steady rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from adamix.errors import Unavailable
from adamix_bench.measure import Spread, in_turns
from adamix_bench.tenants.load import LoadProcess
from adamix_bench.tenants.report import Report
from adamix_bench.tenants.settings import Sizes
from adamix_bench.tenants.stage import ServerStage
from adamix_bench.tenants.traffic import NUM_TEMPLATES, SHORT, Caller, draw_templates, tokens_of
from adamix_server.config import DEFAULT_TENANT

METERED = "metered"
# Far from what the machine can do, so that no call waits for another.
_CALLS_PER_S = 150.0
_TARGET_US = 60.0


@dataclass(frozen=True)
class Turn:
    """Microseconds of processor time of a call, in the front end and in the engine."""

    front_end_us: float
    engine_us: float


def measure(
    with_keys: ServerStage,
    without: ServerStage,
    load: LoadProcess,
    sizes: Sizes,
    report: Report,
    say: Callable[[str], None],
) -> None:
    """Raises AdamixError when a server does not answer all."""
    caller = Caller(tenant=METERED, adapters="victim", knees=1.0, tasks=4, cv=0.0, lengths=SHORT)
    tokens = sum(map(tokens_of, draw_templates(caller, 0))) / NUM_TEMPLATES
    caller = replace(caller, knees=_CALLS_PER_S * tokens / with_keys.knee)
    ways = {
        "quotas": lambda: _turn(with_keys, caller, load, sizes.cost_calls),
        "keys": lambda: _turn(with_keys, replace(caller, tenant="victim"), load, sizes.cost_calls),
        "none": lambda: _turn(without, replace(caller, tenant=DEFAULT_TENANT), load, sizes.cost_calls),
    }
    found = in_turns(
        ways, sizes.cost_turns, lambda turn, _: say(f"cost: turn {turn} of {sizes.cost_turns}"), there_and_back=True
    )
    quotas, keys, none = found["quotas"], found["keys"], found["none"]
    own, some = (
        Spread(tuple(a.front_end_us - b.front_end_us for a, b in zip(each, none, strict=True)))
        for each in (quotas, keys)
    )
    engine = Spread(tuple(b.engine_us / a.engine_us for a, b in zip(quotas, none, strict=True)))
    note = f"of {Spread(tuple(turn.front_end_us for turn in quotas)).median:.0f} us a call"
    what = "identity, right, quota and fairness: processor time of a call, us"
    report.add("cost.front-end", what, own, _TARGET_US, at_least=False, note=note)
    report.add("cost.no-quotas", "the same of a tenant that has no quotas", some)
    report.add("cost.engine", "retention of the engine: its time for a call without tenants, over that with", engine)
    report.parts["cost_us"] = own.median
    report.parts["cost"] = {
        "front_end_us": own.to_json(),
        "without_quotas_us": some.to_json(),
        "engine_retention": engine.to_json(),
        "call_us": {name: [turn.front_end_us for turn in turns] for name, turns in found.items()},
    }


def _turn(stage: ServerStage, caller: Caller, load: LoadProcess, count: int) -> Turn:
    plan = stage.plan([caller], count / _CALLS_PER_S)
    before = stage.server.processes.cpu_s()
    outcome = load.run(plan)
    after = stage.server.processes.cpu_s()
    failed = [call for call in outcome.calls if call.outcome != "ok"]
    if failed:
        raise Unavailable(f"{len(failed)} of {len(outcome.calls)} calls were not answered: {failed[0].reason}")
    spent = {role: 1e6 * (after[role] - before[role]) / len(outcome.calls) for role in before}
    return Turn(spent["front ends"], spent["engine"])
