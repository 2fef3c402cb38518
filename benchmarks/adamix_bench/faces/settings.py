"""What `bench faces` is asked to do: one frozen value per run, checked when it is made. No torch here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from adamix.errors import InvalidConfig

# In the order in which they are measured: what starts no server first.
PARTS = ("cli", "client", "http", "file")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything.

    Attributes:
        tasks: that are asked over HTTP and gRPC.
        requests: inputs of each way in a turn.
        singles: calls of one input in a turn.
        repetitions: turns that count.
        starts: of a process, each time.
        rows, fewer_rows: of the file whose rate is measured, and of the one beside which its memory is.
        file_turns: how often its rate is.
    """

    tasks: int
    requests: int
    singles: int
    repetitions: int
    starts: int
    rows: int
    fewer_rows: int
    file_turns: int


FULL = Sizes(
    tasks=32, requests=800, singles=400, repetitions=7, starts=9, rows=100_000, fewer_rows=10_000, file_turns=1
)
QUICK = Sizes(tasks=32, requests=400, singles=150, repetitions=3, starts=5, rows=4_000, fewer_rows=1_000, file_turns=2)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Raises InvalidConfig on values that cannot work.

    Attributes:
        only: parts, by their names; all if empty.
        threads: of the operators; 0 is one per core.
    """

    backbone: str = "minilm"
    quick: bool = False
    only: Sequence[str] = ()
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in PARTS:
                raise InvalidConfig(f"--only is of {', '.join(PARTS)}, not {name!r}", field="only")
        if self.threads < 0:
            raise InvalidConfig("--threads must be 0 or more", field="threads")

    @property
    def sizes(self) -> Sizes:
        return QUICK if self.quick else FULL

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    def wants(self, part: str) -> bool:
        return not self.only or part in self.only
