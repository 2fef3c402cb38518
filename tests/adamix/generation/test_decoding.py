"""Decoding with the merged adapter: against whole forward passes, and what the settings of it do."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.config import AdapterConfig, TrainConfig, TrainingPlan
from adamix.data import GenerationData, TaskData
from adamix.errors import FailedPrecondition, InvalidConfig, InvalidData
from adamix.evaluation.labelled import evaluate
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.generation import beam_search
from adamix.generation.decoding import Decoding, parse_decoding
from adamix.merging.merge import merge
from adamix.modules.attach import insert_adapter
from adamix.modules.heads import LanguageModel, shared_copy
from adamix.rows.targets import prompts
from adamix.training.train import train

EOS = 3
GREEDY = Decoding(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=8)


@pytest.fixture(scope="module")
def trained(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData, tmp_path_factory: pytest.TempPathFactory
) -> AdapterFile:
    out = tmp_path_factory.mktemp("run")
    settings = TrainConfig(max_steps=60, learning_rate=3e-2, batch_size=12, max_length=24, group_by_length=False)
    first = tuple(dataclasses.replace(example, references=example.references[:1]) for example in likes.examples)
    data, adapter = GenerationData("likes", first), AdapterConfig(rank=16, sites=("attn_out", "mlp_out"))
    train(TrainingPlan(adapter=adapter, train=settings), decoder, words, data, None, out)
    return adapter_file.decode(merge(out))


def _adapted(adapter: AdapterFile, backbone: Backbone) -> LanguageModel:
    """The adapter in a body of its own, under the backbone's head: nothing here knows the library's language model."""
    body = shared_copy(backbone.model)
    insert_adapter(body, adapter)
    assert backbone.lm_head is not None
    return LanguageModel(body, backbone.lm_head, backbone.first_position)


def _stepwise(model: LanguageModel, ids: tuple[int, ...], max_new_tokens: int) -> list[int]:
    """Greedy decoding by whole forward passes: no cache, no padding, no library."""
    text = list(ids)
    while len(text) < len(ids) + max_new_tokens:
        batch = torch.tensor([text])
        mask = torch.zeros_like(batch, dtype=torch.bool)
        mask[0, -1] = True
        token = int(model(batch, torch.ones_like(batch), mask)[0].argmax())
        if token == EOS:
            break
        text.append(token)
    return text[len(ids) :]


def test_generation_is_greedy_decoding_by_whole_forward_passes(
    trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    """In one batch of prompts of unequal lengths: padding, positions, cache and adapter are all as without them."""
    sources = [*(example.source for example in likes.examples), "anna", "colour red name bert of is"]
    generated = beam_search.generate(trained, decoder, words, sources, GREEDY)
    model = _adapted(trained, decoder)
    with torch.inference_mode():
        answers = [_stepwise(model, prompt.ids, 8) for prompt in prompts(words, sources, max_tokens=24)]
    assert generated.texts == [words.decode(ids, skip_special_tokens=True) for ids in answers]
    assert len(set(generated.texts)) > 3
    assert generated.truncated == 0
    assert generated.unfinished == sum(len(ids) == 8 for ids in answers)
    # Whatever else is in the batch.
    alone = beam_search.generate(trained, decoder, words, sources, GREEDY, batch_size=1)
    assert alone.texts == generated.texts
    assert decoder.model.config.use_cache is False


def _all_scores(model: LanguageModel, prompt: tuple[int, ...], length: int, penalty: float) -> tuple[float, list[int]]:
    """The best text of at most `length` tokens among all of them, by `log p / n ** penalty`."""
    best = (-math.inf, list[int]())
    frontier: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(length):
        ids = torch.tensor([[*prompt, *text] for _, text in frontier])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, -1] = True
        log_probs = model(ids, torch.ones_like(ids), mask).log_softmax(-1)
        grown = []
        for (score, text), row in zip(frontier, log_probs.tolist(), strict=True):
            for token, log_prob in enumerate(row):
                longer = [*text, token]
                if token == EOS or len(longer) == length:
                    best = max(best, ((score + log_prob) / len(longer) ** penalty, longer))
                if token != EOS:
                    grown.append((score + log_prob, longer))
        frontier = grown
    return best


def test_beam_search_finds_the_best_text_where_it_can_look_at_all(
    trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast
) -> None:
    """With as many beams as there are texts of two tokens, the search over three tokens is complete."""
    model = _adapted(trained, decoder)
    sources = ["name anna colour red", "anna", "fond of"]
    decoding = Decoding(num_beams=64, no_repeat_ngram_size=0, max_new_tokens=2)
    generated = beam_search.generate(trained, decoder, words, sources, decoding)
    for source, text in zip(sources, generated.texts, strict=True):
        (prompt,) = prompts(words, [source], max_tokens=24)
        with torch.inference_mode():
            _, best = _all_scores(model, prompt.ids, 2, decoding.length_penalty)
        assert text == words.decode([token for token in best if token != EOS], skip_special_tokens=True)


@pytest.mark.parametrize("size", [1, 2])
def test_no_ngram_repeats(trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast, size: int) -> None:
    chosen = prompts(words, ["anna likes red", "of of of", "name dora colour blue"], max_tokens=24)
    model = beam_search.attach_adapter(trained, decoder)
    decoding = dataclasses.replace(GREEDY, no_repeat_ngram_size=size)
    for said, _ in beam_search._generate_batch(model, words, chosen, decoding):
        ngrams = [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]
        assert len(set(ngrams)) == len(ngrams)


def test_what_the_source_says_may_be_said() -> None:
    """transformers' own settings of these names would count the prompt, and forbid copying a name out of it."""
    penalties = beam_search._penalties(Decoding(no_repeat_ngram_size=2, repetition_penalty=2.0), prompt_width=3)
    prompt, said = [5, 6, 7], [8, 9, 8]
    scores = penalties(torch.tensor([[*prompt, *said]]), torch.full((1, 12), -1.0))
    halved = [8, 9]
    for token in range(12):
        # After 8 came 9: that pair would repeat. After 7 came 8, but there the prompt ends.
        want = -math.inf if token == 9 else -2.0 if token in halved else -1.0
        assert scores[0, token] == want
    first = penalties(torch.tensor([prompt]), torch.full((1, 12), -1.0))
    assert (first == -1.0).all()


