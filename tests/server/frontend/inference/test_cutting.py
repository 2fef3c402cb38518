"""Texts that are too long are cut where training cuts them, on the real tokenizer; what leaves no token is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from adamix import data as datasets
from adamix import texts
from adamix.backbones import backbone
from adamix.data import Example
from adamix.errors import AdamixError
from adamix.rows.labelled import tokenize
from adamix.texts import MAX_TEXT_BYTES
from adamix_server.frontend.inference.tokenization import Text, Tokenizer, Tokens


@pytest.mark.weights
@pytest.mark.parametrize("limit", [8, 9, 31, 32])
def test_the_server_cuts_pairs_as_training_does(limit: int, tmp_path: Path) -> None:
    """The longer part first, then both alike: every mixture of lengths below, at and far over the limit."""
    (tmp_path / "tokenizer.json").write_text(backbone.export_tokenizer("minilm"), encoding="utf-8")
    server, training = Tokenizer(tmp_path / "tokenizer.json", threads=1), backbone.load_tokenizer("minilm")
    words = " ".join(e.text for e in datasets.load("trec", split="train").examples[:40]).split()
    lengths = [" ".join(words[:n]) for n in (1, 3, 12, 13, 25, 60, 200)]
    examples = [Example(first, 0, second) for first in lengths for second in [None, *lengths]]
    rows = tokenize(training, examples, max_length=limit, has_types=True)
    found = server.encode([Text(e.text, e.pair, limit, truncate=True, field="inputs[0]") for e in examples])
    server.close()
    assert sum(row.is_truncated for row in rows) > len(rows) // 2
    library = [training(e.text, e.pair, truncation=True, max_length=limit) for e in examples]
    assert [list(row.input_ids) for row in rows] == [encoded["input_ids"] for encoded in library]
    assert [list(row.type_ids or ()) for row in rows] == [encoded["token_type_ids"] for encoded in library]
    for tokens, row in zip(found, rows, strict=True):
        assert not isinstance(tokens, AdamixError)
        assert tuple(np.frombuffer(tokens.ids, "<i4")) == row.input_ids
        types = (0,) * len(row) if tokens.type_ids is None else tuple(np.frombuffer(tokens.type_ids, "<i4"))
        assert types == row.type_ids


@pytest.mark.weights
def test_texts_over_64_kib_are_cut_as_training_cuts_them(tmp_path: Path) -> None:
    """Beyond what a data file may hold, too; in the middle of a character; and where 64 KiB are not even one token."""
    (tmp_path / "tokenizer.json").write_text(backbone.export_tokenizer("minilm"), encoding="utf-8")
    server, training = Tokenizer(tmp_path / "tokenizer.json", threads=1), backbone.load_tokenizer("minilm")
    words = " ".join(e.text for e in datasets.load("trec", split="train").examples)
    normal = [words[: MAX_TEXT_BYTES + 1], (words * 3)[:200_000], "ü" * 40_000, "x" + "漢字 " * 30_000]
    odd = [" " * MAX_TEXT_BYTES + "late", "late" + " " * 100_000, "x" * (MAX_TEXT_BYTES - 1) + "ü " + words]
    examples = [Example(first, 0, second) for first in [*normal, *odd] for second in (None, odd[0])]
    examples.append(Example("short", 0, normal[1]))
    rows = tokenize(training, examples, max_length=128, has_types=True)
    found = server.encode([Text(e.text, e.pair, 128, truncate=True, field="inputs[0]") for e in examples])
    for tokens, row in zip(found, rows, strict=True):
        assert not isinstance(tokens, AdamixError)
        assert tuple(np.frombuffer(tokens.ids, "<i4")) == row.input_ids
        assert row.is_truncated
    whole = [training(text, truncation=True, max_length=128)["input_ids"] for text in normal]
    assert [list(rows[2 * i].input_ids) for i in range(len(normal))] == whole, "tokens are those of the whole text"
    (refused,) = server.encode([Text(normal[0], None, 128, truncate=False, field="inputs[0].text")])
    server.close()
    assert isinstance(refused, AdamixError)
    assert (refused.reason, refused.field) == ("TEXT_TOO_LARGE", "inputs[0].text")


@pytest.mark.weights
def test_nothing_is_made_of_what_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library joins each piece that it cuts off one text with each of the other: seconds for one pair of texts."""
    (tmp_path / "tokenizer.json").write_text(backbone.export_tokenizer("minilm"), encoding="utf-8")
    server = Tokenizer(tmp_path / "tokenizer.json", threads=1)
    library, made = server.backend, []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def encode_batch_fast(self, inputs: Any) -> list[tokenizers.Encoding]:
            made.extend(library.encode_batch_fast(inputs))
            return made

    monkeypatch.setattr(server, "backend", Watched())
    long = "hello " * 500
    (tokens,) = server.encode([Text(long, long, 128, truncate=True, field="inputs[0]")])
    server.close()
    assert isinstance(tokens, Tokens)
    assert len(tokens) == 128
    assert [len(encoding.overflowing) for encoding in made] == [0]


@given(st.text(st.sampled_from("aü漢🙂")), st.integers(0, 12))
def test_a_cut_keeps_whole_characters_and_no_more_than_fits(text: str, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "MAX_TEXT_BYTES", limit)
        kept = texts.cut(text)
    assert text.startswith(kept)
    assert len(kept.encode()) <= limit
    assert kept is text or len(text[: len(kept) + 1].encode()) > limit


@pytest.mark.weights
def test_a_text_that_leaves_no_token_or_no_room_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "bare.json"))
    (tmp_path / "minilm.json").write_text(backbone.export_tokenizer("minilm"), encoding="utf-8")
    outcomes = []
    for name, text, limit in (("bare", "zzz", 8), ("minilm", "why", 1)):
        server = Tokenizer(tmp_path / f"{name}.json", threads=1)
        outcomes += server.encode([Text(text, None, limit, truncate=True, field="inputs[0].text")])
        server.close()
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == ["TEXT_EMPTY", "TEXT_TOO_LONG"]
