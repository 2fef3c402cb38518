"""Ids of sources, texts and chats: those of training, of `AutoTokenizer`, of `apply_chat_template`."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from adamix.backbones import backbone
from adamix.data import GenerationExample
from adamix.errors import InvalidConfig, InvalidData
from adamix.prompts.chat import ChatRenderer
from adamix.prompts.prompts import Message, Prompts
from adamix.prompts.vocabulary import Vocabulary
from adamix.rows import targets
from adamix_testing.chat_templates import MARKED
from adamix_testing.word_tokenizers import decoder_words

WORDS = ("anna", "is", "fond", "of", "red")
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def letters(*, begins_texts: bool = False) -> Tokenizer:
    """Of bytes, with three merges; digits stand alone, which only the file says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "n"), ("1", "2"), ("an", "an")]
    tokens = ["<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if begins_texts:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def saved(directory: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """As transformers saves a tokenizer, its settings changed, beside the config of a decoder."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES).save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    GPT2Config(vocab_size=tokenizer.get_vocab_size()).save_pretrained(directory)
    return directory


def served(directory: Path, renderer: ChatRenderer | None = None) -> Prompts:
    """As a front end has them: of the two exported files."""
    tokenizer = Tokenizer.from_str(backbone.export_tokenizer(str(directory)))
    return Prompts(tokenizer, Vocabulary.from_json(backbone.export_generation(str(directory))), renderer)


@pytest.mark.parametrize("begins_texts", [True, False])
@settings(max_examples=30)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), st.integers(3, 12))
def test_a_served_source_is_the_beginning_of_a_row_of_training(
    begins_texts: bool, words: list[str], max_tokens: int
) -> None:
    tokenizer = decoder_words(WORDS, begins_texts=begins_texts)
    (row,) = targets.target_rows(tokenizer, [GenerationExample(" ".join(words), ("red",))], max_length=max_tokens + 2)
    vocabulary = Vocabulary(bos_id=tokenizer.bos_token_id, eos_id=tokenizer.eos_token_id)
    file = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    prompt = Prompts(file, vocabulary).source(" ".join(words), max_tokens)
    assert prompt.ids == row.ids[: row.num_prompt]
    assert len(prompt.ids) <= max_tokens
    assert prompt.is_truncated == row.is_truncated
    assert prompt.is_truncated == (len(words) + 1 + begins_texts > max_tokens)


def test_a_source_is_encoded_as_transformers_encodes_it() -> None:
    """Of a tokenizer that ends texts as well: a source goes on, and keeps its beginning when it is cut."""
    tokenizer = letters()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)
    prompts = Prompts(tokenizer, Vocabulary(bos_id=0, eos_id=1))
    ids = theirs("anna 12")["input_ids"]
    assert prompts.source("anna 12", 99).ids == (*ids[:-1], 0)
    assert prompts.source("anna 12", 4).ids == (0, *ids[-3:-1], 0)
    assert [prompt.ids for prompt in prompts.sources(["anna 12", ""], 99)] == [(*ids[:-1], 0), (0, 0)]


def test_truncation_that_someone_turned_on_does_not_reach_prompts() -> None:
    tokenizer = letters()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    prompts = Prompts(tokenizer, Vocabulary(bos_id=0, eos_id=1))
    assert prompts.text("bbbb") == tuple(letters().encode("bbbb").ids)


@pytest.mark.parametrize(
    ("changed", "begins_texts", "differs"),
    [
        ({}, False, False),
        ({}, True, False),
        # Made anew by transformers, without the file's rule for digits.
        ({"tokenizer_class": "GPT2Tokenizer"}, False, True),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, False, True),
        ({"tokenizer_class": "Qwen2Tokenizer"}, False, False),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}, False, False),
    ],
)
def test_a_text_has_the_ids_of_auto_tokenizer(
    changed: dict[str, Any], begins_texts: bool, differs: bool, tmp_path: Path
) -> None:
    directory = saved(tmp_path, letters(begins_texts=begins_texts), **changed)
    theirs = AutoTokenizer.from_pretrained(directory)
    prompts = served(directory)
    file = Tokenizer.from_str(backbone.export_tokenizer(str(directory)))
    for text in ("anna 1212", " an</s>\u00e9e\u0301\n", "\U0001f600" * 3, "12", ""):
        assert prompts.text(text) == tuple(theirs(text)["input_ids"])
    assert (prompts.text("anna 1212") != tuple(file.encode("anna 1212").ids)) == differs


def test_a_chat_has_the_ids_of_apply_chat_template(tmp_path: Path, renderer: ChatRenderer) -> None:
    """The tokenizer begins texts by itself, but not those that a template has made."""
    directory = saved(tmp_path, letters(begins_texts=True), chat_template=MARKED, tokenizer_class="GPT2Tokenizer")
    chat = [Message("user", "anna 12 </s>")]
    messages = [{"role": message.role, "content": message.content} for message in chat]
    theirs = AutoTokenizer.from_pretrained(directory)
    prompts = served(directory, renderer)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompts.chat(chat) == tuple(expected)
    own = "{{ bos_token }}{{ messages[0].content }}"
    expected = theirs.apply_chat_template(messages, chat_template=own, add_generation_prompt=True)["input_ids"]
    assert prompts.chat(chat, own) == tuple(expected)


def test_without_a_template_there_is_no_chat(renderer: ChatRenderer) -> None:
    prompts = Prompts(letters(), Vocabulary(bos_id=0, eos_id=1), renderer)
    with pytest.raises(InvalidConfig, match="neither the adapter nor its backbone has a chat template"):
        prompts.chat([Message("user", "a")])
    assert prompts.chat([Message("user", "a")], "{{ messages[0].content }}") == prompts.text("a")


def test_a_token_that_the_model_has_no_row_for_leaves_no_prompt(renderer: ChatRenderer) -> None:
    tokenizer = letters()
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<|new|>"])
    prompts = Prompts(tokenizer, Vocabulary(vocab_size=size, bos_id=0, eos_id=1), renderer)
    assert prompts.text("anan") == (size - 1,)
    for make in (prompts.text, lambda text: prompts.source(text, 9), lambda text: prompts.chat([], text)):
        with pytest.raises(InvalidData, match="has a token of the tokenizer that the model does not know"):
            make("an<|new|>")


def test_a_tokenizer_without_an_end_makes_no_sources() -> None:
    with pytest.raises(InvalidConfig, match="no end-of-text token"):
        Prompts(letters(), Vocabulary(bos_id=0)).source("a", 9)


@pytest.mark.weights
def test_the_packaged_decoder_is_asked_as_transformers_asks_it(renderer: ChatRenderer) -> None:
    theirs = AutoTokenizer.from_pretrained(backbone.resolve("smollm2"))
    vocabulary = Vocabulary.from_json(backbone.export_generation("smollm2"))
    prompts = Prompts(Tokenizer.from_str(backbone.export_tokenizer("smollm2")), vocabulary, renderer)
    text = "In 2026, 1,234 na\u00efve \U0001f600s <|im_end|>  \n\tran."
    assert prompts.text(text) == tuple(theirs(text)["input_ids"])
    chat = [Message("user", text)]
    expected = theirs.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
    assert prompts.chat(chat) == tuple(expected)
    # Its `<|im_end|>`.
    assert (vocabulary.eos_ids, vocabulary.ends("chat")) == ((2,), (2,))
