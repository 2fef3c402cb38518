"""Tiny random backbones with tokenizers of whole words, and data that are learned in a second.

A BERT and texts whose label depends on a word; decoders and texts to be generated from attributes; masked language
models.
"""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from adamix.backbone import Backbone, from_language_model, from_model
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


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, make_gpt2: Callable[[], GPT2LMHeadModel]) -> Backbone:
    """A tiny decoder with its language-model head, for the tokenizer `words`."""
    return from_language_model(make_gpt2() if request.param == "gpt2" else _llama(), name="tiny")


@pytest.fixture(scope="module")
def gpt2(make_gpt2: Callable[[], GPT2LMHeadModel]) -> Backbone:
    return from_language_model(make_gpt2(), name="tiny")


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(_SPOKEN),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


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


@pytest.fixture(scope="session")
def make_masked_words() -> Callable[[list[str]], PreTrainedTokenizerFast]:
    """Tokenizers of these words and BERT's special tokens."""

    def make(words: list[str]) -> PreTrainedTokenizerFast:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="[UNK]"))
        tokens.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokens.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokens.add_special_tokens(special)
        names = {f"{name.strip('[]').lower()}_token": name for name in special}
        return PreTrainedTokenizerFast(tokenizer_object=tokens, **names)

    return make


@pytest.fixture(scope="session")
def make_masked() -> Callable[[int], BertForMaskedLM]:
    """Masked language models, the same weights with each call."""

    def make(vocab_size: int) -> BertForMaskedLM:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            pad_token_id=0,
            initializer_range=0.2,
        )
        return BertForMaskedLM(config).eval()

    return make


def _sentence(rng: random.Random, needed: list[str]) -> str:
    words = needed + rng.sample(_NOUNS, rng.randrange(1, 4))
    rng.shuffle(words)
    return " ".join(words)
