"""Backbones of a true shape with random weights, and a tokenizer for them: speed and memory do not ask what they know.

`tiny` is for smoke runs and says nothing about either.
"""

from dataclasses import dataclass
from itertools import product

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidConfig

PREFIX = "random:"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_SYLLABLES = tuple(first + second for first in "bdfgklmnprstvz" for second in "aeiou")


@dataclass(frozen=True)
class Shape:
    """Sizes of a family of transformers."""

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    positions: int = 512
    token_types: int = 2


SHAPES = {
    "tiny": Shape("bert", 32, 2, 4, 500, positions=128),
    "minilm": Shape("bert", 384, 6, 12, 30_522),
    "bert-base": Shape("bert", 768, 12, 12, 30_522),
    "roberta-large": Shape("roberta", 1024, 24, 16, 50_265, positions=514, token_types=1),
    "gpt2-medium": Shape("gpt2", 1024, 24, 16, 50_257, positions=1024),
}


def random_backbone(name: str) -> tuple[Backbone, PreTrainedTokenizerFast]:
    """The backbone of `random:SHAPE`, the same every time, and a tokenizer of a few hundred words.

    Raises:
        InvalidConfig: there is no such shape.
    """
    shape = SHAPES.get(name.removeprefix(PREFIX))
    if shape is None:
        known = ", ".join(PREFIX + known for known in SHAPES)
        raise InvalidConfig(f"there is no backbone {name!r}; random ones are {known}", field="backbone")
    # The families' own names of the same sizes.
    sizes = {"hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers}
    sizes |= {"num_attention_heads": shape.num_heads, "max_position_embeddings": shape.positions}
    if shape.model_type != "gpt2":  # which has neither a size of its own between the two linears nor token types
        sizes |= {"intermediate_size": 4 * shape.hidden_size, "type_vocab_size": shape.token_types}
    config = AutoConfig.for_model(shape.model_type, vocab_size=shape.vocab_size, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation="sdpa")
    return backbones.from_model(model, name=name), _tokenizer()


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ("".join(pair) for pair in product(_SYLLABLES, _SYLLABLES[:6]))
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
