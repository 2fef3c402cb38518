"""The outcome of a run: one JSON document, a table for people, one plot."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

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
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / ".training.json"
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.out / "training.json")

    def tables(self) -> Group:
        return Group(self._ways_table(), _goals_table(self.goals))

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
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(report.found)
    figure, (speed, room) = plt.subplots(1, 2, figsize=(11, 1.8 + 0.34 * len(names)), layout="constrained", sharey=True)
    spreads = [Spread(tuple(1e3 * value for value in report.found[name].step_s)) for name in names]
    lows = [spread.median - spread.lowest for spread in spreads]
    highs = [spread.highest - spread.median for spread in spreads]
    colours = ["#1f6f8b" if name == MIXTURE else "#55636b" if name == PEER else "#a9c3cc" for name in names]
    medians = [spread.median for spread in spreads]
    bars = speed.barh(range(len(names)), medians, xerr=[lows, highs], color=colours, ecolor="#333333")
    ratios = [ratio.median for name in names if (ratio := over(report.found, name, PEER)) is not None]
    speed.bar_label(bars, [f" {ratio:.2f}" for ratio in ratios], fontsize=8)
    limit = TARGET * medians[names.index(PEER)]
    speed.axvline(limit, color="#b03a2e", linestyle="--", linewidth=1, label=f"{TARGET} x the peer")
    speed.set_yticks(range(len(names)), names, fontsize=8)
    speed.invert_yaxis()
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
    for axes in (speed, room):
        axes.spines[["top", "right"]].set_visible(False)
    path = report.out / "training.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _goals_table(goals: Sequence[Goal]) -> Table:
    table = Table("", "what", "target", "median", "min", "max", "holds?")
    for goal in goals:
        found = ("-", "-", "-")
        if goal.measured is not None:
            values = (goal.measured.median, goal.measured.lowest, goal.measured.highest)
            found = (f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[2]:.3f}")
        verdict = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[goal.holds]
        if goal.target is not None and goal.measured is None:
            verdict = "not measured"
        table.add_row(goal.name, goal.what, "" if goal.target is None else f"<= {goal.target:g}", *found, verdict)
    return table
