from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adamix.files.adapter_file import encode
from adamix.files.manifest import BackboneSpec, Manifest, TrainingRecord
from adamix.files.tensors import TensorData
from adamix_server.frontend.control import metered_child
from adamix_testing.manifests import make_manifest, make_spec

HIDDEN, INNER, LAYERS = 8, 12, 2


@pytest.fixture(autouse=True)
def as_urgent_as_we(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that stands back waits for all tests that run beside this one."""
    monkeypatch.setattr(metered_child, "NICENESS", 0)


@pytest.fixture
def spec() -> BackboneSpec:
    return make_spec(
        hidden_size=HIDDEN, num_layers=LAYERS, sites={"mlp_out": (INNER, HIDDEN), "attn_out": (HIDDEN, HIDDEN)}
    )


@pytest.fixture
def manifest(spec: BackboneSpec) -> Manifest:
    return make_manifest(spec, training=TrainingRecord(method="adamix", num_experts=4))


@pytest.fixture
def tensors() -> dict[str, TensorData]:
    values = np.random.default_rng(0)
    shapes = {"head.out_proj.weight": (3, HIDDEN), "head.out_proj.bias": (3,)}
    for layer in range(LAYERS):
        shapes |= {
            f"layers.{layer}.mlp_out.down_proj.weight": (4, HIDDEN),
            f"layers.{layer}.mlp_out.down_proj.bias": (4,),
            f"layers.{layer}.mlp_out.up_proj.weight": (HIDDEN, 4),
            f"layers.{layer}.mlp_out.up_proj.bias": (HIDDEN,),
        }
    return {name: TensorData.from_float32(values.normal(size=shape)) for name, shape in shapes.items()}


@pytest.fixture
def valid(manifest: Manifest, tensors: dict[str, TensorData]) -> bytes:
    return encode(manifest, tensors)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes bytes to a file and returns its path."""

    def store(data: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return path

    return store
