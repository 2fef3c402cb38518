"""What all tests share: an environment without downloads or spinning threads, a tiny backbone, adapters for it.

Heavy libraries are imported inside the fixtures: tests of pure modules start in milliseconds.
"""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# What is imported stays. To look through it again and again costs a seventh of all imports, and a quarter of a second
# with each training, whose end collects garbage: until the tests begin nothing is collected, and what is there by then
# is never looked at again.
gc.disable()

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before anything imports Triton, which asks when a kernel is defined: without a device its interpreter runs kernels on
# the CPU; beside one the same tests run what the compiler makes of them. (To ask torch would take a second and a half.)
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts what runs in the background with Ctrl-C ignored, and a process hands that on to all it starts: tests
# that press Ctrl-C would wait for an end that does not come.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from adamix.adapter_file import AdapterFile
    from adamix.backbone import Backbone
    from adamix.manifest import BackboneSpec

# A busy machine makes any example slow now and then; how long a test takes is not what it tests.
settings.register_profile("adamix", deadline=None)
settings.load_profile("adamix")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


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


@pytest.fixture(scope="session")
def minilm_as_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged BERT's weights in a directory that says RoBERTa: positions begin at 1, and there is one token type.

    It computes what the BERT computes on single texts, so both families are tested on pretrained weights.
    """
    import torch
    from transformers import RobertaConfig, RobertaModel

    from adamix import backbone

    source = backbone.load("minilm").model
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = RobertaConfig(
        **{name: getattr(source.config, name) for name in (*sizes, "hidden_act", "layer_norm_eps")},
        max_position_embeddings=513,
        type_vocab_size=1,
        pad_token_id=0,
    )
    weights = source.state_dict()
    positions = weights["embeddings.position_embeddings.weight"]
    weights["embeddings.position_embeddings.weight"] = torch.cat([torch.zeros_like(positions[:1]), positions])
    weights["embeddings.token_type_embeddings.weight"] = weights["embeddings.token_type_embeddings.weight"][:1]
    body = RobertaModel(config, add_pooling_layer=False)
    body.load_state_dict(weights)
    directory = tmp_path_factory.mktemp("minilm-as-roberta")
    body.save_pretrained(directory)
    backbone.load_tokenizer("minilm").save_pretrained(directory)
    return directory
