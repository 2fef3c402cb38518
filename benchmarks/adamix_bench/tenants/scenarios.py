"""The scenarios of the proof, as values: who calls beside whom, for how long, and what changes meanwhile.

Names of tenants that are not of weight 1 and interactive stand for one weight and class in all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from adamix_bench.serving.workload import Lengths
from adamix_bench.tenants.traffic import SHORT, Caller
from adamix_server.access.quotas import DEFAULT_SHARES, Shares

DOUBLE, NIGHTLY = "double", "nightly"
SHARES: Mapping[str, Shares] = {DOUBLE: Shares(weight=2), NIGHTLY: Shares(service_class="batch")}
POISSON, BURSTS = 1.0, 4.0
# A patient caller, two usual ones and one that is not.
_DEADLINES_S = (5.0, 2.0, 10.0, 2.0)
_FLOOD, _MANY = 10.0, 64
# Tenants of an overload that is shared.
SEVERAL = 4


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Attributes:
    changes: from when on which tenant has which weight and class.
    loads_s: how long the adapters of a tenant take to load, where that is up to us.
    cut_s: so long after the last call, those that are still under way are given up, and are none of the trace.
    """

    name: str
    callers: Sequence[Caller]
    seconds: float
    changes: Sequence[tuple[float, str, Shares]] = ()
    loads_s: Mapping[str, float] = field(default_factory=dict)
    cut_s: float = 0.7

    @property
    def tenants(self) -> list[str]:
        return list(dict.fromkeys(caller.tenant for caller in self.callers))


def shares_of(tenant: str) -> Shares:
    return SHARES.get(tenant, DEFAULT_SHARES)


def knee(seconds: float) -> Scenario:
    """More than there can be computed, of one tenant: what is answered is the knee, in knees of a first guess."""
    caller = Caller(tenant="victim", knees=1.5, inputs_per_call=32, tasks=16)
    return Scenario(name="knee", callers=[caller], seconds=seconds)


def light(seconds: float) -> Scenario:
    """So little that batches are small."""
    return Scenario(name="light load", callers=[replace(VICTIM, knees=0.1)], seconds=seconds)


VICTIM = Caller(tenant="victim", knees=0.2, tasks=4)


def alone(seconds: float) -> Scenario:
    return Scenario(name="alone", callers=[VICTIM], seconds=seconds)


def floods(seconds: float, many_tasks: int) -> list[Scenario]:
    """A victim at a fifth of the knee beside a flood of ten times the knee, in calls of 64 inputs."""
    flood = Caller(tenant="flood", knees=_FLOOD, inputs_per_call=_MANY)
    kinds = {
        "one task": flood,
        f"{many_tasks:,} tasks": replace(flood, tasks=many_tasks),
        "the victim's own adapter": replace(flood, adapters=VICTIM.tenant),
        "short texts": replace(flood, lengths=SHORT),
    }
    return [Scenario(name=f"flood, {kind}", callers=[VICTIM, each], seconds=seconds) for kind, each in kinds.items()]


def weights(seconds: float) -> Scenario:
    """Three tenants that always have more to ask; the last is owed half."""
    callers = [Caller(tenant=tenant, knees=2.0, inputs_per_call=4, tasks=4) for tenant in ("one", "two", DOUBLE)]
    return Scenario(name="weights 1:1:2", callers=callers, seconds=seconds)


def lengths(seconds: float) -> Scenario:
    """Ten tenants, from short texts to long ones."""
    callers = []
    for index in range(10):
        median = 6.0 * 1.3**index
        sizes = Lengths(median=median, sigma=0.3, shortest=4, longest=128)
        inputs = max(1, round(100 / median))
        callers.append(Caller(tenant=f"mixed-{index}", knees=0.3, inputs_per_call=inputs, lengths=sizes, tasks=2))
    return Scenario(name="ten tenants of mixed lengths", callers=callers, seconds=seconds)


