"""A tiny random BERT, a tokenizer of whole words, and texts whose label depends on a word: trained in a second."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from adamix.backbone import Backbone, from_model
from adamix.data import Example, TaskData

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_NOUNS = [f"noun{i}" for i in range(30)]
_COLOURS = ["red", "green", "blue"]
_NUMBERS = ["one", "two", "three", "four", "five"]
_WORDS = [*_SPECIAL, *_COLOURS, *_NUMBERS, *_NOUNS]


def tiny_bert() -> BertModel:
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=0,
        # Larger weights than BERT's 0.02: a random body must pass on which words it saw.
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return BertModel(config)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return from_model(tiny_bert(), name="tiny")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="session")
def colours() -> TaskData:
    """Classification: the one colour in the text."""
    rng = random.Random(0)
    examples = []
    for _ in range(48):
        label = rng.randrange(3)
        examples.append(Example(_sentence(rng, [_COLOURS[label]]), label))
    return TaskData("colours", "classification", tuple(_COLOURS), tuple(examples))


@pytest.fixture(scope="session")
def palettes() -> TaskData:
    """Multi-label: the colours in the text, none to three."""
    rng = random.Random(1)
    examples = []
    for _ in range(48):
        chosen = sorted(rng.sample(range(3), rng.randrange(4)))
        examples.append(Example(_sentence(rng, [_COLOURS[i] for i in chosen]), tuple(chosen)))
    return TaskData("palettes", "multilabel", tuple(_COLOURS), tuple(examples))


@pytest.fixture(scope="session")
def numbers() -> TaskData:
    """Regression, far from zero mean and unit deviation: 100 plus ten times the number in the text."""
    rng = random.Random(2)
    examples = []
    for _ in range(48):
        value = rng.randrange(5)
        examples.append(Example(_sentence(rng, [_NUMBERS[value]]), 100.0 + 10.0 * (value + 1)))
    return TaskData("numbers", "regression", (), tuple(examples))


@pytest.fixture(scope="session")
def backbone_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny backbone on disk, as `--backbone` takes it."""
    directory = tmp_path_factory.mktemp("backbone")
    tiny_bert().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _sentence(rng: random.Random, needed: list[str]) -> str:
    words = needed + rng.sample(_NOUNS, rng.randrange(1, 4))
    rng.shuffle(words)
    return " ".join(words)
