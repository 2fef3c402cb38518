"""The outcome of a run: one JSON document, a table for people, one plot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from adamix_bench import reports
from adamix_bench.measure import Goal, Spread
from adamix_bench.training.rounds import Found, over
from adamix_bench.training.ways import MIXTURE, PEER, Way

FORMAT = "adamix-bench-training/1"
TARGET = 1.15
_MIB = 1 << 20
_STACK = (("activations", "#1f6f8b"), ("optimiser", "#e0a030"), ("gradients", "#8c564b"), ("weights", "#55636b"))


@dataclass
class Report:
    """Everything known so far. `facts`: what else a reader of the numbers needs."""

    out: Path
    settings: dict[str, Any]
    machine: dict[str, Any]
    command: Sequence[str]
    ways: dict[str, Way] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    @property
    def goals(self) -> list[Goal]:
        """The mixture over its peer: time, which has a target, and memory."""
        step = Goal("step", f"step of the {MIXTURE} over {PEER}", over(self.found, MIXTURE, PEER), TARGET, False)
        processors = Goal(
            "step.cpu", "the same in time on processors", over(self.found, MIXTURE, PEER, on_processors=True)
        )
        memories = [found.memory for name in (MIXTURE, PEER) if (found := self.found.get(name)) is not None]
        kept: Spread | None = None
        if len(memories) == 2 and memories[0] is not None and memories[1] is not None and memories[1].activations:
            kept = Spread((memories[0].activations / memories[1].activations,))
        return [step, processors, Goal("activations", "kept for the backward pass, the same two", kept)]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "complete": self.complete,
            "command": ["adamix", *self.command],
            "settings": self.settings,
            "machine": self.machine,
            "facts": self.facts,
            "goals": [goal.to_json() for goal in self.goals],
            "ways": {name: self._way_json(name) for name in self.found},
        }

    def save(self) -> None:
        """Write what there is; a run that is cut short later leaves this behind."""
        reports.save(self.to_json(), self.out / "training.json")

    def tables(self) -> Group:
        return Group(self._ways_table(), reports.goals_table(self.goals))

    def _way_json(self, name: str) -> dict[str, Any]:
        found, mixture = self.found[name], self.ways[name].mixture
        trained, merged, head = found.parameters
        ratio = over(self.found, name, PEER)
        return {
            "sites": list(self.ways[name].adapter.sites),
            "experts": mixture.num_experts,
            "share": mixture.share,
            "passes": mixture.passes,
            "routing_granularity": mixture.routing_granularity,
            "parameters": {"trained": trained, "merged": merged, "head": head},
            "step_s": Spread(tuple(found.step_s)).to_json() if found.step_s else None,
            "cpu_step_s": Spread(tuple(found.cpu_step_s)).to_json() if found.cpu_step_s else None,
            "over_peer": None if ratio is None else ratio.to_json(),
            "memory": None if found.memory is None else found.memory.to_json(),
        }

    def _ways_table(self) -> Table:
        columns = ("passes", "ms a step", "over the peer", "min..max", "trained", "activations", "optimiser", "peak")
        table = Table("way", *columns, caption="the peer is a single adapter, two passes; memory in MiB")
        for name, found in self.found.items():
            ratio = over(self.found, name, PEER)
            row = [name, str(self.ways[name].mixture.passes)]
            if ratio is None:
                row += ["-"] * 4
            else:
                row += [f"{1e3 * Spread(tuple(found.step_s)).median:,.1f}", f"{ratio.median:.3f}"]
                trained = found.parameters[0] + found.parameters[2]
                row += [f"{ratio.lowest:.2f}..{ratio.highest:.2f}", f"{trained:,}"]
            memory = found.memory
            sizes = [None] * 3 if memory is None else [memory.activations, memory.optimiser, memory.peak]
            row += ["-" if size is None else f"{size / _MIB:,.1f}" for size in sizes]
            table.add_row(*row)
        return table


def plot(report: Report) -> Path | None:
    """Time of a step and memory of every way; None before the first round."""
    if over(report.found, MIXTURE, PEER) is None:
        return None
    names = list(report.found)
    size = (11, 1.8 + 0.34 * len(names))
    figure, (speed, room) = reports.pyplot().subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    spreads = {name: Spread(tuple(1e3 * value for value in report.found[name].step_s)) for name in names}
    colours = ["#1f6f8b" if name == MIXTURE else "#55636b" if name == PEER else "#a9c3cc" for name in names]
    bars = reports.bars(speed, spreads, colours)
    ratios = [ratio.median for name in names if (ratio := over(report.found, name, PEER)) is not None]
    speed.bar_label(bars, [f" {ratio:.2f}" for ratio in ratios], fontsize=8)
    limit = TARGET * spreads[PEER].median
    speed.axvline(limit, color="#b03a2e", linestyle="--", linewidth=1, label=f"{TARGET} x the peer")
    speed.margins(x=0.12)
    speed.set(title="A step (median, lowest, highest; times the peer's)", xlabel="ms", xlim=(0, None))
    speed.legend(fontsize=7, frameon=False, loc="lower right")
    left = [0.0] * len(names)
    for part, colour in _STACK:
        memories = (report.found[name].memory for name in names)
        sizes = [0.0 if memory is None else getattr(memory, part) / _MIB for memory in memories]
        room.barh(range(len(names)), sizes, left=left, color=colour, label=part)
        left = [total + size for total, size in zip(left, sizes, strict=True)]
    room.set(title="Kept in memory while training", xlabel="MiB beside the backbone")
    room.legend(fontsize=7, frameon=False, loc="lower right", ncols=len(_STACK))
    return reports.save_figure(figure, report.out / "training.png")
