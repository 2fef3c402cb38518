"""What all tests share: an environment without downloads or spinning threads, a tiny backbone, adapters for it.

Heavy libraries are imported inside the fixtures: tests of pure modules start in milliseconds.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from adamix.adapter_file import AdapterFile
    from adamix.backbone import Backbone
    from adamix.manifest import BackboneSpec

# A busy machine makes any example slow now and then; how long a test takes is not what it tests.
settings.register_profile("adamix", deadline=None)
settings.load_profile("adamix")


@pytest.fixture
def make_backbone() -> "Callable[[], Backbone]":
    """Every call returns the same weights in a new module tree: runners take their backbone over."""

    def make() -> "Backbone":
        import torch
        from transformers import BertConfig, BertModel

        from adamix import backbone

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            attn_implementation="sdpa",
        )
        return backbone.from_model(BertModel(config))

    return make


@pytest.fixture
def make_adapter(make_backbone: "Callable[[], Backbone]") -> "Callable[..., AdapterFile]":
    import numpy as np

    from adamix import adapter_file
    from adamix.adapter_file import TensorData
    from adamix.manifest import BackboneRef, HeadSpec, Manifest, TrainingRecord

    tiny = make_backbone().spec

    def make(
        seed: int,
        kind: str = "bottleneck",
        sites: tuple[str, ...] = ("mlp_out",),
        rank: int = 4,
        num_labels: int = 3,
        pooling: str = "mean",
        dense: str = "none",
        spec: "BackboneSpec" = tiny,
    ) -> "AdapterFile":
        random = np.random.default_rng(seed)

        def normal(*shape: int) -> "TensorData":
            return TensorData.from_float32(random.normal(0, 0.3, shape))

        tensors = {}
        for layer in range(spec.num_layers):
            for site in sites:
                width_in, width_out = spec.sites[site]
                name = f"layers.{layer}.{site}."
                if kind == "lora":
                    tensors[name + "lora_A"] = normal(rank, width_in)
                    tensors[name + "lora_B"] = normal(width_out, rank)
                else:
                    tensors[name + "down_proj.weight"] = normal(rank, width_out)
                    tensors[name + "down_proj.bias"] = normal(rank)
                    tensors[name + "up_proj.weight"] = normal(width_out, rank)
                    tensors[name + "up_proj.bias"] = normal(width_out)
        if dense == "own":
            tensors["head.dense.weight"] = normal(spec.hidden_size, spec.hidden_size)
            tensors["head.dense.bias"] = normal(spec.hidden_size)
        tensors["head.out_proj.weight"] = normal(num_labels, spec.hidden_size)
        tensors["head.out_proj.bias"] = normal(num_labels)
        manifest = Manifest(
            kind=kind,  # type: ignore[arg-type]
            activation="identity" if kind == "lora" else "gelu",
            scaling=0.5,
            backbone=BackboneRef(
                model_type=spec.model_type,
                fingerprint=spec.fingerprint,
                tokenizer_fingerprint=spec.tokenizer_fingerprint,
                pooler_fingerprint=spec.pooler_fingerprint,
                hidden_size=spec.hidden_size,
                num_layers=spec.num_layers,
                name=spec.name,
            ),
            head=HeadSpec(
                type="classification" if num_labels > 1 else "regression",
                pooling=pooling,  # type: ignore[arg-type]
                dense=dense,  # type: ignore[arg-type]
                num_labels=num_labels,
                activation="tanh" if dense == "own" else None,
            ),
            max_length=32,
            training=TrainingRecord(method="random"),
        )
        return adapter_file.decode(adapter_file.encode(manifest, tensors))

    return make
