"""Who asks what, and when: open loops of several tenants, all from a seed. Pure: no clock, no wire.

A caller's calls are a circle of templates. Rates are in knees: one is what the device computes at most.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from adamix_bench.serving.workload import Lengths, draw_arrivals, draw_tasks

NUM_TEMPLATES = 64
SHORT = Lengths(median=8, sigma=0.3, shortest=4, longest=16)
_TEMPLATES, _ARRIVALS = 1, 2

# The inputs of a call: a task by its number, and tokens.
Template = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The calls of one tenant.

    Attributes:
        knees: tokens a second, as a share of what the device computes at most.
        tasks: how many its inputs are spread over, uniformly.
        adapters: whose adapters these have; its own if empty.
        cv: variation of the times between calls: 1 is Poisson, 4 comes in bursts.
        deadlines_s: of its calls, as chance has it.
        begin_s, end_s: it calls only in between.
        retries: share of its calls that are made again when they were refused, as they are told.
    """

    tenant: str
    knees: float
    inputs_per_call: int = 1
    lengths: Lengths = field(default_factory=Lengths)
    tasks: int = 1
    adapters: str = ""
    cv: float = 1.0
    deadlines_s: tuple[float, ...] = (10.0,)
    begin_s: float = 0.0
    end_s: float = math.inf
    retries: float = 0.0

    @property
    def owner(self) -> str:
        """Whose adapters it asks."""
        return self.adapters or self.tenant


@dataclass(frozen=True)
class Call:
    """One call of an open loop, and when it is due, in seconds from the start."""

    due_s: float
    caller: int
    template: int
    deadline_s: float
    retries: bool


def draw_templates(caller: Caller, seed: int) -> list[Template]:
    """The calls that a caller makes in circles."""
    random = _random(seed, caller, _TEMPLATES)
    count = NUM_TEMPLATES * caller.inputs_per_call
    lengths = caller.lengths.draw(count, random).tolist()
    tasks = draw_tasks("uniform", count, caller.tasks, random).tolist()
    inputs = list(zip(tasks, lengths, strict=True))
    return [tuple(inputs[start : start + caller.inputs_per_call]) for start in range(0, count, caller.inputs_per_call)]


def draw_calls(callers: Sequence[Caller], seconds: float, knee: float, seed: int) -> list[Call]:
    """The calls of all callers that are due within `seconds`, the soonest first.

    Args:
        knee: tokens a second.
    """
    calls: list[Call] = []
    for index, caller in enumerate(callers):
        random = _random(seed, caller, _ARRIVALS)
        tokens = sum(length for template in draw_templates(caller, seed) for _, length in template)
        rate = caller.knees * knee * NUM_TEMPLATES / tokens
        due = draw_arrivals(rate, caller.cv, max(1, _enough(rate * seconds)), random)
        deadlines = random.choice(caller.deadlines_s, len(due)).tolist()
        retries = (random.random(len(due)) < caller.retries).tolist()
        until = min(caller.end_s, seconds)
        for number, time in enumerate((due + caller.begin_s).tolist()):
            if time >= until:
                break
            calls.append(Call(time, index, number % NUM_TEMPLATES, deadlines[number], retries[number]))
    return sorted(calls, key=lambda call: call.due_s)


def tokens_of(template: Template) -> int:
    return sum(length for _, length in template)


def _enough(expected: float) -> int:
    """So many arrivals that their last is late enough, also in bursts."""
    return math.ceil(expected + 20 * math.sqrt(expected) + 100)


def _random(seed: int, caller: Caller, what: int) -> np.random.Generator:
    """Each tenant's own, whoever else there is: the same calls alone and beside others."""
    return np.random.default_rng([seed, zlib.crc32(caller.tenant.encode()), what])
