"""The adapter whose bytes are promised never to change, and ways to take its file apart and put it together wrongly."""

import json
from typing import Any

import numpy as np

from adamix.files.manifest import BackboneSpec, HeadSpec, Manifest, TrainingRecord
from adamix.files.tensors import Dtype, TensorData
from adamix_testing.manifests import make_manifest, make_spec

HIDDEN, INNER, RANK = 4, 6, 2


def golden_spec() -> BackboneSpec:
    """The backbone that the golden adapter belongs to."""
    return make_spec(
        fingerprint="0123456789abcdef" * 4,
        tokenizer_fingerprint="fedcba9876543210" * 4,
        hidden_size=HIDDEN,
        sites={
            "attn_out": (HIDDEN, HIDDEN),
            "mlp_in": (HIDDEN, INNER),
            "mlp_out": (INNER, HIDDEN),
            "attn_norm": (HIDDEN, HIDDEN),
            "mlp_norm": (HIDDEN, HIDDEN),
        },
    )


def golden_manifest() -> Manifest:
    """Every entry that the manifest of a classifier can have."""
    return make_manifest(
        golden_spec(),
        HeadSpec(
            type="classification",
            pooling="mean",
            dense="own",
            activation="tanh",
            num_labels=3,
            id2label={"0": "no", "1": "yes", "2": "naïve ☂"},
        ),
        scaling={"mlp_out": 1.0, "layers.1.mlp_norm": 0.5},
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
    """Weights in all three dtypes, at a linear and at a norm."""
    # A fixed bit generator, not default_rng: its stream is promised never to change.
    random = np.random.Generator(np.random.PCG64(20_240_501))
    shapes: dict[str, tuple[tuple[int, ...], Dtype]] = {
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


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The parsed header of a safetensors file, and what follows it."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: object, body: bytes) -> bytes:
    """The file of this header, whatever it is, and this body."""
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body