def others_adapter(seconds: float) -> Scenario:
    """A flood through the adapter of another tenant, which has enough to ask of its own."""
    owner = Caller(tenant="one", knees=1.5, inputs_per_call=4)
    third = Caller(tenant="two", knees=1.5, inputs_per_call=4, tasks=4)
    flood = Caller(tenant="flood", knees=_FLOOD, inputs_per_call=_MANY, adapters="one")
    return Scenario(name="a flood in another's adapter", callers=[owner, third, flood], seconds=seconds)


def overload(seconds: float, times: float, cv: float, retries: float = 0.0, tenants: int = 1) -> Scenario:
    """Tenants that together ask for so many times the knee, in calls of 8 inputs."""
    callers = [
        Caller(
            tenant=f"mixed-{index}",
            knees=times / tenants,
            inputs_per_call=8,
            tasks=4,
            cv=cv,
            deadlines_s=_DEADLINES_S,
            retries=retries,
        )
        for index in range(tenants)
    ]
    name = f"{times:g}x the knee, " + ("Poisson" if cv == POISSON else f"cv {cv:g}")
    name += ", half of the callers retry" if retries else ""
    name += f", {tenants} tenants" if tenants > 1 else ""
    # All of them to their ends: it is about which are answered in time.
    return Scenario(name=name, callers=callers, seconds=seconds, cut_s=max(_DEADLINES_S))


def batch_class(seconds: float) -> Scenario:
    """Interactive work at five times the knee beside the batch class."""
    day = [Caller(tenant=f"mixed-{index}", knees=2.5, inputs_per_call=8, tasks=4) for index in range(2)]
    night = Caller(tenant=NIGHTLY, knees=2.0, inputs_per_call=2, tasks=4)
    return Scenario(name="batch class at 5x", callers=[*day, night], seconds=seconds)


def beside_batch_class(seconds: float) -> Scenario:
    """A light interactive load, whose waits the batch class is to leave alone."""
    night = Caller(tenant=NIGHTLY, knees=2.0, inputs_per_call=8, tasks=4)
    return Scenario(name="light load beside the batch class", callers=[VICTIM, night], seconds=seconds)


# Two tenants with half of the device between them, beside a third that does something.
_OTHERS = (
    Caller(tenant="one", knees=0.25, tasks=4),
    Caller(tenant="two", knees=0.25, tasks=4),
)
OTHERS = tuple(caller.tenant for caller in _OTHERS)


def traps(seconds: float, idle_s: float) -> dict[str, tuple[Scenario, Scenario]]:
    """Each trap by its name: as usual, and with what is not to make anybody wait."""
    third = Caller(tenant="third", knees=0.2)
    usual = Scenario(name="usual", callers=[*_OTHERS, third], seconds=seconds)
    loads = replace(usual, name="an adapter that loads for 2 s", loads_s={"third": 2.0})
    heavy = replace(third, knees=0.35, inputs_per_call=8)
    changes = (
        (seconds / 3, "third", Shares(weight=1000)),
        (2 * seconds / 3, "third", DEFAULT_SHARES),
    )
    even = Scenario(name="as heavy as the others", callers=[*_OTHERS, heavy], seconds=seconds)
    heavier = replace(even, name="weight 1 to 1,000", changes=changes)
    begin_s = 2.0 + idle_s
    before = replace(third, knees=0.5, end_s=2.0)
    after = replace(third, knees=3.0, inputs_per_call=8, begin_s=begin_s)
    long_s = begin_s + seconds / 2
    away = Scenario(name="away", callers=[*_OTHERS, before], seconds=long_s)
    back = replace(away, name=f"return after {idle_s:g} s", callers=[*_OTHERS, before, after])
    return {"load": (usual, loads), "weight": (even, heavier), "return": (away, back)}


def every_caller(some: Sequence[Scenario]) -> dict[tuple[str, str], int]:
    """By tenant and owner of its adapters: how many tasks it asks at most."""
    found: dict[tuple[str, str], int] = {}
    for scenario in some:
        for caller in scenario.callers:
            key = caller.tenant, caller.owner
            found[key] = max(found.get(key, 0), caller.tasks)
    return found
