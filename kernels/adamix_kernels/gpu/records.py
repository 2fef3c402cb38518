"""Where each slot's weights lie, in the form the kernels read: one record of eight 64-bit numbers for each slot.

    0 down   1 down_bias   2 up   3 up_bias   4 rank   5 activation   6 scale   7 -

The first four are offsets in elements from one base tensor, negative where an adapter has no such bias. The base is the
arena the weights were loaded into; but an offset is a difference of addresses, so weights that lie elsewhere on the
device are described as well. Rank 0 is the identity. The scale is the bits of an fp32 number.

A record is a function of addresses and shapes, not of values: it is written when weights move, and a batch reads it
where it lies. Knows no Triton.

Shapes: S slots (0 included).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamix_kernels.weights import BottleneckWeights, LoraWeights, LowRank

FIELDS, RANK = 8, 4
ABSENT = -8
ALIGNMENT_BYTES = 16
CODES = {"identity": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "silu": 4, "tanh": 5}

Adapter = BottleneckWeights | LoraWeights
W = TypeVar("W", BottleneckWeights, LoraWeights)


@dataclass(frozen=True, eq=False)
class Records:
    """The adapters of one site as the kernels take them.

    Attributes:
        base: any tensor of the weights' dtype on their device; offsets count from its first element.
        table: int64 [S, 8] on the device.
        ranks: int32 [S] on the host; 0 for slots without weights.
        features: (in, out) of every adapter here; None while there is none.
        kept: copies that were made because weights did not lie as the kernels need them.
    """

    base: Tensor
    table: Tensor
    ranks: NDArray[np.int32]
    features: tuple[int, int] | None
    kept: tuple[Tensor, ...] = ()


class SlotTable(Sequence[W | None], Generic[W]):
    """The weights of one site by slot, with their records on the device beside them: no work is left for a batch.

    `dispatch` takes it as `weights`; implementations without kernels see a sequence like any other.

    Args:
        table: int64 [S, 8] of zeros on the device. Setting a slot does not write there, for whoever loads an adapter
            has records of many sites to write at once: see `record`.
        base: the arena. The weights set here must have its dtype and device.
    """

    def __init__(self, table: Tensor, base: Tensor) -> None:
        self._weights: list[W | None] = [None] * len(table)
        self.records = Records(base, table, np.zeros(len(table), np.int32), None)

    def __len__(self) -> int:
        return len(self._weights)

    @overload
    def __getitem__(self, index: int) -> W | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[W | None]: ...
    def __getitem__(self, index: int | slice) -> W | list[W | None] | None:
        return self._weights[index]

    def __setitem__(self, slot: int, weights: W | None) -> None:
        """Set or clear (None) a slot's weights on the host.

        Raises:
            ValueError: as `record_of`, or the weights' features are not those of the slots set before.
        """
        rank = record_of(None if weights is None else weights.low_rank, self.records.base)[RANK]
        features = _features_of([weights]) or self.records.features
        if self.records.features not in (None, features):
            raise ValueError(f"a slot's features (in, out) {features} are not the site's {self.records.features}")
        self.records = replace(self.records, features=features)
        self._weights[slot] = weights
        self.records.ranks[slot] = rank

    def record(self, slot: int) -> list[int]:
        """What `table[slot]` must hold before a batch uses the slot."""
        weights = self._weights[slot]
        return record_of(None if weights is None else weights.low_rank, self.records.base)


def records_of(weights: Sequence[Adapter | None]) -> Records | None:
    """The records of weights that lie anywhere on one device; None if no slot has any.

    A `SlotTable` has its own; for another sequence they are made here, which takes a copy to the device.

    Raises:
        ValueError: features, dtypes or devices differ.
    """
    if isinstance(weights, SlotTable):
        return weights.records
    features = _features_of(weights)
    return None if features is None else replace(described(weights), features=features)


def described(weights: Sequence[Adapter | None]) -> Records:
    """`records_of` adapters of any features, some of which have weights."""
    placed = [None if each is None else _placed(each.low_rank) for each in weights]
    tensors = [tensor for adapter in placed if adapter is not None for tensor in _tensors(adapter)]
    # Offsets count up from the base: below it lies nothing.
    base = min(tensors, key=Tensor.data_ptr)
    rows = [record_of(adapter, base) for adapter in placed]
    table = torch.tensor(rows, dtype=torch.int64)
    if base.is_cuda:
        table = table.pin_memory().to(base.device, non_blocking=True)
    return Records(base, table, np.array([row[RANK] for row in rows], np.int32), None, tuple(tensors))


def record_of(adapter: LowRank | None, base: Tensor) -> list[int]:
    """The record of an adapter whose weights lie at fixed addresses.

    Raises:
        ValueError: a tensor does not begin on 16 bytes, is not contiguous, or has another dtype or device than `base`.
    """
    if adapter is None:
        return [0] * FIELDS
    biases = (adapter.down_bias, adapter.up_bias)
    down_bias, up_bias = (ABSENT if bias is None else offset(bias, base) for bias in biases)
    scale = struct.unpack("<i", struct.pack("<f", adapter.scale))[0]
    code = CODES[adapter.activation]
    places = (offset(adapter.down, base), down_bias, offset(adapter.up, base), up_bias)
    return [*places, len(adapter.down), code, scale, 0]


def offset(tensor: Tensor, base: Tensor) -> int:
    """Elements from the beginning of `base` to that of `tensor`. Raises ValueError as `record_of`."""
    if tensor.dtype != base.dtype or tensor.device != base.device:
        raise ValueError(
            f"weights are {tensor.dtype} on {tensor.device}; the batch needs {base.dtype} on {base.device}"
        )
    if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT_BYTES:
        raise ValueError("weights must be contiguous and begin on 16 bytes")
    distance = tensor.data_ptr() - base.data_ptr()
    if distance % ALIGNMENT_BYTES:
        raise ValueError("the arena does not begin on 16 bytes")
    # The kernels read a negative offset of a bias as "none": such a tensor lies before the base.
    if distance < 0:
        raise ValueError("weights lie before the base of the table")
    return distance // base.element_size()


def _features_of(weights: Sequence[Adapter | None]) -> tuple[int, int] | None:
    found = {(each.low_rank.down.shape[1], each.low_rank.up.shape[1]) for each in weights if each is not None}
    if len(found) > 1:
        raise ValueError(f"adapters of one site differ in their features (in, out): {sorted(found)}")
    return next(iter(found), None)


def _tensors(adapter: LowRank) -> list[Tensor]:
    every = (adapter.down, adapter.down_bias, adapter.up, adapter.up_bias)
    return [tensor for tensor in every if tensor is not None]


def _placed(adapter: LowRank) -> LowRank:
    """The adapter with each tensor contiguous and on 16 bytes: itself, or with copies of those that are not."""

    def placed(tensor: Tensor) -> Tensor:
        lies_well = tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT_BYTES == 0
        return tensor if lies_well else tensor.clone(memory_format=torch.contiguous_format)

    biases = (None if bias is None else placed(bias) for bias in (adapter.down_bias, adapter.up_bias))
    down_bias, up_bias = biases
    return replace(adapter, down=placed(adapter.down), down_bias=down_bias, up=placed(adapter.up), up_bias=up_bias)
