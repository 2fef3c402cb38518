"""How long a call takes: on CUDA in a graph, with cold caches; on a CPU in turns, after a product as models have it.

CUDA. Several calls, each on operands of its own, are captured in one graph, and `triton.testing.do_bench` takes the
median of its replays, clearing the L2 cache before each. So a call finds neither its rows nor its weights in the
cache, as in a model, where between two uses of a layer's weights lie all the other layers; and neither Python nor the
start of a graph is in the time, which is the median divided by the number of calls.

CPU. All forms take turns; before each, the rows that the one before has changed are put back, and others go through an
ordinary product, which puts the threads and the caches in the state that a layer leaves behind. Neither is counted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adamix_bench.measure import Spread

Call = Callable[[], object]

_WARMUP_MS, _REPEAT_MS = 5, 30
_EMPTY_CALLS = 32
_COPY_BYTES = 1 << 30
_CPU_COPY_BYTES = 1 << 28
_PRODUCT_ROWS = 128
_CPU_SECONDS, _FEWEST_TURNS, _MOST_TURNS = 0.15, 5, 31


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median, and the range over the turns, if there were any.

    `error` says why there is no time.
    """

    us: float | None
    low_us: float | None = None
    high_us: float | None = None
    error: str = ""

    @classmethod
    def of_seconds(cls, seconds: Sequence[float]) -> "Timing":
        spread = Spread(tuple(value * 1e6 for value in seconds))
        return cls(spread.median, spread.lowest, spread.highest)


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, list[object]]:
    """All calls in one CUDA graph, and what they returned there: keep it as long as the graph.

    Outputs that were dropped would share memory, and then stay in the cache.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    return graph, results


def replayed_us(calls: Sequence[Call]) -> float:
    """Microseconds of one of these calls in a replayed graph. Raises RuntimeError if they cannot be captured."""
    graph, results = captured(calls)
    microseconds = median_us(graph.replay) / len(calls)
    del results
    return microseconds


def median_us(work: Call) -> float:
    """Microseconds by `do_bench`, the L2 cache cleared before each run."""
    from triton.testing import do_bench

    return 1e3 * float(do_bench(work, warmup=_WARMUP_MS, rep=_REPEAT_MS, return_mode="median"))


def empty_kernel_us(device: torch.device) -> float:
    """Microseconds of a kernel that does nothing, in a graph of 32 of them."""
    from adamix_bench.kernels.empty import empty

    pointer = torch.zeros(1, device=device)
    return replayed_us([lambda: empty[(1,)](pointer)] * _EMPTY_CALLS)


def copy_gb_per_s(device: torch.device) -> float:
    """Bytes read and written by a copy of 512 MiB (CPU: 128 MiB), per nanosecond."""
    size = (_COPY_BYTES if device.type == "cuda" else _CPU_COPY_BYTES) // 2
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    if device.type == "cuda":
        return 2 * size / 1e3 / median_us(lambda: target.copy_(source))
    times = [seconds(lambda: target.copy_(source)) for _ in range(_FEWEST_TURNS)]
    return 2 * size / 1e9 / Spread(tuple(times)).median


def in_turns_on_cpu(calls: Mapping[str, Call], changed: Tensor) -> dict[str, Timing]:
    """All calls, one after another in every turn, for some 0.15 s each; the first turn warms up and is not counted.

    Args:
        changed: [T, H], the rows that every call changes in place.
    """
    as_they_were = changed.clone()
    features = changed.shape[1]
    rows = torch.randn(_PRODUCT_ROWS, features, dtype=changed.dtype)
    weight = torch.randn(features, features, dtype=changed.dtype)
    found: dict[str, list[float]] = {name: [] for name in calls}
    spent_s = 0.0
    for turn in range(_MOST_TURNS + 1):
        if turn > _FEWEST_TURNS and spent_s > _CPU_SECONDS * len(calls):
            break
        for name, call in calls.items():
            changed.copy_(as_they_were)
            torch.mm(rows, weight)
            took_s = seconds(call)
            if turn:
                found[name].append(took_s)
                spent_s += took_s
    return {name: Timing.of_seconds(values) for name, values in found.items()}


def seconds(work: Call) -> float:
    """Seconds that `work` takes on this thread."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
