"""Rows of generation data, and the scores and losses at their target tokens."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import GenerationData, GenerationExample
from adamix.data.few_shot import few_sources
from adamix.errors import InvalidConfig
from adamix.modules.heads import LanguageModel
from adamix.modules.losses import consistency_loss, task_loss
from adamix.rows.targets import TargetRows, prompts, target_rows

MakeWords = Callable[..., PreTrainedTokenizerFast]

PAD = 0


def test_a_row_is_source_separator_target_and_end(words: PreTrainedTokenizerFast) -> None:
    example = GenerationExample("name anna", ("anna is", "dora"))
    first, second = target_rows(words, [example], max_length=24)
    ids = words.convert_tokens_to_ids
    assert first.ids == tuple(ids(["name", "anna", "<s>", "anna", "is", "</s>"]))
    assert first.num_prompt == 3
    assert (second.targets, second.is_truncated) == (tuple(ids(["dora", "</s>"])), False)
    # A prompt is the beginning of the row, so that decoding continues what training saw.
    (prompt,) = prompts(words, ["name anna"], max_tokens=24)
    assert prompt.ids == first.ids[:3]


def test_what_the_tokenizer_puts_before_texts_stays_in_front(make_words: MakeWords) -> None:
    tokenizer = make_words(begins_texts=True)
    example = GenerationExample("name anna colour red", ("anna",))
    whole, short = (target_rows(tokenizer, [example], max_length=length)[0] for length in (24, 6))
    ids = tokenizer.convert_tokens_to_ids
    assert whole.ids == tuple(ids(["<s>", "name", "anna", "colour", "red", "<s>", "anna", "</s>"]))
    # Of a source that is too long, the beginning goes.
    assert short.ids == tuple(ids(["<s>", "colour", "red", "<s>", "anna", "</s>"]))
    assert (whole.is_truncated, short.is_truncated) == (False, True)


def test_a_target_that_is_too_long_loses_its_end(words: PreTrainedTokenizerFast) -> None:
    example = GenerationExample("name anna", ("anna is fond of red",))
    (row,) = target_rows(words, [example], max_length=5)
    assert row.ids == tuple(words.convert_tokens_to_ids(["anna", "<s>", "anna", "is", "fond"]))
    assert (row.num_prompt, row.is_truncated) == (2, True)


def test_batches_carry_targets_and_where_they_are_predicted(words: PreTrainedTokenizerFast) -> None:
    examples = [GenerationExample("name anna", ("anna is",)), GenerationExample("colour", ("red",))]
    rows = target_rows(words, examples, max_length=24)
    batch = TargetRows(rows, PAD).batch([0, 1])
    assert batch["target_mask"].tolist() == [[False, False, True, True, True], [False, True, True, False, False]]
    assert batch["targets"].tolist() == [*rows[0].targets, *rows[1].targets]
    assert batch["input_ids"][0].tolist() == list(rows[0].ids[:-1])
    # At each marked token stands what comes before its target.
    marked = batch["input_ids"][batch["target_mask"]].tolist()
    assert marked == [*rows[0].ids[2:-1], *rows[1].ids[1:-1]]


def test_a_tokenizer_without_end_of_text_is_refused(make_words: MakeWords) -> None:
    endless = make_words(begins_texts=False)
    endless.eos_token = None
    with pytest.raises(InvalidConfig, match="no end-of-text token"):
        target_rows(endless, [GenerationExample("a", ("b",))], max_length=24)
    with pytest.raises(InvalidConfig, match="no end-of-text token"):
        prompts(endless, ["a"], max_tokens=24)


def test_few_sources_keep_all_their_references(likes: GenerationData) -> None:
    few, fewer = few_sources(likes, 5, seed=1), few_sources(likes, 3, seed=1)
    assert few.examples[:3] == fewer.examples
    assert set(few.examples) < set(likes.examples)
    assert few.is_synthetic
    assert few_sources(likes, 5, seed=2) != few
    for k in (0, 13):
        with pytest.raises(InvalidConfig, match="1 to 12 sources"):
            few_sources(likes, k, seed=1)


def test_logits_are_those_of_the_whole_model_at_the_target_tokens(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    assert decoder.language_model is not None
    assert decoder.lm_head is not None
    rows = TargetRows(target_rows(words, likes.examples, max_length=24), PAD)
    batch = rows.batch([0, 1, 7])
    whole = decoder.language_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch.pop("targets")
    model = LanguageModel(decoder.model, decoder.lm_head, decoder.first_position)
    logits = model(**batch)
    assert logits.shape == (len(targets), whole.shape[-1])
    # The same sums in products of other shapes.
    torch.testing.assert_close(logits, whole[batch["target_mask"]], rtol=0, atol=1e-5)


def test_the_loss_is_that_of_transformers_with_the_source_masked(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    """The library's own loss takes labels where -100 does not count; what stands there otherwise changes nothing."""
    assert decoder.language_model is not None
    assert decoder.lm_head is not None
    example = likes.examples[4]
    rows = target_rows(words, [example], max_length=24)
    for row in rows:
        ids = torch.tensor([row.ids])
        labels = torch.tensor([[-100] * row.num_prompt + list(row.targets)])
        want = decoder.language_model(input_ids=ids, labels=labels).loss
        batch = TargetRows([row], PAD).batch([0])
        targets = batch.pop("targets")
        model = LanguageModel(decoder.model, decoder.lm_head, decoder.first_position)
        torch.testing.assert_close(task_loss(model(**batch), targets, "classification"), want, rtol=1e-5, atol=1e-6)


def test_consistency_is_a_mean_over_tokens() -> None:
    """By hand: the symmetric KL of each target token, whichever rows they are of."""
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    p, q = first.softmax(-1), second.softmax(-1)
    by_hand = [0.5 * float((q[t] * (q[t] / p[t]).log()).sum() + (p[t] * (p[t] / q[t]).log()).sum()) for t in range(5)]
    assert float(consistency_loss(first, second, "classification")) == pytest.approx(sum(by_hand) / 5, rel=1e-5)
