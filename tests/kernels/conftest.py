"""Fixtures of the op tests: one batch per awkward shape, with weights for its slots."""

from dataclasses import dataclass

import pytest
import torch

from adamix_kernels.segments import Segments
from adamix_kernels.testing import ODD_SHAPES, BatchShape, WeightMaker

FEATURES, OUT_FEATURES = 48, 80


@dataclass(frozen=True)
class Batch:
    """Packed rows x [T, 48] and y [T, 80] and, for each slot, a bottleneck on x and a LoRA from x to y."""

    x: torch.Tensor
    y: torch.Tensor
    segments: Segments
    bottlenecks: list
    loras: list

    @property
    def identity_rows(self) -> torch.Tensor:
        """bool [T]: rows that no adapter may touch."""
        slots = torch.repeat_interleave(
            torch.from_numpy(self.segments.slots.copy()).long(), torch.from_numpy(self.segments.lengths.copy())
        )
        return torch.tensor([weights is None for weights in self.bottlenecks])[slots]


def build_batch(shape: BatchShape, dtype: torch.dtype) -> Batch:
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Beside a device, whatever runs kernels is a test of the device: `make gpu` runs it."""
    if torch.cuda.is_available():
        for item in items:
            if "device" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> str:
    """Where kernels run: on the CUDA device, or by the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def make_batch():
    return build_batch


@pytest.fixture(params=ODD_SHAPES.values(), ids=ODD_SHAPES.keys())
def shape(request) -> BatchShape:
    return request.param
