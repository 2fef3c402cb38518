"""The kernels' benchmark runs here without a device: what is compiled on one is interpreted."""

import os

import pytest
import torch

# Read when a kernel is defined; as in tests/kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> str:
    """Where kernels run: on the CUDA device, or by the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
