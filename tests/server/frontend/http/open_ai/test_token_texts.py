"""Single tokens as text and as bytes, of tokenizers of every kind."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from adamix_server.frontend.http.open_ai.token_texts import TokenTexts
from adamix_testing.byte_tokenizers import END, END_ID, FIRST_BYTE, byte_fallback, byte_level
from adamix_testing.word_tokenizers import bert_words


def test_of_a_byte_level_tokenizer() -> None:
    tokenizer = byte_level([" cat", "日"])
    tokens = TokenTexts(tokenizer)
    cat, sun = tokenizer.encode(" cat").ids, tokenizer.encode("日").ids
    assert [tokens.of(token).text for token in (*cat, *sun)] == [" cat", "日"]
    part = tokens.of(FIRST_BYTE + 0xE6)
    assert (part.text, part.raw, part.is_whole) == ("\\xe6", b"\xe6", False)
    assert tokens.of(END_ID).text == END


def test_of_a_tokenizer_that_falls_back_to_bytes() -> None:
    tokenizer = byte_fallback(["▁cat", "s"])
    tokens = TokenTexts(tokenizer)
    assert tokens.of(tokenizer.token_to_id("▁cat")).text == " cat"
    assert tokens.of(tokenizer.token_to_id("s")).text == "s"
    assert tokens.of(tokenizer.token_to_id("<0x0A>")).raw == b"\n"


def test_of_words() -> None:
    tokens = TokenTexts(bert_words(["a", "cat"]))
    assert tokens.of(5).text.strip() == "cat"


def test_a_token_that_only_the_model_knows_has_no_text() -> None:
    tokens = TokenTexts(byte_level())
    assert tokens.of(10_000_000).raw == b""


@pytest.mark.parametrize("text", ["naïve 日本語 🙂👩‍👩‍👧\n\n  x", " a  b"])
def test_tokens_of_a_text_are_its_bytes(text: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(json.loads(byte_level(["日", " cat"]).to_str())))
    tokens = TokenTexts(tokenizer)
    assert b"".join(tokens.of(token).raw for token in tokenizer.encode(text).ids).decode() == text
