"""Tiny random classifiers of every family, as the libraries that adapt them get them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone

PAD = 1
_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,
    "num_labels": 3,
}
_CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "bert": lambda **given: BertConfig(**_SIZES | given),
    "roberta": lambda **given: RobertaConfig(**_SIZES | {"type_vocab_size": 1} | given),
    "distilbert": lambda **given: DistilBertConfig(
        **{"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}
        | {"pad_token_id": PAD, "initializer_range": 0.3, "num_labels": 3}
        | given
    ),
    "gpt2": lambda **given: GPT2Config(
        **{"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 40}
        | {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.3, "num_labels": 3}
        | given
    ),
    "xlm-roberta": lambda **given: XLMRobertaConfig(**_SIZES | {"type_vocab_size": 1} | given),
    "llama": lambda **given: LlamaConfig(**_SIZES | {"num_key_value_heads": 1} | given),
    "mistral": lambda **given: MistralConfig(**_SIZES | {"num_key_value_heads": 1, "sliding_window": None} | given),
    "qwen2": lambda **given: Qwen2Config(**_SIZES | {"num_key_value_heads": 1} | given),
    "qwen3": lambda **given: Qwen3Config(**_SIZES | {"num_key_value_heads": 1, "head_dim": 8} | given),
}


@dataclass(frozen=True)
class Classifier:
    """A classifier of transformers, and its body as our backbone: of the same weights, in another module tree."""

    model: PreTrainedModel
    backbone: Backbone


def make_classifier(family: str, **config: object) -> Classifier:
    """The same weights with every call; `config` are fields of the family's own configuration."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(_CONFIGS[family](**config)).eval()
    body = copy.deepcopy(getattr(model, model.base_model_prefix))
    return Classifier(model, backbones.from_model(body, name="tiny"))
