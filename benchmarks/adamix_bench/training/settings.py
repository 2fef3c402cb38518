"""What a benchmark of training is asked to do: one frozen value per run, checked when it is made. No torch here."""

import os
from dataclasses import dataclass

from adamix.config import AdapterConfig, MixtureConfig, TrainConfig
from adamix.errors import InvalidConfig
from adamix.files.manifest import Kind

# Steps of each way and round that come before the clock: the first ones allocate what later ones find.
UNCOUNTED_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of `adamix bench training`.

    Attributes:
        backbone: as of `adamix train`, or `random:SHAPE`: random weights of a true shape (`shapes.SHAPES`).
        method: of the adapters, at the sites that are the method's default.
        experts: M of the mixture; the others have the numbers of `ways.EXPERTS`.
        max_length: tokens of every row.
        steps: of each way in a round that are timed; two more come before them.
        rounds: turns that count, in each of which every way trains; one more before them takes the memory.
        threads: of the operators; 0 takes one per core.
    """

    backbone: str = "minilm"
    method: Kind = "bottleneck"
    rank: int = AdapterConfig.rank
    experts: int = MixtureConfig.num_experts
    batch_size: int = TrainConfig.batch_size
    max_length: int = 32
    steps: int = 6
    rounds: int = 7
    precision: str = TrainConfig.precision
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {"experts": (2, 64), "steps": (1, 10_000), "rounds": (1, 1000), "threads": (0, 1024)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidConfig(f"{name} must be in {low}..{high}, not {value}", field=name)
        # These check the rest.
        _ = self.adapter, self.train

    @property
    def adapter(self) -> AdapterConfig:
        """The adapter that every expert is a copy of."""
        return AdapterConfig.of(self.method, rank=self.rank)

    @property
    def train(self) -> TrainConfig:
        """The optimiser's settings, alike for every way."""
        return TrainConfig(
            max_steps=UNCOUNTED_STEPS + self.steps,
            batch_size=self.batch_size,
            max_length=self.max_length,
            precision=self.precision,  # type: ignore[arg-type]  # checked by the dataclass
            seed=self.seed,
        )

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))
