"""Batches for the ops of the kernels, with weights for their slots. Knows neither the method nor a model library."""

from dataclasses import dataclass

import torch

from adamix_kernels.segments import Segments
from adamix_kernels.testing import BatchShape, WeightMaker
from adamix_kernels.weights import BottleneckWeights, LoraWeights

FEATURES, OUT_FEATURES = 48, 80


@dataclass(frozen=True)
class Batch:
    """Packed rows x [T, 48] and y [T, 80] and, for each slot, a bottleneck on x and a LoRA from x to y."""

    x: torch.Tensor
    y: torch.Tensor
    segments: Segments
    bottlenecks: list[BottleneckWeights | None]
    loras: list[LoraWeights | None]

    @property
    def identity_rows(self) -> torch.Tensor:
        """bool [T]: rows that no adapter may touch."""
        slots = torch.repeat_interleave(
            torch.from_numpy(self.segments.slots.copy()).long(), torch.from_numpy(self.segments.lengths.copy())
        )
        return torch.tensor([weights is None for weights in self.bottlenecks])[slots]


def build_batch(shape: BatchShape, dtype: torch.dtype) -> Batch:
    """Random rows and weights; activation, scale and biases differ from slot to slot."""
    maker = WeightMaker(dtype=dtype)
    bottlenecks, loras = [], []
    for slot, rank in enumerate(shape.ranks):
        scale = (1.0, 0.5)[slot % 2]
        activation = ("gelu", "silu")[slot % 3 == 2]
        biases = slot % 4 != 3
        bottlenecks.append(
            maker.bottleneck(rank, FEATURES, scale=scale, activation=activation, biases=biases) if rank else None
        )
        loras.append(maker.lora(rank, FEATURES, OUT_FEATURES, scale=scale) if rank else None)
    segments = shape.segments
    rows = segments.num_rows
    return Batch(maker.rows(rows, FEATURES), maker.rows(rows, OUT_FEATURES), segments, bottlenecks, loras)
