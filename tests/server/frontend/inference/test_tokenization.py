"""Tokens are those of training: equal to transformers on the real tokenizer, and checked before they go anywhere."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from adamix.errors import AdamixError, InternalError, InvalidRequest, Overloaded
from adamix_server.frontend.inference import tokenization
from adamix_server.frontend.inference.tokenization import Text, Tokenizer, Tokens, check_ids

TEXTS = [
    "Where is the Eiffel tower?",
    "naïve café — “quotes”, emoji 🙂 and 漢字 mixed",
    "tabs\tand\nnew lines\x00and NUL",
    "supercalifragilisticexpialidocious " * 30,
    "a",
    "[CLS] special [SEP] words [MASK]",
    "e\u0301 combining, \u202eright to left\u202c, zero\u200bwidth",
]


def ids_of(tokens: Tokens) -> list[int]:
    return np.frombuffer(tokens.ids, "<i4").tolist()  # type: ignore[no-any-return]


def text(first: str, second: str | None = None, *, limit: int = 16, truncate: bool = False) -> Text:
    return Text(first, second, limit, truncate, "inputs[0].text" if second is None else "inputs[0].pair")


def encode(tokenizer: Tokenizer, text: Text) -> Tokens:
    (outcome,) = tokenizer.encode([text])
    if isinstance(outcome, AdamixError):
        raise outcome
    return outcome


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> Any:
    tokenizer = Tokenizer(tokenizer_file, threads=2)
    yield tokenizer
    tokenizer.close()


@pytest.mark.weights
def test_equal_to_transformers_with_and_without_truncation(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from adamix.backbones import backbone

    theirs = backbone.load_tokenizer("minilm")
    path = tmp_path / "tokenizer.json"
    path.write_text(backbone.export_tokenizer("minilm"))
    ours = Tokenizer(path, threads=1)
    pairs = [(a, b) for a in TEXTS for b in [None, *TEXTS]]
    for first, second in pairs:
        for limit in (8, 9, 32, 512):
            expected = theirs(first, second, truncation=True, max_length=limit)
            found = encode(ours, text(first, second, limit=limit, truncate=True))
            assert ids_of(found) == expected["input_ids"]
            types = [0] * len(found) if found.type_ids is None else np.frombuffer(found.type_ids, "<i4").tolist()
            assert types == expected["token_type_ids"]
    ours.close()


@pytest.mark.parametrize(
    "processor",
    [
        None,
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.ByteLevel(),
        processors.TemplateProcessing(single="$A:1 [SEP]", pair="$B [SEP] $A:1", special_tokens=[("[SEP]", 3)]),
    ],
    ids=["none", "bert", "roberta", "byte level", "template"],
)
@pytest.mark.parametrize("pair", [("w1 w2 w9", None), ("w1 w2 w9", "w3 w4 w5 w6 w7"), ("w3 w4 w5 w6", "w1")])
def test_equal_to_the_tokenizer_itself_for_every_way_to_join(
    tmp_path: Path, processor: processors.PostProcessor | None, pair: tuple[str, str | None]
) -> None:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(10))])}
    theirs = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    theirs.pre_tokenizer = pre_tokenizers.Whitespace()
    if processor is not None:
        theirs.post_processor = processor
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer(tmp_path / "tokenizer.json", threads=1)
    for limit in (5, 6, 7, 100):
        theirs.enable_truncation(limit)
        expected = theirs.encode(*pair)
        found = encode(ours, text(*pair, limit=limit, truncate=True))
        assert ids_of(found) == expected.ids
        types = [0] * len(found) if found.type_ids is None else np.frombuffer(found.type_ids, "<i4").tolist()
        assert types == expected.type_ids
    ours.close()


def test_the_limit_counts_special_tokens(tokenizer: Tokenizer) -> None:
    assert len(encode(tokenizer, text("w1 w2", limit=4))) == 4
    with pytest.raises(InvalidRequest) as caught:
        encode(tokenizer, text("w1 w2", limit=3))
    assert (caught.value.reason, caught.value.field) == ("TEXT_TOO_LONG", "inputs[0].text")
    assert str(caught.value) == "text has 4 tokens, the task's limit is 3; shorten it or ask for truncation RIGHT"
    with pytest.raises(InvalidRequest, match="text has 5 tokens"):
        encode(tokenizer, text("w1", "w2", limit=4))


def test_truncation_keeps_the_special_tokens(tokenizer: Tokenizer) -> None:
    assert ids_of(encode(tokenizer, text("w0 w1 w2", limit=4, truncate=True))) == [2, 4, 5, 3]
    assert ids_of(encode(tokenizer, text("w0 w1 w2", "w3", limit=6, truncate=True))) == [2, 4, 5, 3, 7, 3]


@pytest.mark.parametrize(
    ("first", "second", "reason", "field"),
    [
        ("", None, "TEXT_EMPTY", "inputs[0].text"),
        (" \t\u3000", None, "TEXT_EMPTY", "inputs[0].text"),
        ("w1", "", "TEXT_EMPTY", "inputs[0].pair.second"),
        ("x" * ((64 << 10) + 1), None, "TEXT_TOO_LARGE", "inputs[0].text"),
        ("é" * ((32 << 10) + 1), "w1", "TEXT_TOO_LARGE", "inputs[0].pair.first"),
    ],
)
def test_texts_that_cannot_be_answered_are_refused_by_field(
    tokenizer: Tokenizer, first: str, second: str | None, reason: str, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode(tokenizer, text(first, second))
    assert (caught.value.reason, caught.value.field) == (reason, field)


async def test_one_bad_text_does_not_touch_the_others(tokenizer: Tokenizer) -> None:
    good, bad, also_good = await tokenizer.tokenize([text("w1"), text(""), text("w2")])
    assert isinstance(good, Tokens)
    assert isinstance(bad, InvalidRequest)
    assert isinstance(also_good, Tokens)


def test_outcomes_are_in_order_however_the_texts_are_grouped(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        text("w1"),
        text("w2", "w3 w4"),
        text(""),
        text("w5 w6", truncate=True, limit=3),
        text("w7 w8", limit=3),
        text("w9", "w0"),
    ]
    expected = [[2, 5, 3], [2, 6, 3, 7, 8, 3], "TEXT_EMPTY", [2, 9, 3], "TEXT_TOO_LONG", [2, 13, 3, 4, 3]]
    for length in (1, 3, 6, 1000):
        monkeypatch.setattr(tokenization, "_CHUNK_LENGTH", length)
        found = [
            outcome.reason if isinstance(outcome, AdamixError) else ids_of(outcome)
            for outcome in tokenizer.encode(texts)
        ]
        assert found == expected


def test_a_text_the_tokenizer_fails_on_does_not_touch_the_others(tmp_path: Path) -> None:
    # This model raises on a word that it does not know.
    model = tokenizers.Tokenizer(models.WordLevel({"w1": 1}, unk_token="[UNK]"))
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", threads=1)
    good, bad, also_good = tokenizer.encode([text("w1"), text("secret"), text("w1", "w1")])
    assert isinstance(good, Tokens)
    assert isinstance(also_good, Tokens)
    assert isinstance(bad, InternalError)
    assert "secret" not in bad.message
    tokenizer.close()


async def test_the_event_loop_goes_on_while_a_long_text_is_encoded(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    turns_while_encoding = []

    class Watched:
        """The tokenizer; of calls that encode it notes how often the loop turned from their start to their end."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            method = getattr(self._inner, name)
            if not name.startswith("encode"):
                return method

            def watched(*args: Any, **options: Any) -> Any:
                before = turns
                result = method(*args, **options)
                turns_while_encoding.append(turns - before)
                return result

            return watched

    monkeypatch.setattr(tokenizer, "backend", Watched(tokenizer.backend))
    encoding = asyncio.create_task(tokenizer.tokenize([text("w1 " * (21 << 10), truncate=True)] * 8))
    while not encoding.done():
        await asyncio.sleep(0)
        turns += 1
    assert [isinstance(outcome, Tokens) for outcome in await encoding] == [True] * 8
    # Without a release of the GIL it turns a few times where one starts and ends; with it, tens of thousands of times.
    assert sum(turns_while_encoding) > 2000


