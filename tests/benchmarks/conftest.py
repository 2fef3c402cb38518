"""What benchmarks change in their process goes back after each file of tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    """A benchmark sets the operators' threads for good, and how sums are rounded depends on their number."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
