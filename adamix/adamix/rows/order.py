"""Tokenised rows as a data set of torch, and the order in which epochs go through them.

Knows nothing of experts, losses or steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from adamix.rows.labelled import TokenRow, collate

# Rows are sorted by length inside blocks of so many batches: wide enough to save padding, narrow enough that batches
# differ from epoch to epoch.
_BATCHES_PER_BLOCK = 8


@dataclass(frozen=True)
class Rows(Dataset[int]):
    """Tokenised training rows and their targets. Items are row numbers; `batch` turns numbers into tensors."""

    tokens: Sequence[TokenRow]
    targets: Tensor
    pad_id: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.tokens]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`collate`'s tensors and the `targets` of some rows."""
        chosen = collate([self.tokens[index] for index in indices], self.pad_id)
        return {**chosen, "targets": self.targets[list(indices)]}


class EpochOrder(Sampler[int]):
    """A random order of rows that depends on the seed and the epoch alone, so that a resumed run finds its place.

    Args:
        lengths: tokens of each row.
        batch_size: rows of one optimiser step; with `group_by_length` rows of like length share a batch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, group_by_length: bool) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._group_by_length = group_by_length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order: list[int] = torch.randperm(len(self), generator=generator).tolist()
        return iter(self._grouped(order, generator) if self._group_by_length else order)

    def _grouped(self, order: list[int], generator: torch.Generator) -> list[int]:
        size, block = self._batch_size, self._batch_size * _BATCHES_PER_BLOCK
        for start in range(0, len(order), block):
            order[start : start + block] = sorted(order[start : start + block], key=lambda i: -self._lengths[i])
        # Only whole batches change places: the last, shorter one would shift the borders of all that follow it.
        whole = len(order) // size
        places = torch.randperm(whole, generator=generator).tolist()
        return [row for k in places for row in order[k * size : (k + 1) * size]] + order[whole * size :]