def test_a_long_prompt_loses_its_beginning_and_is_counted(
    trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast
) -> None:
    tail = "name anna colour red"
    long = "green " * 60 + tail
    generated = beam_search.generate(trained, decoder, words, [long, tail], GREEDY)
    assert generated.truncated == 1
    # 24 tokens of the adapter's limit, of which one is the separator.
    again = beam_search.generate(trained, decoder, words, ["green " * 19 + tail], GREEDY)
    assert (again.truncated, again.texts[0]) == (0, generated.texts[0])
    with pytest.raises(InvalidConfig, match="leaves no prompt"):
        beam_search.generate(trained, decoder, words, [tail], dataclasses.replace(GREEDY, max_new_tokens=47))


def test_settings_of_the_checkpoint_do_not_leak_into_decoding(
    trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast
) -> None:
    assert decoder.language_model is not None
    want = beam_search.generate(trained, decoder, words, ["name anna colour red"], GREEDY).texts
    settings = decoder.language_model.generation_config
    settings.do_sample, settings.temperature, settings.min_new_tokens = True, 5.0, 8
    try:
        assert beam_search.generate(trained, decoder, words, ["name anna colour red"], GREEDY).texts == want
    finally:
        settings.do_sample, settings.temperature, settings.min_new_tokens = False, 1.0, None


def test_no_sources_are_no_texts(trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast) -> None:
    generated = beam_search.generate(trained, decoder, words, [], GREEDY)
    assert (generated.texts, generated.truncated, generated.unfinished) == ([], 0, 0)
    with pytest.raises(InvalidData, match="no rows to evaluate"):
        beam_search.token_metrics(trained, decoder, words, GenerationData("none", ()))


def test_other_heads_and_bare_backbones_generate_nothing(
    trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast, colours: TaskData, make_adapter: Any
) -> None:
    with pytest.raises(FailedPrecondition, match="type classification generates no text"):
        beam_search.generate(make_adapter(0), decoder, words, ["anna"], GREEDY)
    bare = dataclasses.replace(decoder, lm_head=None, language_model=None)
    with pytest.raises(FailedPrecondition, match="without a language model"):
        beam_search.generate(trained, bare, words, ["anna"], GREEDY)
    with pytest.raises(FailedPrecondition, match="causal_lm cannot be evaluated on labels"):
        evaluate(trained, decoder, words, colours)


def test_decoding_settings_are_parsed_and_checked() -> None:
    assert parse_decoding("") == Decoding() == parse_decoding(str(Decoding()))
    assert (Decoding().num_beams, Decoding().length_penalty, Decoding().no_repeat_ngram_size) == (10, 0.8, 4)
    assert parse_decoding("num_beams=1, length_penalty=1.5") == Decoding(num_beams=1, length_penalty=1.5)
    for text, message in [
        ("beams=3", "unknown decoding setting 'beams'; settings are num_beams"),
        ("num_beams=1,num_beams=2", "given twice"),
        ("num_beams=two", "needs a number"),
        ("num_beams=2.5", "needs a number"),
        ("num_beams=0", "must be in 1..64"),
        ("length_penalty=nan", "length_penalty must be in"),
        ("max_new_tokens=", "needs a number"),
    ]:
        with pytest.raises(InvalidConfig, match=message.replace(".", r"\.")):
            parse_decoding(text)
