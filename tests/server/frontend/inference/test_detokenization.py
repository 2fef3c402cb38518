"""Tokens become the text that decoding all of them gives, in whole characters, and nothing is taken back."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from adamix_server.frontend.inference.detokenization import Detokenizer
from adamix_server.frontend.inference.stops import Stops
from adamix_testing.byte_tokenizers import BEGIN_ID, END_ID, FIRST_BYTE, byte_fallback, byte_level

HARD = "naïve 日本語 🙂👩‍👩‍👧 e\u0301 \u200d\n\n  x"
BYTES = byte_level(["the", " cat", "日本", "🙂"])
FALLBACK = byte_fallback(["▁the", "▁cat", "▁", "s", "日"])


def told(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What is said token by token, and at the end."""
    text = Detokenizer(tokenizer).begin()
    return [*(text.add(token_id) for token_id in ids), text.finish()]


def bytes_of(text: str) -> list[int]:
    """A text in tokens of one byte each."""
    return [FIRST_BYTE + byte for byte in text.encode()]


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK])
@given(data=st.data())
def test_whatever_the_tokens_are_the_text_is_that_of_all_of_them(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=40))
    assert "".join(told(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.text(max_size=30))
def test_any_text_in_bytes_is_told_in_whole_characters(text: str) -> None:
    parts = told(BYTES, bytes_of(text))
    assert "".join(parts) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert [part for part in parts if part] == list(text), "each as soon as it is whole"


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.data())
def test_stops_and_characters_cut_at_every_byte(text: str, stops: list[str], data: st.DataObject) -> None:
    if text and data.draw(st.booleans()):
        begin = data.draw(st.integers(0, len(text) - 1))
        stops = [*stops, text[begin : begin + 3]]
    whole, cut = Stops(stops), Stops(stops)
    expected = whole.feed(text) + whole.rest()
    answer, said = Detokenizer(BYTES).begin(), ""
    for token_id in bytes_of(text):
        said += cut.feed(answer.add(token_id))
        assert expected.startswith(said)
    said += cut.feed(answer.finish())
    assert said + cut.rest() == expected
    assert cut.is_hit == whole.is_hit


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK])
def test_a_hard_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(HARD).ids
    parts = told(tokenizer, ids)
    assert "".join(parts) == HARD
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_a_character_is_told_though_its_token_has_begun_another() -> None:
    begun = BYTES.token_to_id("".join(byte_level().encode("日本").tokens[:4]))
    assert BYTES.decode([begun]) == "日\N{REPLACEMENT CHARACTER}"
    assert told(BYTES, [begun, *bytes_of("本")[1:], begun]) == ["日", "", "本", "日", "\N{REPLACEMENT CHARACTER}"]
    wrong = [FIRST_BYTE + 0xFF] * 20
    assert "日" in told(BYTES, [*wrong, begun])[len(wrong)]


def test_special_tokens_and_tokens_that_nobody_knows_are_no_text() -> None:
    ids = [BEGIN_ID, *bytes_of("a"), END_ID, BYTES.get_vocab_size() + 7, *bytes_of("b"), END_ID]
    assert told(BYTES, ids) == ["", "a", "", "", "b", "", ""]


def test_added_tokens_that_are_not_special_are_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    ids = [*bytes_of("a"), tokenizer.token_to_id("<tool>"), *bytes_of("b")]
    assert told(tokenizer, ids) == ["a", "<tool>", "b", ""]


def test_an_unfinished_character_waits_and_is_shown_at_the_end() -> None:
    assert told(BYTES, bytes_of("a🙂")[:-1]) == ["a", "", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_bytes_that_turn_out_to_be_none_of_a_character() -> None:
    wrong = FIRST_BYTE + 0xFF
    assert "".join(told(BYTES, [wrong, *bytes_of("a")])) == "\N{REPLACEMENT CHARACTER}a"
    # Here one wrong byte makes those before it unreadable: they were not said.
    ids = [*bytes_of("é"), wrong, FALLBACK.token_to_id("▁the")]
    assert told(FALLBACK, ids) == ["", "", "", "\N{REPLACEMENT CHARACTER}" * 3 + " the", ""]


@pytest.mark.parametrize("number", [9, 13, 100])
def test_what_comes_behind_many_bytes_is_told_at_once(number: int) -> None:
    """Or a stop behind them would be found when more tokens have been counted than come before it."""
    wrong = [FIRST_BYTE + 0xFF] * number
    parts = told(BYTES, [*wrong, *bytes_of("a🙂")])
    assert "".join(parts[: number + 1]) == "\N{REPLACEMENT CHARACTER}" * number + "a"
    assert parts[number + 1 :] == ["", "", "", "🙂", ""]
    cat = FALLBACK.token_to_id("▁cat")
    assert told(FALLBACK, [*bytes_of("🙂" * number), cat, cat])[4 * number :] == ["🙂" * number + " cat", " cat", ""]


def test_tokens_that_make_no_character_cost_hardly_more_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    detokenizer, decoded = Detokenizer(BYTES), 0
    decode = detokenizer.decode

    def counted(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    monkeypatch.setattr(detokenizer, "decode", counted)
    number, costs = 4096, []
    for token_id, letter in ((FIRST_BYTE + 0xFF, "\N{REPLACEMENT CHARACTER}"), (FIRST_BYTE + ord("a"), "a")):
        text, decoded = detokenizer.begin(), 0
        for _ in range(number):
            text.add(token_id)
        assert "".join((*text._said, text.finish())) == letter * number
        costs.append(decoded)
    assert costs[0] < 1.3 * costs[1] < 6 * number


def test_a_tokenizer_that_takes_words_back_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that writes ` .` as `.` once it knows: what was said stays, and what comes is said behind it."""
    detokenizer = Detokenizer(BYTES)
    decode = detokenizer.decode
    monkeypatch.setattr(detokenizer, "decode", lambda ids: decode(ids).replace(" .", "."))
    text = detokenizer.begin()
    parts = [text.add(token_id) for token_id in bytes_of("a .b")]
    assert "".join((*parts, text.finish())).startswith("a ")
