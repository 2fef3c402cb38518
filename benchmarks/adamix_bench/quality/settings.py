"""What a quality run compares: tasks, sizes, seeds, methods, and the grid that every method is tuned on."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from adamix.config import TrainConfig
from adamix.data import CORPORA
from adamix.errors import InvalidConfig
from adamix_bench.quality.trainings import METHODS, TRAININGS, Choice

Rows = int | None
"""Training rows of a cell; None stands for all of them, `all` in files and on the command line."""


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """A quality run. Everything here is written into its report.

    Attributes:
        layers: use only so many of the backbone's first layers, for less compute; None for all.
        rows: training rows, chosen by the seed and balanced over classes.
        seeds: of rows, weights, routes, order and dropout alike.
        draws: random routes that each mixture is measured with.
        learning_rates, steps: the grid of the tuning; `steps` are those of a mixture, whose step has two passes. A
            method with one pass may take twice as many, so that all have the same budget of compute.
        tuning_cells: (task, rows) that the tuning trains on, with `tuning_seed`, which no reported run has.
        validation_rows: at most so many rows of the validation split judge a trial.
    """

    backbone: str = "minilm"
    layers: int | None = None
    tasks: tuple[str, ...] = ("trec", "movie", "spam", "bbc", "tweets")
    rows: tuple[Rows, ...] = (100, 300)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    methods: tuple[str, ...] = ("merged", "single-compute")
    batch_size: int = 8
    max_length: int = 32
    precision: str = "fp32"
    draws: int = 5
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    steps: tuple[int, ...] = (300, 600)
    tuning_cells: tuple[tuple[str, int], ...] = (("trec", 100), ("movie", 300), ("tweets", 100))
    tuning_seed: int = 1_000
    validation_rows: int = 1_000

    def __post_init__(self) -> None:
        _known("--tasks", self.tasks, CORPORA)
        _known("--methods", self.methods, METHODS)
        _known("--tune-on", tuple(task for task, _ in self.tuning_cells), CORPORA)
        for name in ("tasks", "rows", "seeds", "methods", "learning_rates", "steps", "tuning_cells"):
            if not getattr(self, name):
                raise InvalidConfig(f"quality needs at least one of {name}", field=name)
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise InvalidConfig(f"{name} names one thing twice", field=name)
        if self.tuning_seed in self.seeds:
            raise InvalidConfig("the seed of the tuning must not be one of the reported seeds", field="seeds")
        if any(rows is not None and rows < 1 for rows in (*self.rows, *(rows for _, rows in self.tuning_cells))):
            raise InvalidConfig("rows must be positive", field="rows")
        if self.layers is not None and self.layers < 1:
            raise InvalidConfig("layers must be positive", field="layers")
        if self.draws < 1:
            raise InvalidConfig("draws must be positive", field="draws")
        if self.validation_rows < 1:
            raise InvalidConfig("validation_rows must be positive", field="validation_rows")
        for training in self.trainings:
            for choice in self.choices(training):
                self.train_config(choice, seed=self.tuning_seed)  # which checks the rest

    @property
    def trainings(self) -> tuple[str, ...]:
        """The trainings behind the methods, in the order of the methods, each once."""
        return tuple(dict.fromkeys(METHODS[method] for method in self.methods))

    def choices(self, training: str) -> list[Choice]:
        """The grid of one training: as many choices, and as much compute at most, for every one of them."""
        per_step = TRAININGS[training].steps_factor
        return [Choice(rate, steps * per_step) for steps, rate in product(self.steps, self.learning_rates)]

    def train_config(self, choice: Choice, seed: int) -> TrainConfig:
        """The trainer's settings for one training. Raises InvalidConfig."""
        return TrainConfig(
            max_steps=choice.steps,
            batch_size=self.batch_size,
            learning_rate=choice.learning_rate,
            max_length=self.max_length,
            precision=self.precision,  # type: ignore[arg-type]  # checked by the dataclass
            seed=seed,
            save_every=choice.steps,
        )

    def protocol(self) -> dict[str, Any]:
        """What all runs of one store must have in common to be compared, as JSON has it."""
        extent = ("tasks", "rows", "seeds", "methods")
        protocol: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in protocol.items() if name not in extent}


def _known(flag: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise InvalidConfig(f"{flag} must be of {', '.join(known)}, not {name!r}")
