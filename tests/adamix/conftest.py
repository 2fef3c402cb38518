"""Tiny random backbones with tokenizers of whole words, and data that are learned in a second.

A BERT and texts whose label depends on a word; decoders and texts to be generated from attributes; masked language
models.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from transformers import BertForMaskedLM, GPT2LMHeadModel, PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone, from_language_model, from_model
from adamix.data import GenerationData, TaskData
from adamix_testing import bodies, tasks
from adamix_testing.word_tokenizers import bert_words, decoder_words, masked_words, pretrained_bert

# Four tokens of a decoder's tokenizer are no words.
SPOKEN_TOKENS = len(tasks.SPOKEN_WORDS) + 4


def tiny_bert() -> bodies.BertModel:
    # Larger weights than BERT's 0.02: a random body must pass on which words it saw.
    return bodies.tiny_bert(pad_token_id=0, initializer_range=0.2)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return from_model(tiny_bert(), name="tiny")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return pretrained_bert(bert_words(tasks.LABELLED_WORDS))


@pytest.fixture(scope="session")
def colours() -> TaskData:
    return tasks.colours()


@pytest.fixture(scope="session")
def palettes() -> TaskData:
    return tasks.palettes()


@pytest.fixture(scope="session")
def numbers() -> TaskData:
    return tasks.numbers()


@pytest.fixture(scope="session")
def csv(tmp_path_factory: pytest.TempPathFactory, colours: TaskData) -> Path:
    """The colours as a file, for commands that read it."""
    path = tmp_path_factory.mktemp("data") / "colours.csv"
    path.write_text("\n".join(tasks.csv_lines(colours)) + "\n")
    return path


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
    return partial(decoder_words, tasks.SPOKEN_WORDS)


@pytest.fixture(scope="session")
def words(make_words: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_words()


@pytest.fixture(scope="session")
def make_gpt2() -> Callable[[], GPT2LMHeadModel]:
    return partial(bodies.tiny_gpt2, SPOKEN_TOKENS)


@pytest.fixture(scope="module", params=[bodies.tiny_gpt2, bodies.tiny_llama], ids=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest) -> Backbone:
    """A tiny decoder with its language-model head, for the tokenizer `words`."""
    return from_language_model(request.param(SPOKEN_TOKENS), name="tiny")


@pytest.fixture(scope="module")
def gpt2(make_gpt2: Callable[[], GPT2LMHeadModel]) -> Backbone:
    return from_language_model(make_gpt2(), name="tiny")


@pytest.fixture(scope="session")
def likes() -> GenerationData:
    return tasks.likes()


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
    return masked_words


@pytest.fixture(scope="session")
def make_masked() -> Callable[[int], BertForMaskedLM]:
    """Masked language models, the same weights with each call."""
    return bodies.tiny_masked_bert
