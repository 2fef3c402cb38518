"""What all tests share: an environment without downloads or spinning threads, a tiny backbone, adapters for it.

Heavy libraries are imported inside the fixtures: tests of pure modules start in milliseconds.
"""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import pytest
from hypothesis import settings

# What is imported stays. To look through it again and again costs a seventh of all imports, and a quarter of a second
# with each training, whose end collects garbage: until the tests begin nothing is collected, and what is there by then
# is never looked at again.
gc.disable()

# What it asserts is explained as what tests assert.
pytest.register_assert_rewrite("adamix_testing")

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
    from adamix.backbones.backbone import Backbone
    from adamix.files.adapter_file import AdapterFile
    from adamix.files.manifest import BackboneSpec
    from adamix_testing.adapters import AdapterShape, MakeRandomAdapter

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
        from adamix.backbones import backbone
        from adamix_testing.bodies import tiny_bert

        return backbone.from_model(tiny_bert(attn_implementation="sdpa"))

    return make


@pytest.fixture
def make_adapter(make_backbone: "Callable[[], Backbone]") -> "MakeRandomAdapter":
    """(seed, …) -> an adapter of `make_backbone`'s backbone, or of the `spec` that is given."""
    from adamix_testing.adapters import random_adapter

    tiny = make_backbone().spec

    def make(seed: int, *, spec: "BackboneSpec" = tiny, **shape: "Unpack[AdapterShape]") -> "AdapterFile":
        return random_adapter(spec, seed, **shape)

    return make


@pytest.fixture(scope="session")
def minilm_as_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged BERT's weights in a directory that says RoBERTa: positions begin at 1, and there is one token type.

    It computes what the BERT computes on single texts, so both families are tested on pretrained weights.
    """
    import torch
    from transformers import RobertaConfig, RobertaModel

    from adamix.backbones import backbone

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
