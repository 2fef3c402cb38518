"""The load generator as the benchmark sees it: a process of its own, asked by plans, answering with outcomes.

In a process of its own its Python costs the server nothing but cores. Imports neither torch nor grpc: both sides of
the pipe share this module.
"""

from typing import Literal

import msgspec

from adamix_bench.serving.generator_process import GeneratorProcess

Rpc = Literal["Predict", "PredictStream"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send to whom, and when.

    Attributes:
        payloads: serialised requests, sent in this order: once each, or in circles until `seconds` are over.
        in_flight: calls (inputs of a stream) that a closed loop keeps open.
        arrivals_s: an open loop instead: when each payload is due, in seconds from the start.
        seconds: start nothing after this time.
        connections: TCP connections that calls are spread over, so that several front ends share them.
        keep_answers: hand the responses back.
    """

    address: str
    rpc: Rpc = "Predict"
    payloads: list[bytes]
    in_flight: int = 1
    arrivals_s: list[float] | None = None
    seconds: float | None = None
    timeout_s: float = 60.0
    connections: int = 1
    keep_answers: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a plan.

    Attributes:
        wall_s: from the start to the last answer.
        cpu_s: processor time of the load generator.
        late_s: longest delay of the generator itself between the time a call was due and its sending.
        calls: index of the payload of each call, in order of sending.
        latency_s: of each call; in an open loop from the time it was due, so that waiting for the generator or a
            full server counts.
        answered: inputs of each call that were answered without an error.
        errors: inputs that were not, by status code.
        answers: the serialised responses, by call, if they were to be kept; empty for a failed call.
    """

    wall_s: float
    cpu_s: float
    late_s: float
    calls: list[int]
    latency_s: list[float]
    answered: list[int]
    errors: dict[str, int]
    answers: list[bytes] = []


class LoadProcess(GeneratorProcess[Plan, Outcome]):
    """The load generator's process."""

    def __init__(self) -> None:
        super().__init__("adamix_bench.serving.loadgen", Outcome)
