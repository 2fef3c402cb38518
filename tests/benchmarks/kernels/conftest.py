"""The kernels' benchmark runs here without a device: what is compiled on one is interpreted."""

import pytest
import torch


@pytest.fixture
def device() -> str:
    """Where kernels run: on the CUDA device, or by the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
