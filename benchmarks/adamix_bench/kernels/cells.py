"""What is measured: the sizes of a batch, the bytes it has to move, and which sizes come first. Knows no torch.

Shapes: T rows, A adapters, H features, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from adamix.errors import InvalidConfig
from adamix_kernels.segments import Segments

ROWS = (1, 8, 32, 128, 512, 2048, 8192)
ADAPTERS = (1, 16, 64)
FEATURES = (384, 768, 1024, 4096)
RANKS = (8, 16, 64)
# One token for each of so many sequences, each with an adapter of its own.
DECODE = (1, 8, 32)
LONG_ROWS = 2048
# The sizes of BERT-base, and the paper's largest bottleneck that is common: what one looks at first.
USUAL_FEATURES, USUAL_RANK = 768, 64
# Natural logarithm of how uneven segments are: the largest of 16 is about five times the mean.
_SIGMA = 0.7


@dataclass(frozen=True, order=True)
class Cell:
    """One size of batch: T rows, divided among A adapters of rank R on H features."""

    rows: int
    adapters: int
    features: int
    rank: int

    def __str__(self) -> str:
        return f"T={self.rows} A={self.adapters} H={self.features} r={self.rank}"

    @property
    def is_decode(self) -> bool:
        return self.rows == self.adapters and self.rows in DECODE

    @property
    def is_long(self) -> bool:
        return self.rows >= LONG_ROWS

    @property
    def is_usual(self) -> bool:
        return self.features == USUAL_FEATURES and self.rank == USUAL_RANK

    def bytes_moved(self, itemsize: int) -> int:
        """What any way has to move: every row read and written once, the weights of every adapter read once."""
        weights = self.adapters * (2 * self.rank * self.features + self.rank + self.features)
        return itemsize * (2 * self.rows * self.features + weights)

    @property
    def flops(self) -> int:
        return 4 * self.rows * self.features * self.rank

    def lengths(self) -> list[int]:
        """Rows of each adapter: lognormal, at least one, the same in every run."""
        spare = self.rows - self.adapters
        weights = np.random.default_rng(0).lognormal(0.0, _SIGMA, self.adapters)
        ends = np.floor(np.cumsum(weights) / weights.sum() * spare + 0.5).astype(np.int64)
        return [1 + int(rows) for rows in np.diff(ends, prepend=0)]

    def segments(self) -> Segments:
        """Adapter a in slot a, from 1 on."""
        return Segments.from_lengths(range(1, self.adapters + 1), self.lengths())


QUICK = (Cell(1, 1, 64, 8), Cell(8, 8, 64, 16), Cell(32, 4, 96, 8))
# torch.compile unrolls a loop over segments, and takes long to: these have few.
COMPILED = (
    Cell(32, 1, 768, 64),
    Cell(128, 16, 768, 64),
    Cell(512, 16, 1024, 64),
    Cell(2048, 1, 768, 64),
    Cell(2048, 16, 768, 64),
    Cell(2048, 16, 4096, 64),
)


def grid() -> list[Cell]:
    """Every cell in order of importance: the usual sizes before others, the targets' before those between them."""
    pairs = [(t, a) for t, a in product(ROWS, ADAPTERS) if a <= t] + [(n, n) for n in DECODE]
    cells = [Cell(t, a, h, r) for (t, a), h, r in product(dict.fromkeys(pairs), FEATURES, RANKS)]
    return sorted(cells, key=_importance)


def _importance(cell: Cell) -> tuple[int, bool, Cell]:
    distance = (cell.features != USUAL_FEATURES) + (cell.rank != USUAL_RANK)
    return distance, not (cell.is_decode or cell.is_long), cell


@dataclass(frozen=True)
class Filter:
    """Which values of T, A, H and r are wanted; a letter that is not given admits all."""

    wanted: tuple[tuple[str, frozenset[int]], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """From `"T=1,8 H=768"`. Raises InvalidConfig."""
        wanted = []
        for part in text.split():
            letter, _, numbers = part.partition("=")
            if letter not in _FIELDS or not all(number.isdecimal() for number in numbers.split(",")):
                raise InvalidConfig(f"cells are chosen like 'T=1,8 A=1 H=768 r=64', not {part!r}", field="cells")
            wanted.append((_FIELDS[letter], frozenset(int(number) for number in numbers.split(","))))
        return cls(tuple(wanted))

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if all(getattr(cell, name) in values for name, values in self.wanted)]


_FIELDS = {"T": "rows", "A": "adapters", "H": "features", "r": "rank"}
