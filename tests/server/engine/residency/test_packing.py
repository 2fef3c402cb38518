"""Packing an adapter in the dtype a server computes in."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.tensors import TensorData
from adamix_server.engine.residency.packing import pack


def test_values_that_the_compute_dtype_cannot_hold_are_refused(make_adapter: Callable[..., AdapterFile]) -> None:
    """The output layer of a regression is in units of its target, which may be large."""
    adapter = make_adapter(1, num_labels=1)
    bias = TensorData.from_float32(np.array([-260_000.0]))
    prices = adapter_file.decode(adapter_file.encode(adapter.manifest, adapter.tensors | {"head.out_proj.bias": bias}))
    for dtype in (torch.float32, torch.bfloat16):
        packed = pack(prices, dtype)
        offset = packed.pieces["head.out_proj.bias"].offset
        assert float(packed.data[offset]) == pytest.approx(-260_000.0, rel=1e-2)
    with pytest.raises(InvalidAdapter, match=r"head\.out_proj\.bias has values beyond float16") as caught:
        pack(prices, torch.float16)
    assert caught.value.reason == "NON_FINITE"
    assert torch.isfinite(pack(adapter, torch.float16).data).all()
