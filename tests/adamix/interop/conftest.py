"""Tiny classifiers of every family, and rows for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adamix_testing import classifiers
from adamix_testing.classifiers import PAD, Classifier


@pytest.fixture
def make_classifier() -> Callable[..., Classifier]:
    return classifiers.make_classifier


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    """Padded token ids and their mask, both `[3, 7]`."""
    texts = [[5, 9, 12, 33, 7, 21, 3], [4, 30, 11, 2], [8, 8]]
    ids = torch.tensor([row + [PAD] * (7 - len(row)) for row in texts])
    return ids, (torch.arange(7) < torch.tensor([[len(row)] for row in texts])).long()
