"""Requests that come at once: prompts of random tokens, each with its own number of tokens to be generated. Greedy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

# Tokens of a prompt, and generated ones: the lowest and the highest, both included, with one mean.
PROMPT_TOKENS = (16, 112)
NEW_TOKENS = (32, 96)
MEAN_TOKENS = 64
# The first ids of most vocabularies are special.
_FIRST_ID = 3


@dataclass(frozen=True)
class Workload:
    """So many requests.

    Attributes:
        prompts: token ids of each.
        new_tokens: how many are generated for each, whatever they are.
    """

    prompts: Sequence[Sequence[int]]
    new_tokens: Sequence[int]

    @classmethod
    def draw(cls, concurrency: int, vocab_size: int, seed: int) -> Self:
        """The same for every way. One request alone has the mean lengths."""
        lengths, ids = np.random.default_rng([seed, concurrency]), np.random.default_rng([seed, concurrency, 1])
        if concurrency == 1:
            prompt_tokens, new_tokens = [MEAN_TOKENS], [MEAN_TOKENS]
        else:
            prompt_tokens, new_tokens = (
                lengths.integers(low, high + 1, concurrency).tolist() for low, high in (PROMPT_TOKENS, NEW_TOKENS)
            )
        return cls([ids.integers(_FIRST_ID, vocab_size, count).tolist() for count in prompt_tokens], new_tokens)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_new_tokens(self) -> int:
        return sum(self.new_tokens)

    def first(self, count: int) -> "Workload":
        """The first requests alone."""
        return Workload(self.prompts[:count], self.new_tokens[:count])
