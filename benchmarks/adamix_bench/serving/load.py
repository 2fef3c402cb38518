"""The load generator as the benchmark sees it: a process of its own, asked by plans, answering with outcomes.

In a process of its own its Python costs the server nothing but cores. Imports neither torch nor grpc: both sides of
the pipe share this module.
"""

import contextlib
import os
import struct
import subprocess
import sys
from types import TracebackType
from typing import IO, Literal, Self

import msgspec

from adamix.errors import Unavailable

Rpc = Literal["Predict", "PredictStream"]

_LENGTH = struct.Struct("<Q")
_STOP_S = 5.0


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


class LoadProcess:
    """The load generator's process, for any number of plans one after another."""

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C reaches the benchmark, which then ends the generator.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "adamix_bench.serving.loadgen"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # Of a process that has died: what could not be written to it is tried once more.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, plan: Plan) -> Outcome:
        """Carry a plan out; returns when every call has ended. Raises Unavailable when the process has died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise Unavailable("the load generator has no pipes")
        try:
            write_frame(stdin, msgspec.msgpack.encode(plan))
        except BrokenPipeError:
            raise Unavailable("the load generator has died") from None
        data = read_frame(stdout)
        if data is None:
            raise Unavailable("the load generator has died")
        return msgspec.msgpack.decode(data, type=Outcome)


def write_frame(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """None at the end of the pipe, also in the middle of a frame: whoever wrote it has died."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    num_bytes: int = _LENGTH.unpack(head)[0]
    data = pipe.read(num_bytes)
    return data if len(data) == num_bytes else None
