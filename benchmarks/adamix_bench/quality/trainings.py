"""What is trained for each method of the comparison, and what of it is measured.

One training may give several methods: a mixture is measured merged, by random routes, by a fixed one and as an
ensemble. Knows configurations; neither data nor how anything is run.
"""

from dataclasses import dataclass, replace

from adamix.config import AdapterConfig, MixtureConfig

BOTTLENECK = AdapterConfig(kind="bottleneck", rank=16)
# As many parameters as the bottleneck: two sites of a layer instead of one.
LORA = AdapterConfig.of("lora", rank=8, alpha=16)
ADAMIX = MixtureConfig(num_experts=4, share="up", consistency=1.0)


@dataclass(frozen=True)
class Choice:
    """What the tuning chooses."""

    learning_rate: float
    steps: int


@dataclass(frozen=True)
class Training:
    """One way to train.

    Attributes:
        steps_factor: optimiser steps for each step of a mixture with two passes; 2 makes the compute of one pass equal.
        tuned_as: the training whose trials choose for this one too, so that the two differ in nothing else; None: it
            has trials of its own.
        shortest: take the fewest steps of the grid, whatever number was chosen.
    """

    adapter: AdapterConfig
    mixture: MixtureConfig
    steps_factor: int
    tuned_as: str | None = None
    shortest: bool = False


TRAININGS: dict[str, Training] = {
    "head": Training(AdapterConfig(sites=()), MixtureConfig.single(), 2),
    "single": Training(BOTTLENECK, MixtureConfig.single(), 1),
    "single-compute": Training(BOTTLENECK, MixtureConfig.single(), 2),
    "lora": Training(LORA, MixtureConfig.single(), 2),
    "adamix": Training(BOTTLENECK, ADAMIX, 1),
    "no-consistency": Training(BOTTLENECK, replace(ADAMIX, consistency=0.0), 2),
    "no-sharing": Training(BOTTLENECK, replace(ADAMIX, share="none"), 1),
    "same-start": Training(replace(BOTTLENECK, distinct_init=False), ADAMIX, 1),
    "m2": Training(BOTTLENECK, replace(ADAMIX, num_experts=2), 1),
    "m8": Training(BOTTLENECK, replace(ADAMIX, num_experts=8), 1),
    "shortest": Training(BOTTLENECK, ADAMIX, 1, tuned_as="adamix", shortest=True),
    "consistency-5": Training(BOTTLENECK, replace(ADAMIX, consistency=5.0), 1, tuned_as="adamix"),
    "rank-4": Training(replace(BOTTLENECK, rank=4), ADAMIX, 1, tuned_as="adamix"),
    "single-rank-4": Training(replace(BOTTLENECK, rank=4), MixtureConfig.single(), 2, tuned_as="single-compute"),
    "rank-64": Training(replace(BOTTLENECK, rank=64), ADAMIX, 1, tuned_as="adamix"),
    "single-rank-64": Training(replace(BOTTLENECK, rank=64), MixtureConfig.single(), 2, tuned_as="single-compute"),
}

# The trainings of the claim, which is about equal compute: how much of it there is, is tuned for both together.
PAIR = ("adamix", "single-compute")

# Method -> training. Those of "adamix" but `merged` are routes through the unmerged mixture.
METHODS: dict[str, str] = {
    "head": "head",
    "single": "single",
    "single-compute": "single-compute",
    "lora": "lora",
    "merged": "adamix",
    "random": "adamix",
    "fixed": "adamix",
    "ensemble": "adamix",
    "no-consistency": "no-consistency",
    "no-sharing": "no-sharing",
    "same-start": "same-start",
    "m2": "m2",
    "m8": "m8",
    "shortest": "shortest",
    "consistency-5": "consistency-5",
    "rank-4": "rank-4",
    "single-rank-4": "single-rank-4",
    "rank-64": "rank-64",
    "single-rank-64": "single-rank-64",
}
# Means of several draws.
ROUTED = ("random", "fixed")
