"""Tiny random backbones with tokenizers of whole words, and data that are learned in a second.

A BERT and texts whose label depends on a word; a GPT-2 and texts to be generated from attributes.
"""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from adamix.backbone import Backbone, from_model
from adamix.data import Example, GenerationData, GenerationExample, TaskData

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_NOUNS = [f"noun{i}" for i in range(30)]
_COLOURS = ["red", "green", "blue"]
_NUMBERS = ["one", "two", "three", "four", "five"]
_WORDS = [*_SPECIAL, *_COLOURS, *_NUMBERS, *_NOUNS]
_NAMES = ["anna", "bert", "carl", "dora"]
_SPOKEN = ["<pad>", "<unk>", "<s>", "</s>", "name", "colour", "likes", "is", "fond", "of", *_NAMES, *_COLOURS]


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


@pytest.fixture(scope="session")
def make_words() -> Callable[..., PreTrainedTokenizerFast]:
    """Tokenizers of a decoder's words; with `begins_texts` one that puts a token before each text, as Llama's does."""

    def make(*, begins_texts: bool = False) -> PreTrainedTokenizerFast:
        words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_SPOKEN)}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        if begins_texts:
            words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
        special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        return PreTrainedTokenizerFast(tokenizer_object=words, **special)

    return make


@pytest.fixture(scope="session")
def words(make_words: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_words()


@pytest.fixture(scope="session")
def make_gpt2() -> Callable[[], GPT2LMHeadModel]:
    def make() -> GPT2LMHeadModel:
        config = GPT2Config(
            vocab_size=len(_SPOKEN), n_embd=16, n_layer=2, n_head=2, n_positions=48, initializer_range=0.3
        )
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)

    return make


@pytest.fixture(scope="session")
def likes() -> GenerationData:
    """Sources of two attributes, each with two references of different lengths."""
    examples = [
        GenerationExample(f"name {name} colour {colour}", (f"{name} likes {colour}", f"{name} is fond of {colour}"))
        for name, colour in itertools.product(_NAMES, _COLOURS)
    ]
    return GenerationData("likes", tuple(examples), is_synthetic=True)


@pytest.fixture(scope="session")
def decoder_directory(
    tmp_path_factory: pytest.TempPathFactory,
    make_gpt2: Callable[[], GPT2LMHeadModel],
    words: PreTrainedTokenizerFast,
) -> Path:
    """The tiny GPT-2 on disk, as `--backbone` takes it."""
    directory = tmp_path_factory.mktemp("decoder")
    make_gpt2().save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def _sentence(rng: random.Random, needed: list[str]) -> str:
    words = needed + rng.sample(_NOUNS, rng.randrange(1, 4))
    rng.shuffle(words)
    return " ".join(words)
