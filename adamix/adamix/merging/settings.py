"""The settings of merging, each default written once. Plain data, checked when it is made."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from adamix.errors import InvalidConfig

Method = Literal["uniform", "weighted", "learned", "greedy", "fisher", "regmean", "ties", "dare"]
METHODS: tuple[Method, ...] = get_args(Method)
# Those that run the experts on text.
DATA_METHODS: tuple[Method, ...] = ("learned", "greedy", "fisher", "regmean")
# What their authors kept: arXiv 2306.01708 and 2311.03099.
DEFAULT_DENSITY: dict[Method, float] = {"ties": 0.2, "dare": 0.1}


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What the methods may be told; each reads its own.

    Attributes:
        density: share of an expert's changes that `ties` and `dare` keep; None: that of `DEFAULT_DENSITY`.
        max_rows: rows of the data that are used; of more, a random sample.
        batch_size: rows per forward pass.
        steps: optimiser steps of `learned`.
        learning_rate: of `learned`, for Adam on the logits of the weights.
        seed: of the sample of rows, the order of `learned`, the draws of `fisher` and `dare`.
    """

    density: float | None = None
    max_rows: int = 1000
    batch_size: int = 16
    steps: int = 100
    learning_rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.density is not None and not 0 < self.density <= 1:  # also false for a NaN
            raise InvalidConfig(f"density must be over 0 and at most 1, not {self.density}", field="density")
        for name, value, low, high in (
            ("max_rows", self.max_rows, 1, 10**9),
            ("batch_size", self.batch_size, 1, 65_536),
            ("steps", self.steps, 0, 10**7),
            ("learning_rate", self.learning_rate, 0.0, 10.0),
            ("seed", self.seed, 0, 2**32 - 1),
        ):
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidConfig(f"{name} must be in {low}..{high}, not {value}", field=name)
