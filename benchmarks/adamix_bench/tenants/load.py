"""The load generator as the benchmark sees it: a process of its own, so that its Python costs a server only cores.

Imports neither torch nor grpc: both sides of the pipe share this module.
"""

import contextlib
import os
import subprocess
import sys
from types import TracebackType
from typing import Self

import msgspec

from adamix.errors import Unavailable
from adamix_bench.serving.load import read_frame, write_frame
from adamix_bench.tenants.trace import Ended

_STOP_S = 5.0


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
    """

    address: str
    groups: list[Group]
    calls: list[Due]
    seconds: float
    cut_s: float = 60.0
    connections: int = 4


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


class LoadProcess:
    """The generator's process, for any number of plans one after another."""

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C reaches the benchmark, which then ends the generator.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "adamix_bench.tenants.loadgen"],
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
