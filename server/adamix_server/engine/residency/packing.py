"""An adapter laid out for the arena: one flat array in the compute dtype, and where each tensor lies in it.

Both projections are stored `[rank, features]`, so that every kernel reads along the features; each tensor starts on a
128-byte boundary (`blobs/packed_size.py`). The head lies in the same array: loading an adapter is one copy.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from adamix.errors import InvalidAdapter
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import Manifest
from adamix_kernels.weights import BottleneckWeights, HeadWeights, LoraWeights
from adamix_server.blobs.packed_size import padded

# Tensors whose file layout is [features, rank]: transposed once, here.
_TRANSPOSED = ("up_proj.weight", "lora_B")


@dataclass(frozen=True)
class Piece:
    """One tensor inside the array; `offset` counts elements."""

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter as the ops take it: the weights at each site, and the head."""

    sites: dict[tuple[int, str], BottleneckWeights | LoraWeights]
    head: HeadWeights


@dataclass(frozen=True)
class PackedAdapter:
    """A packed adapter in host memory. `data` is 1-D and never written again."""

    digest: str
    manifest: Manifest
    data: torch.Tensor
    pieces: dict[str, Piece]
    sites: tuple[tuple[int, str], ...]

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    @cached_property
    def weights(self) -> AdapterWeights:
        """Views of `data` itself."""
        return self.weights_in(self.data)

    def weights_in(self, extent: torch.Tensor) -> AdapterWeights:
        """Views of `extent`, a copy of `data` somewhere else."""
        tensors = {
            name: extent[piece.offset :][: math.prod(piece.shape)].view(piece.shape)
            for name, piece in self.pieces.items()
        }
        head = HeadWeights(
            dense=tensors.get("head.dense.weight"),
            dense_bias=tensors.get("head.dense.bias"),
            activation=self.manifest.head.activation,
            out=tensors.get("head.out_proj.weight"),
            out_bias=tensors.get("head.out_proj.bias"),
        )
        return AdapterWeights({at: self._site_weights(*at, tensors) for at in self.sites}, head)

    def _site_weights(self, layer: int, site: str, tensors: dict[str, torch.Tensor]) -> BottleneckWeights | LoraWeights:
        prefix, scale = f"layers.{layer}.{site}.", self.manifest.scale(layer, site)
        if self.manifest.kind == "lora":
            return LoraWeights(a=tensors[prefix + "lora_A"], b=tensors[prefix + "lora_B"], scale=scale)
        return BottleneckWeights(
            down=tensors[prefix + "down_proj.weight"],
            down_bias=tensors.get(prefix + "down_proj.bias"),
            up=tensors[prefix + "up_proj.weight"],
            up_bias=tensors.get(prefix + "up_proj.bias"),
            scale=scale,
            activation=self.manifest.activation,
        )


def pack(adapter: AdapterFile, dtype: torch.dtype, *, pin_memory: bool = False) -> PackedAdapter:
    """Lay an adapter out for an arena of `dtype`.

    Args:
        pin_memory: page-lock the array, so that the copy to a CUDA device can run beside computation.

    Raises:
        InvalidAdapter: a value is larger than `dtype` can hold (`NON_FINITE`).
    """
    pieces: dict[str, Piece] = {}
    end = 0
    for name, tensor in adapter.tensors.items():
        shape = tensor.shape[::-1] if name.endswith(_TRANSPOSED) else tensor.shape
        pieces[name] = Piece(end, shape)
        end += padded(tensor.array.size, dtype.itemsize)
    largest = torch.finfo(dtype).max
    data = torch.zeros(end, dtype=dtype, pin_memory=pin_memory)
    for name, piece in pieces.items():
        values = adapter.tensors[name].to_float32()
        if name.endswith(_TRANSPOSED):
            values = np.ascontiguousarray(values.T)
        # What a file may hold fits fp32 and bf16; the output layer of a regression may be too large for fp16.
        if max(values.max(), -values.min()) > largest:
            raise InvalidAdapter(
                f"{name} has values beyond {str(dtype).removeprefix('torch.')}, in which this server computes",
                reason="NON_FINITE",
            )
        data[piece.offset : piece.offset + values.size] = torch.from_numpy(values.reshape(-1))
    return PackedAdapter(adapter.digest, adapter.manifest, data, pieces, tuple(adapter.sites()))
