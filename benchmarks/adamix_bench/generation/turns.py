"""What one way did in one turn, and how long that took. Knows no way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adamix.errors import AdamixError
from adamix_bench.generation.workload import Workload

Texts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Turn:
    """Everything a workload asks for, done once.

    Attributes:
        wall_s, cpu_s: seconds, and processor seconds of all that took part.
        num_tokens: generated.
        texts: the generated ids of each request; empty where nobody looks at them.
    """

    wall_s: float
    cpu_s: float
    num_tokens: int
    texts: Texts = ()

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.num_tokens / self.cpu_s


def timed(generate: Callable[[], Texts], workload: Workload, cpu_s: Callable[[], float] = time.process_time) -> Turn:
    """Time what writes a text for each request.

    Args:
        cpu_s: processor time so far; by default of this process.

    Raises:
        AdamixError: a text is shorter or longer than was asked for: that would be no comparison.
    """
    wall, cpu = time.perf_counter(), cpu_s()
    texts = generate()
    turn = Turn(time.perf_counter() - wall, cpu_s() - cpu, sum(map(len, texts)), texts)
    lengths = [len(text) for text in texts]
    if lengths != list(workload.new_tokens):
        raise AdamixError(f"texts of {lengths} tokens instead of {list(workload.new_tokens)}")
    return turn