async def test_more_waiting_text_than_fits_is_refused_at_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "MAX_PENDING_TEXT_BYTES", 3000)
    long = text("w1 " * 300, truncate=True)
    goes_on, encode = threading.Event(), tokenizer.encode

    def waits(texts: Sequence[Text]) -> Any:
        if texts == [long]:
            goes_on.wait(10)
        return encode(texts)

    monkeypatch.setattr(tokenizer, "encode", waits)
    # More than it takes.
    monkeypatch.setattr(tokenizer, "_byte_s", 1e-2)
    first = asyncio.create_task(tokenizer.tokenize([long]))
    await asyncio.sleep(0)
    # By then two threads will have tokenised all that waits.
    with pytest.raises(Overloaded) as refused:
        await tokenizer.tokenize([long])
    assert refused.value.retry_after_s == pytest.approx(tokenizer._pending_bytes * 1e-2 / 2)
    # What is answered without a thread does not wait.
    assert len(await tokenizer.tokenize([text("w1 w2")])) == 1
    goes_on.set()
    await first
    assert tokenizer._byte_s < 1e-2, "what it took was measured"
    assert len(await tokenizer.tokenize([long])) == 1


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20))
def test_token_ids_pass_only_inside_the_vocabulary(ids: list[int]) -> None:
    if ids and len(ids) <= 10 and all(0 <= value < 64 for value in ids):
        assert ids_of(check_ids(ids, 64, 10, "f")) == ids
    else:
        with pytest.raises(InvalidRequest):
            check_ids(ids, 64, 10, "f")


@pytest.mark.parametrize(("ids", "passes"), [([0], True), ([63], True), ([64], False), ([-1], False)])
def test_the_bounds_of_the_vocabulary(ids: list[int], passes: bool) -> None:
    if passes:
        assert ids_of(check_ids(ids, 64, 10, "f")) == ids
    else:
        with pytest.raises(InvalidRequest, match="0 to 63"):
            check_ids(ids, 64, 10, "f")
