"""`generation.json`: what a checkpoint says of ends and templates, there and back."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import InvalidConfig
from adamix.prompts.vocabulary import Vocabulary

IDS = st.none() | st.integers(0, 1 << 31)
TEXTS = st.text(max_size=8)
VOCABULARIES = st.builds(
    Vocabulary,
    vocab_size=IDS,
    bos_id=IDS,
    eos_id=IDS,
    eos_ids=st.lists(st.integers(0, 1 << 31), max_size=3).map(tuple),
    special_tokens=st.dictionaries(TEXTS, TEXTS, max_size=3),
    chat_template=st.none() | TEXTS,
    rules=st.dictionaries(TEXTS, st.none() | TEXTS | st.dictionaries(TEXTS, st.booleans()), max_size=2),
)


@settings(max_examples=30)
@given(VOCABULARIES)
def test_what_was_written_is_read_again(vocabulary: Vocabulary) -> None:
    text = vocabulary.to_json()
    assert Vocabulary.from_json(text) == vocabulary
    assert Vocabulary.from_json(text.encode()).to_json() == text


def test_equal_values_give_equal_text() -> None:
    one = Vocabulary(special_tokens={"bos_token": "<s>", "eos_token": "é"})
    other = Vocabulary(special_tokens={"eos_token": "é", "bos_token": "<s>"})
    assert one.to_json() == other.to_json()
    assert one.to_json().isascii()
    assert list(json.loads(one.to_json())) == sorted(json.loads(one.to_json()))


@pytest.mark.parametrize("text", ["", "[]", '{"eos_id": "2"}', '{"eos": 2}', "[" * 100_000])
def test_what_is_no_vocabulary_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation.json").write_text(text)
    with pytest.raises(InvalidConfig, match=r"^generation\.json: ") as said:
        Vocabulary.read(tmp_path / "generation.json")
    assert len(said.value.message) < 300


def test_what_ends_a_text_depends_on_how_it_is_asked_for() -> None:
    several = Vocabulary(bos_id=0, eos_id=5, eos_ids=(2, 7))
    # Trained here, a target ends with the tokenizer's end; a turn of a chat may too where the model names others.
    assert (several.ends("source"), several.ends("text"), several.ends("chat")) == ((5,), (2, 7), (2, 5, 7))
    only = Vocabulary(eos_id=5)
    assert (only.ends("source"), only.ends("text"), only.ends("chat")) == ((5,), (5,), (5,))
    assert Vocabulary().ends("text") == ()


def test_the_separator_is_the_beginning_or_where_there_is_none_the_end() -> None:
    assert Vocabulary(bos_id=0, eos_id=5).separator_id == 0
    assert Vocabulary(eos_id=5).separator_id == 5
