"""The load generator as the benchmark sees it: a process of its own, so that its Python costs a server only cores.

Imports neither torch nor grpc: both sides of the pipe share this module.
"""

import msgspec

from adamix_bench.serving.generator_process import GeneratorProcess
from adamix_bench.tenants.trace import Ended


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one tenant.

    Attributes:
        key: what is shown with each; empty for nothing. It goes through the pipe, and to nothing else.
        payloads: serialised requests, and `lengths`: tokens of the inputs of each.
    """

    tenant: str
    key: str
    payloads: list[bytes]
    lengths: list[list[int]]


class Due(msgspec.Struct, frozen=True, array_like=True):
    """One call of an open loop: a payload of a group, and when it is due in seconds from the start."""

    due_s: float
    group: int
    payload: int
    deadline_s: float
    retries: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send to whom, and when, the soonest first.

    Attributes:
        seconds: nothing is sent again after that; `cut_s` later, what is still under way is given up and left out.
        connections: TCP connections that calls are spread over, so that several front ends share them.
        in_turn: a call is sent when the one before has ended, whenever it is due; none after `seconds`.
    """

    address: str
    groups: list[Group]
    calls: list[Due]
    seconds: float
    cut_s: float = 60.0
    connections: int = 4
    in_turn: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a plan.

    Attributes:
        late_s: how much later than due the generator sent: the 99th percentile, and the most.
        cpu_s: processor time of the generator.
        batches: tokens and seconds of batches that answered something.
    """

    calls: list[Ended]
    late_s: float
    most_late_s: float
    cpu_s: float
    batches: list[tuple[int, float]]


class LoadProcess(GeneratorProcess[Plan, Outcome]):
    """The load generator's process."""

    def __init__(self) -> None:
        super().__init__("adamix_bench.tenants.loadgen", Outcome)
