"""A load generator's process: asked by plans, answering with outcomes, one after another.

Imports neither torch nor grpc: both sides of the pipe share this module. What a plan says is the generator's matter.
"""

import contextlib
import os
import struct
import subprocess
import sys
from types import TracebackType
from typing import IO, Generic, Self, TypeVar

import msgspec

from adamix.errors import Unavailable

_LENGTH = struct.Struct("<Q")
_STOP_S = 5.0

PlanT = TypeVar("PlanT", bound=msgspec.Struct)
OutcomeT = TypeVar("OutcomeT", bound=msgspec.Struct)


class GeneratorProcess(Generic[PlanT, OutcomeT]):
    """The process, for any number of plans.

    Args:
        module: that runs in it.
        outcome: what it answers with.
    """

    def __init__(self, module: str, outcome: type[OutcomeT]) -> None:
        self._module = module
        self._outcome = outcome

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C reaches the benchmark, which then ends the generator.
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
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

    def run(self, plan: PlanT) -> OutcomeT:
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
        return msgspec.msgpack.decode(data, type=self._outcome)


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
