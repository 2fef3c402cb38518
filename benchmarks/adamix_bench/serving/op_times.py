"""Where the time of a forward pass goes, by kind of operator, from torch's own profiler.

The profiler slows every operator a little, so these are shares of the profiled run, not seconds of a normal one. An
operator is known by its name alone: a sum is a sum, of a residual or of an adapter's bias. The products of the backbone
have a name of their own only where its linears are laid out for the CPU (`FrozenLinear`), as the engine's are in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile

# Operators by what they do here, in the order of the report. Everything unnamed is "other operators".
_KINDS: dict[str, tuple[str, ...]] = {
    "products of the backbone": ("mkldnn::_linear_pointwise",),
    "attention": ("aten::_scaled_dot_product",),
    "rows gathered and joined": ("aten::index_select", "aten::cat"),
    "sums": ("aten::add", "aten::add_"),
    "layer norms": ("aten::native_layer_norm",),
    "products of adapters and heads": (
        "aten::mm",
        "aten::addmm",
        "aten::addmm_",
        "aten::bmm",
        "aten::baddbmm",
        "aten::baddbmm_",
    ),
}
# Looks its rows up by an operator that is known for something else.
_EMBEDDING = "aten::embedding"
_OTHER, _BETWEEN = "other operators", "between operators"


@dataclass(frozen=True)
class OpTimes:
    """Seconds by kind of operator, and what is left between them: Python, and threads that wait for each other."""

    seconds: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """Of the whole; all 0 where no operator ran."""
        total = sum(self.seconds.values())
        return {kind: seconds / total if total else 0.0 for kind, seconds in self.seconds.items()}


def op_times(work: Callable[[], object], repetitions: int = 3) -> OpTimes:
    """Profile `work` on this thread, after one run of it that is not counted."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(repetitions):
            work()
    events = [event for event in recorded.events() if event.device_type.name == "CPU"]
    seconds = dict.fromkeys([*_KINDS, _OTHER, _BETWEEN], 0.0)
    for event in events:
        is_lookup = event.cpu_parent is not None and event.cpu_parent.name == _EMBEDDING
        seconds[_OTHER if is_lookup else kind_of(event.name)] += event.self_cpu_time_total / 1e6
    if events:
        wall_s = (max(e.time_range.end for e in events) - min(e.time_range.start for e in events)) / 1e6
        seconds[_BETWEEN] = max(0.0, wall_s - sum(seconds.values()))
    return OpTimes(seconds)


def kind_of(operator: str) -> str:
    """The kind an operator of the profiler belongs to."""
    for kind, names in _KINDS.items():
        if operator in names or (kind == "attention" and operator.startswith(names)):
            return kind
    return _OTHER
