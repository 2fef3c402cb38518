"""Which parts of a decoder are exchanged: those that compute the same, and no others."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import FailedPrecondition
from adamix_kernels import native
from adamix_kernels.frozen_linear import FrozenLinear, is_available
from adamix_server.engine.frozen_decoder import AngleTable, FastGatedMlp, FastNorm, freeze_decoder
from adamix_testing.decoders import tiny_decoder

pytestmark = pytest.mark.skipif(not is_available(torch.float32), reason="this torch has no packed product")


def llama(**changes: Any) -> Backbone:
    sizes: dict[str, Any] = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    return backbones.from_language_model(LlamaForCausalLM(LlamaConfig(**sizes | changes)))


def freeze(backbone: Backbone, *, deterministic: bool = False) -> Counter[type[nn.Module]]:
    assert backbone.lm_head is not None
    frozen = freeze_decoder(
        backbone.model, backbone.lm_head, backbone.family, deterministic=deterministic, quantize="none"
    )
    return Counter(type(module) for module in (frozen.head, *backbone.model.modules()))


def test_everything_between_attention_is_exchanged_in_a_llama() -> None:
    kinds = freeze(llama())
    assert (kinds[FrozenLinear], kinds[FastNorm], kinds[FastGatedMlp], kinds[AngleTable]) == (15, 5, 2, 1)
    assert not kinds[nn.Linear]


def test_norms_of_heads_are_norms() -> None:
    assert freeze(tiny_decoder("qwen3"))[FastNorm] == 9


def test_a_feed_forward_with_another_activation_stays() -> None:
    kinds = freeze(llama(hidden_act="gelu"))
    assert (kinds[FrozenLinear], kinds[FastNorm], kinds[FastGatedMlp]) == (15, 5, 0)
    if native.load() is not None:
        with pytest.raises(FailedPrecondition, match="gated feed-forwards"):
            freeze(llama(hidden_act="gelu"), deterministic=True)


def test_the_projections_of_gpt2_stay() -> None:
    kinds = freeze(tiny_decoder("gpt2"))
    assert kinds[FrozenLinear] == 1  # its language-model head
    assert not kinds[AngleTable]


def test_angles_are_those_of_the_model_whatever_was_asked_before() -> None:
    rotary = llama().model.get_submodule("rotary_emb")
    table, x = AngleTable(rotary), torch.zeros(1, 1, 16)
    for positions in ([[3]], [[0, 7, 2]], [[1030, 511, 512]], [[40]]):
        expected = rotary(x, torch.tensor(positions))
        for actual, wanted in zip(table(x, torch.tensor(positions)), expected, strict=True):
            torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=0)
