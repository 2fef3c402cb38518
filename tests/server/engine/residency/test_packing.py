"""Packing an adapter in the dtype a server computes in."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.tensors import TensorData, read_sizes
from adamix_server.blobs.packed_size import packed_bytes
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_size_is_known_from_its_tensors_alone(make_adapter: Callable[..., AdapterFile], dtype: torch.dtype) -> None:
    """By which a front end refuses what no arena of this server could hold."""
    for adapter in (make_adapter(1, rank=3), make_adapter(2, kind="lora", dense="own", num_labels=7)):
        sizes = [tensor.array.size for tensor in adapter.tensors.values()]
        assert packed_bytes(sizes, dtype.itemsize) == pack(adapter, dtype).num_bytes
        assert sorted(read_sizes(adapter_file.encode(adapter.manifest, adapter.tensors))) == sorted(sizes)
