"""What is asked: lengths, tasks, arrival times and texts, all from a seed. Pure numpy; no model, no clock, no wire.

Shares of requests by task follow four popularities: `distinct` gives every task its turn, `uniform` draws each alike,
`zipf` gives the k-th task a share in proportion to 1/k, `identical` asks one task alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adamix_bench.serving.settings import Popularity

ZIPF_EXPONENT = 1.0

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Lengths:
    """Tokens of a request, special ones included: lognormal, cut to `shortest`..`longest`."""

    median: float = 20.0
    sigma: float = 0.7
    shortest: int = 4
    longest: int = 128

    def draw(self, count: int, random: np.random.Generator) -> Ints:
        """int64 `[count]`."""
        values = np.rint(random.lognormal(np.log(self.median), self.sigma, count))
        return np.clip(values, self.shortest, self.longest).astype(np.int64)


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival.

    Attributes:
        tasks: index of each request's task.
        texts: what is sent over the wire.
        token_ids: int32 arrays, what the texts become; special tokens included.
    """

    tasks: tuple[int, ...]
    texts: tuple[str, ...]
    token_ids: tuple[NDArray[np.int32], ...]

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.token_ids]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def batches(self, token_budget: int) -> list[list[int]]:
        """Indices of the requests of each batch: in order of arrival, cut where the budget of tokens is full."""
        found: list[list[int]] = [[]]
        room = token_budget
        for index, length in enumerate(self.lengths):
            if length > room and found[-1]:
                found.append([])
                room = token_budget
            found[-1].append(index)
            room -= length
        return found

    def with_tasks(self, tasks: Ints) -> "Requests":
        """The same texts asked of other tasks."""
        return Requests(tuple(map(int, tasks)), self.texts, self.token_ids)


def draw_tasks(popularity: Popularity, count: int, num_tasks: int, random: np.random.Generator) -> Ints:
    """int64 `[count]`: the task of each request, in 0..num_tasks-1."""
    if popularity == "identical":
        return np.zeros(count, np.int64)
    if popularity == "distinct":
        return np.resize(random.permutation(num_tasks), count)
    if popularity == "uniform":
        return random.integers(0, num_tasks, count)
    shares = np.arange(1, num_tasks + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    return random.choice(num_tasks, count, p=shares / shares.sum())


def draw_arrivals(rate: float, cv: float, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Seconds from the start at which each of `count` calls is due.

    Args:
        rate: calls a second.
        cv: coefficient of variation of the times between calls, which are Gamma: 1 is a Poisson process, 0 a metronome,
            more comes in bursts.
    """
    if cv == 0:
        return np.arange(1, count + 1) / rate
    shape = cv**-2
    return np.cumsum(random.gamma(shape, 1 / (rate * shape), count))


def draw_texts(
    words: Sequence[str], lengths: Sequence[int], num_special: int, random: np.random.Generator
) -> list[str]:
    """Texts of as many words as make so many tokens; each of `words` is one token.

    Args:
        lengths: tokens of each text, of which `num_special` are added by the tokenizer.
    """
    return [" ".join(words[i] for i in random.integers(0, len(words), length - num_special)) for length in lengths]
