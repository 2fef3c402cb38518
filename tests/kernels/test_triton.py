"""The Triton ops against the fp64 reference, on a CUDA device or in Triton's interpreter."""

import pytest
import torch

from adamix_kernels import dispatch
from adamix_kernels.testing import assert_close, cast

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def on(device, tensors_or_weights, dtype=None):
    return [None if each is None else each for each in tensors_or_weights]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bottleneck(shape, dtype, make_batch, device):
    batch = make_batch(shape, dtype)
    x, weights = batch.x.to(device), cast(batch.bottlenecks, dtype, device)
    y = dispatch.bottleneck(x, batch.segments, weights, implementation="triton")
    wide = dispatch.bottleneck(x.double(), batch.segments, cast(weights, torch.float64, device), implementation="reference")
    assert_close(y, wide)
