"""What identity, rights, quotas and fairness cost: two servers, one of which asks nobody anything, in turns.

What is compared is processor time from /proc of the same calls, single inputs. They are made one after another, as
fast as they are answered, which is how other costs of a call are measured here, too; and beside that at a steady rate,
with pauses in which the processor forgets what a call needs: then everything a call does takes several times as long.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

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
_LONGEST_TURN_S = 60.0


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
    callers = {
        "quotas": (with_keys, caller),
        "keys": (with_keys, replace(caller, tenant="victim")),
        "none": (without, replace(caller, tenant=DEFAULT_TENANT)),
    }

    def ways(*, paced: bool) -> dict[str, Callable[[], Turn]]:
        return {
            name: partial(_turn, stage, who, load, sizes.cost_calls, paced=paced)
            for name, (stage, who) in callers.items()
        }

    def tell(turn: int, _: Mapping[str, Sequence[Turn]]) -> None:
        say(f"cost: turn {turn} of {sizes.cost_turns}")

    found = in_turns(ways(paced=False), sizes.cost_turns, tell, there_and_back=True)
    paced = in_turns(ways(paced=True), sizes.cost_turns, tell, there_and_back=True)
    own, some, own_paced = _beyond(found, "quotas"), _beyond(found, "keys"), _beyond(paced, "quotas")
    engine = Spread(tuple(b.engine_us / a.engine_us for a, b in zip(found["quotas"], found["none"], strict=True)))
    what = "identity, right, quota and fairness: processor time of a call, us"
    note = f"of {_median_us(found['quotas']):.0f} us a call"
    report.add("cost.front-end", what, own, _TARGET_US, at_least=False, note=note)
    report.add("cost.no-quotas", "the same of a tenant that has no quotas", some)
    note = f"of {_median_us(paced['quotas']):.0f} us a call"
    report.add("cost.paced", f"the same at {_CALLS_PER_S:.0f} calls a second, us", own_paced, note=note)
    report.add("cost.engine", "retention of the engine: its time for a call without tenants, over that with", engine)
    report.parts["cost_us"] = own.median
    report.parts["cost"] = {
        "front_end_us": own.to_json(),
        "without_quotas_us": some.to_json(),
        "paced_us": own_paced.to_json(),
        "engine_retention": engine.to_json(),
        "call_us": {name: [turn.front_end_us for turn in turns] for name, turns in found.items()},
    }


def _beyond(found: Mapping[str, Sequence[Turn]], way: str) -> Spread:
    """What calls of one way take longer than those that nobody asks for anything."""
    pairs = zip(found[way], found["none"], strict=True)
    return Spread(tuple(turn.front_end_us - none.front_end_us for turn, none in pairs))


def _median_us(turns: Sequence[Turn]) -> float:
    return Spread(tuple(turn.front_end_us for turn in turns)).median


def _turn(stage: ServerStage, caller: Caller, load: LoadProcess, count: int, *, paced: bool) -> Turn:
    plan = stage.plan([caller], count / _CALLS_PER_S)
    if not paced:
        plan = msgspec.structs.replace(plan, in_turn=True, seconds=_LONGEST_TURN_S)
    before = stage.server.processes.cpu_s()
    outcome = load.run(plan)
    after = stage.server.processes.cpu_s()
    failed = [call for call in outcome.calls if call.outcome != "ok"]
    if failed:
        raise Unavailable(f"{len(failed)} of {len(outcome.calls)} calls were not answered: {failed[0].reason}")
    spent = {role: 1e6 * (after[role] - before[role]) / len(outcome.calls) for role in before}
    return Turn(spent["front ends"], spent["engine"])
