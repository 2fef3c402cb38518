"""The outcome of a run: one JSON document, a table for people, one plot. No torch here."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group
from rich.table import Table

from adamix_bench import reports
from adamix_bench.generation import profiling
from adamix_bench.generation.profiling import Share
from adamix_bench.generation.settings import BF16, CONTINUOUS, FLOOR, FP32, SERVED
from adamix_bench.generation.turns import Turn
from adamix_bench.measure import Goal, Spread

FORMAT = "adamix-bench-generation/1"

# By concurrency: the engine in fp32 over transformers' continuous batching.
_OVER_CONTINUOUS = {1: 1.2, 8: 1.7, 32: 2.2, 64: 3.3}
_ADAPTERS, _MOST_ADAPTERS = 0.85, 64
_SERVED = 0.95
_PERCENTILES = (50, 90, 99)


class Cell(NamedTuple):
    """One way at one concurrency. `adapters`: how many different ones its requests have; 0 is the backbone alone."""

    way: str
    concurrency: int
    adapters: int = 0


@dataclass
class Report:
    """Everything known so far.

    Attributes:
        turns: those that count, of each cell.
        open_loop: how long callers of a server waited for tokens who came by chance.
        equal: by concurrency, the share of requests that the engine gives the text that transformers gives them.
        facts: what else a reader of the numbers needs.
        failures: ways that could not be measured, with the reason.
        profiles: by concurrency, the functions that took most of a run of the engine.
    """

    out: Path
    settings: dict[str, Any]
    machine: dict[str, Any]
    command: Sequence[str]
    turns: dict[Cell, list[Turn]] = field(default_factory=dict)
    open_loop: dict[str, Any] = field(default_factory=dict)
    equal: dict[int, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    profiles: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    complete: bool = False

    def enter(self, found: Mapping[Cell, Sequence[Turn]]) -> None:
        """The turns of some cells, all that there are of them."""
        for cell, turns in found.items():
            if turns:
                self.turns[cell] = list(turns)

    def same_texts(self, found: Mapping[Cell, Sequence[Turn]]) -> None:
        """Compare what the engine wrote without adapters with what transformers did."""
        for cell, turns in found.items():
            theirs = found.get(Cell(CONTINUOUS, cell.concurrency))
            if cell.way == FP32 and not cell.adapters and turns and theirs:
                pairs = zip(turns[-1].texts, theirs[-1].texts, strict=True)
                same = [list(mine) == list(other) for mine, other in pairs]
                self.equal[cell.concurrency] = sum(same) / len(same)

    def enter_open_loop(self, rate: float, first_token_s: Sequence[float], inter_token_s: Sequence[float]) -> None:
        """Texts a second that were asked for, the waits for the first token of each, and those between tokens."""
        waits = {"first_token_s": first_token_s, "inter_token_s": inter_token_s}
        percentiles = {
            name: {f"p{percent}": float(np.percentile(values, percent)) for percent in _PERCENTILES}
            for name, values in waits.items()
        }
        self.open_loop = {"texts_per_s": rate, "texts": len(first_token_s), **percentiles}

    def enter_profile(self, concurrency: int, shares: Sequence[Share]) -> None:
        self.profiles[concurrency] = [asdict(share) for share in shares]

    @property
    def goals(self) -> list[Goal]:
        return [
            goal for concurrency in sorted({cell.concurrency for cell in self.turns}) for goal in self._of(concurrency)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "complete": self.complete,
            "command": ["adamix", *self.command],
            "settings": self.settings,
            "machine": {**self.machine, "load_average_at_the_end": os.getloadavg()[0]},
            "rows": [self._row(cell) for cell in self.turns],
            "goals": [goal.to_json() for goal in self.goals],
            "open_loop": self.open_loop,
            "equal": {"same_texts": {str(concurrency): share for concurrency, share in self.equal.items()}},
            "facts": self.facts,
            "failures": self.failures,
            "profiles": {str(concurrency): shares for concurrency, shares in self.profiles.items()},
        }

    def save(self) -> dict[str, Any]:
        """Write what there is, and return it; a run that is cut short later leaves this behind."""
        document = self.to_json()
        reports.save(document, self.out / "generation.json")
        return document

    def tables(self) -> Group:
        parts = [self._table(), reports.goals_table(self.goals)]
        profiles = [profiling.table(concurrency, shares) for concurrency, shares in self.profiles.items()]
        return Group(*parts, *profiles, *([self._waits_table()] if self.open_loop else []))

    def _of(self, concurrency: int) -> list[Goal]:
        plain = Cell(FP32, concurrency)
        mixed = Cell(FP32, concurrency, concurrency)
        continuous = Cell(CONTINUOUS, concurrency)
        at = f"at {concurrency} at once"
        is_all = concurrency == _MOST_ADAPTERS
        wanted = [
            ("continuous", f"engine over transformers' continuous batching {at}", plain, continuous),
            ("adapters", f"{concurrency} different adapters over none", mixed, plain),
            ("served", f"over gRPC over in process, {concurrency} different adapters", Cell(SERVED, *mixed[1:]), mixed),
            ("floor", f"engine over its fp32 products alone {at}", plain, Cell(FLOOR, concurrency)),
            ("bf16", f"weights in bf16 over fp32 {at}", Cell(BF16, concurrency), plain),
        ]
        targets = {
            "continuous": _OVER_CONTINUOUS.get(concurrency),
            "adapters": _ADAPTERS if is_all else None,
            "served": _SERVED,
        }
        goals = []
        for name, what, mine, other in wanted:
            if mine in self.turns and other in self.turns:
                goals.append(Goal(f"{name}.{concurrency}", what, self._over(mine, other), targets.get(name)))
                if name in ("continuous", "adapters"):
                    spread = self._over(mine, other, on_processors=True)
                    goals.append(Goal(f"{name}.{concurrency}.cpu", "the same, by time on processors", spread))
        return goals

    def _over(self, mine: Cell, other: Cell, *, on_processors: bool = False) -> Spread:
        return self._rate(mine, on_processors=on_processors).over(self._rate(other, on_processors=on_processors))

    def _rate(self, cell: Cell, *, on_processors: bool = False) -> Spread:
        turns = self.turns[cell]
        return Spread(tuple(turn.tokens_per_cpu_s if on_processors else turn.tokens_per_s for turn in turns))

    def _row(self, cell: Cell) -> dict[str, Any]:
        rate, on_processors = self._rate(cell), self._rate(cell, on_processors=True)
        row: dict[str, Any] = {
            **cell._asdict(),
            "tokens_per_s": rate.median,
            "ratio": None,
            "tokens_per_cpu_s": on_processors.median,
            "cpu_ratio": None,
            "tokens": self.turns[cell][0].num_tokens,
            "turns": rate.to_json(),
        }
        continuous = Cell(CONTINUOUS, cell.concurrency)
        if len(self.turns.get(continuous, ())) == len(self.turns[cell]):
            row["ratio"] = self._over(cell, continuous).median
            row["cpu_ratio"] = self._over(cell, continuous, on_processors=True).median
        return row

    def _waits_table(self) -> Table:
        texts, rate = self.open_loop["texts"], self.open_loop["texts_per_s"]
        table = Table(f"{texts} texts, {rate:.2f} a second", *(f"p{percent} ms" for percent in _PERCENTILES))
        for name, what in (("first_token_s", "to the first token"), ("inter_token_s", "between tokens")):
            table.add_row(what, *(f"{1e3 * value:,.0f}" for value in self.open_loop[name].values()))
        return table

    def _table(self) -> Table:
        table = Table("way", "at once", "adapters", "tokens/s", "min..max", "ratio", "tokens/CPU s", "ratio")
        for cell in self.turns:
            row, rate = self._row(cell), self._rate(cell)
            ratios = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("ratio", "cpu_ratio")]
            cells = [cell.way, str(cell.concurrency), str(cell.adapters), f"{rate.median:,.1f}"]
            cells += [
                f"{rate.lowest:,.1f}..{rate.highest:,.1f}",
                ratios[0],
                f"{row['tokens_per_cpu_s']:,.1f}",
                ratios[1],
            ]
            table.add_row(*cells)
        return table


def plot(report: Report) -> Path | None:
    """Tokens a second of every way, a panel a concurrency; None if nothing was measured."""
    rounds = sorted({cell.concurrency for cell in report.turns})
    if not rounds:
        return None
    figure, panels = reports.pyplot().subplots(
        1, len(rounds), figsize=(4.5 * len(rounds), 3.2), layout="constrained", squeeze=False
    )
    for axes, concurrency in zip(panels.flat, rounds, strict=True):
        cells = [cell for cell in report.turns if cell.concurrency == concurrency]
        names = [f"{cell.way}, {cell.adapters} adapters" if cell.adapters else cell.way for cell in cells]
        rates = [Spread(tuple(turn.tokens_per_s for turn in report.turns[cell])) for cell in cells]
        drawn = reports.bars(axes, dict(zip(names, rates, strict=True)))
        axes.bar_label(drawn, [f" {rate.median:,.0f}" for rate in rates], fontsize=7)
        axes.margins(x=0.15)
        axes.set_title(f"{concurrency} at once: tokens a second", fontsize=9)
    return reports.save_figure(figure, report.out / "generation.png")
