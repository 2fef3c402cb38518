"""One small adapter that has everything, and ways to make files that are wrong in one place."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adamix import adapter_file
from adamix.adapter_file import TensorData
from adamix.manifest import BackboneRef, BackboneSpec, HeadSpec, Manifest, TrainingRecord

HIDDEN, INNER, RANK = 4, 6, 2


def golden_manifest() -> Manifest:
    return Manifest(
        kind="bottleneck",
        activation="gelu",
        scaling={"mlp_out": 1.0, "layers.1.mlp_norm": 0.5},
        backbone=BackboneRef(
            model_type="bert",
            fingerprint="0123456789abcdef" * 4,
            tokenizer_fingerprint="fedcba9876543210" * 4,
            hidden_size=HIDDEN,
            num_layers=2,
            name="tiny",
        ),
        head=HeadSpec(
            type="classification",
            pooling="mean",
            dense="own",
            activation="tanh",
            num_labels=3,
            id2label={"0": "no", "1": "yes", "2": "naïve ☂"},
        ),
        max_length=64,
        training=TrainingRecord(
            method="adamix",
            num_experts=4,
            share="up",
            consistency=1.0,
            seed=7,
            data="golden",
            metrics={"accuracy": 0.5},
        ),
    )


def golden_tensors() -> dict[str, TensorData]:
    # A fixed bit generator, not default_rng: its stream is promised never to change.
    random = np.random.Generator(np.random.PCG64(20_240_501))
    shapes: dict[str, tuple[tuple[int, ...], adapter_file.Dtype]] = {
        "layers.0.mlp_out.down_proj.weight": ((RANK, HIDDEN), "F32"),
        "layers.0.mlp_out.down_proj.bias": ((RANK,), "F32"),
        "layers.0.mlp_out.up_proj.weight": ((HIDDEN, RANK), "F32"),
        "layers.0.mlp_out.up_proj.bias": ((HIDDEN,), "F32"),
        "layers.1.mlp_norm.down_proj.weight": ((1, HIDDEN), "F16"),
        "layers.1.mlp_norm.up_proj.weight": ((HIDDEN, 1), "BF16"),
        "head.dense.weight": ((HIDDEN, HIDDEN), "BF16"),
        "head.dense.bias": ((HIDDEN,), "F32"),
        "head.out_proj.weight": ((3, HIDDEN), "F32"),
        "head.out_proj.bias": ((3,), "F16"),
    }
    return {
        name: TensorData.from_float32(random.integers(-4096, 4096, shape).astype(np.float32) / 4096, dtype)
        for name, (shape, dtype) in shapes.items()
    }


@pytest.fixture
def manifest() -> Manifest:
    return golden_manifest()


@pytest.fixture
def tensors() -> dict[str, TensorData]:
    return golden_tensors()


@pytest.fixture
def spec() -> BackboneSpec:
    """The backbone that the golden adapter belongs to."""
    back = golden_manifest().backbone
    return BackboneSpec(
        **{name: getattr(back, name) for name in back.__struct_fields__},
        sites={"attn_out": (HIDDEN, HIDDEN), "mlp_in": (HIDDEN, INNER), "mlp_out": (INNER, HIDDEN)}
        | {"attn_norm": (HIDDEN, HIDDEN), "mlp_norm": (HIDDEN, HIDDEN)},
        vocab_size=64,
        max_tokens=64,
    )


Parts = tuple[dict[str, Any], bytes]


def split(data: bytes) -> Parts:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: Any, body: bytes, *, text: str | None = None) -> bytes:
    encoded = (json.dumps(header) if text is None else text).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


@pytest.fixture
def crafted(manifest: Manifest, tensors: dict[str, TensorData]) -> Callable[..., bytes]:
    """`crafted(edit)` gives the golden adapter's bytes after `edit(header)` changed or replaced its header."""

    def craft(edit: Callable[[dict[str, Any]], Any] = lambda header: None) -> bytes:
        header, body = split(adapter_file.encode(manifest, tensors))
        replaced = edit(header)
        return join(header if replaced is None else replaced, body)

    return craft


@pytest.fixture
def with_manifest(manifest: Manifest, tensors: dict[str, TensorData]) -> Callable[..., bytes]:
    """`with_manifest(edit)` gives the golden adapter's bytes after `edit(manifest_json)`."""

    def craft(edit: Callable[[dict[str, Any]], Any]) -> bytes:
        value = manifest.to_json()
        edit(value)
        header, body = split(adapter_file.encode(manifest, tensors))
        header["__metadata__"]["manifest"] = json.dumps(value)
        return join(header, body)

    return craft
