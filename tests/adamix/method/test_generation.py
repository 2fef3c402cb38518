"""Decoders on generation data: rows, losses on target tokens alone, training runs, decoding with the merged adapter."""

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adamix import adapter_file, generation
from adamix.adapter_file import AdapterFile
from adamix.backbone import Backbone, from_language_model
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig
from adamix.data import GenerationData, GenerationExample, TaskData
from adamix.data.few_shot import few_sources
from adamix.decoding import Decoding, parse_decoding
from adamix.errors import Cancelled, FailedPrecondition, InvalidConfig, InvalidData
from adamix.evaluation import evaluate, insert_adapter
from adamix.generation_rows import TargetRows, prompts, target_rows
from adamix.heads import LanguageModel, remove_dropout, shared_copy
from adamix.losses import consistency_loss, task_loss
from adamix.merge import MIXTURE_FILE, merge
from adamix.trainer import Progress, TrainResult, train
from adamix.training_loop import MixtureTrainer

MakeWords = Callable[..., PreTrainedTokenizerFast]

VOCABULARY, PAD, BOS, EOS = 17, 0, 2, 3

TRAIN = TrainConfig(max_steps=6, batch_size=8, learning_rate=5e-3, log_every=2, max_length=24, group_by_length=False)
LORA = AdapterConfig(kind="lora", rank=4, alpha=32, lora_dropout=0.1)
PAPER = MixtureConfig(num_experts=8, share="up", consistency=100.0)
GREEDY = Decoding(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=8)


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, make_gpt2: Callable[[], GPT2LMHeadModel]) -> Backbone:
    return from_language_model(make_gpt2() if request.param == "gpt2" else _llama(), name="tiny")


@pytest.fixture(scope="module")
def gpt2(make_gpt2: Callable[[], GPT2LMHeadModel]) -> Backbone:
    return from_language_model(make_gpt2(), name="tiny")


@pytest.fixture
def run(gpt2: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData) -> Any:
    def call(out: Path, backbone: Backbone = gpt2, **changes: Any) -> TrainResult:
        settings: dict[str, Any] = {
            "data": likes,
            "validation": None,
            "adapter": LORA,
            "mixture": MixtureConfig(),
            "head": HeadConfig(),
            "train": TRAIN,
            **changes,
        }
        return train(backbone, words, out=out, **settings)

    return call


def _adapter(out: Path) -> AdapterFile:
    return adapter_file.decode(merge(out))


# Rows


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


# Losses


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
    assert logits.shape == (len(targets), VOCABULARY)
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


def test_a_step_weighs_every_target_token_alike(
    gpt2: Backbone,
    words: PreTrainedTokenizerFast,
    likes: GenerationData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches of a step differ in target tokens; the gradients of the step must not depend on how it was cut."""

    def plain_descent(self: MixtureTrainer, model: object = None) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
        self.optimizer = torch.optim.SGD(parameters, lr=self.args.learning_rate)
        return self.optimizer

    monkeypatch.setattr(MixtureTrainer, "create_optimizer", plain_descent)
    uneven = [*likes.examples[:7], GenerationExample("name", ("anna likes red of green is fond of blue",))]
    weights = []
    for accumulation in (1, 4):
        settings = dataclasses.replace(
            TRAIN,
            max_steps=2,
            accumulation=accumulation,
            learning_rate=0.1,
            max_grad_norm=0.0,
            label_smoothing=0.1,
            backbone_dropout=False,
        )
        out = tmp_path / str(accumulation)
        adapter, mixture = AdapterConfig(rank=4), MixtureConfig(share="none", routing_granularity="instance")
        train(gpt2, words, GenerationData("uneven", tuple(uneven)), None, adapter, mixture, HeadConfig(), settings, out)
        weights.append({key: t.array for key, t in _adapter(out).tensors.items()})
    for key in weights[0]:
        assert abs(weights[0][key] - weights[1][key]).max() < 1e-5, key


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_first_loss_is_the_backbones_own_over_all_target_tokens(
    run: Any,
    decoder: Backbone,
    words: PreTrainedTokenizerFast,
    likes: GenerationData,
    tmp_path: Path,
    accumulation: int,
) -> None:
    """A LoRA begins as the identity, and all its routes with it. Rows of unequal targets, one step over all of them."""
    assert decoder.language_model is not None
    total, count = 0.0, 0
    for row in target_rows(words, likes.examples, max_length=24):
        logits = decoder.language_model(input_ids=torch.tensor([row.ids])).logits[0]
        targets = torch.tensor(row.targets)
        total += float(torch.nn.functional.cross_entropy(logits[row.num_prompt - 1 : -1], targets, reduction="sum"))
        count += len(targets)
    settings = dataclasses.replace(
        TRAIN, max_steps=1, batch_size=24, accumulation=accumulation, log_every=1, backbone_dropout=False
    )
    adapter = dataclasses.replace(LORA, lora_dropout=0.0)
    result = run(tmp_path, decoder, adapter=adapter, mixture=PAPER, train=settings)
    assert result.loss == pytest.approx(total / count, rel=1e-4)


# Training


@pytest.mark.parametrize("adapter", [LORA, AdapterConfig(rank=8)], ids=["lora", "bottleneck"])
def test_training_lowers_the_loss_of_the_merged_adapter(
    run: Any,
    decoder: Backbone,
    words: PreTrainedTokenizerFast,
    likes: GenerationData,
    tmp_path: Path,
    adapter: AdapterConfig,
) -> None:
    before = {name: p.clone() for name, p in decoder.model.named_parameters()}
    seen: list[Progress] = []
    settings = dataclasses.replace(TRAIN, max_steps=40, learning_rate=3e-2, batch_size=12)
    result = run(
        tmp_path, decoder, adapter=adapter, train=settings, validation=likes, callbacks=[seen.append],
    )  # fmt: skip
    assert seen[-1].loss < 0.85 * seen[4].loss
    # A uniform guess costs log 17 = 2.83 a token, and a random decoder without an adapter more than that.
    assert result.metrics["loss"] < 2.6
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    assert result.head_parameters == 0
    for name, parameter in decoder.model.named_parameters():
        assert torch.equal(parameter, before[name])
    merged = _adapter(tmp_path)
    assert merged.manifest.head.type == "causal_lm"
    assert merged.manifest.head.pooling == "none"
    assert merged.head() == {}
    assert merged.manifest.training.data == "likes (synthetic, 12 sources, 24 references)"
    assert merged.manifest.training.metrics["validation_loss"] == result.metrics["loss"]
    # What was measured at the end of training is what the file does.
    assert generation.token_metrics(merged, decoder, words, likes) == result.metrics


def test_the_papers_mixture_trains_its_lora_on_queries_and_values(
    run: Any, gpt2: Backbone, likes: GenerationData, tmp_path: Path
) -> None:
    result = run(tmp_path, mixture=PAPER, train=dataclasses.replace(TRAIN, label_smoothing=0.1))
    # A is [4, 16] in 8 copies, B is [16, 4] once, at two sites of two layers (method: parameters of the LoRA).
    assert result.trained_parameters == 2 * 2 * (8 * 4 * 16 + 16 * 4)
    assert result.merged_parameters == 2 * 2 * (4 * 16 + 16 * 4)
    manifest = _adapter(tmp_path).manifest
    assert (manifest.scaling, manifest.training.consistency) == (8.0, 100.0)


def test_stopped_and_resumed_a_run_ends_the_same(run: Any, tmp_path: Path) -> None:
    changes = {"mixture": MixtureConfig(share="none"), "train": dataclasses.replace(TRAIN, accumulation=2)}
    run(tmp_path / "whole", **changes)

    def interrupt(progress: Progress) -> None:
        if progress.step == 4:  # inside an epoch of three steps
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Cancelled):
        run(tmp_path / "parts", callbacks=[interrupt], **changes)
    run(tmp_path / "parts", resume=True, **changes)
    assert (tmp_path / "parts" / MIXTURE_FILE).read_bytes() == (tmp_path / "whole" / MIXTURE_FILE).read_bytes()


def test_gradient_checkpointing_gives_the_same_weights(run: Any, tmp_path: Path) -> None:
    for name, on in (("without", False), ("with", True)):
        run(tmp_path / name, train=dataclasses.replace(TRAIN, max_steps=2, gradient_checkpointing=on))
    first, second = (_adapter(tmp_path / name).tensors for name in ("without", "with"))
    assert all(abs(first[key].array - second[key].array).max() < 1e-6 for key in first)


def test_without_the_backbones_dropout_only_routes_tell_the_passes_apart(
    run: Any, decoder: Backbone, tmp_path: Path
) -> None:
    """With one expert there is one route: the passes agree, and the weight of their consistency has no effect."""
    adapter = AdapterConfig(rank=4)
    settings = dataclasses.replace(TRAIN, max_steps=3, backbone_dropout=False)
    for name, mixture in {"one": MixtureConfig.single(), "two": MixtureConfig(num_experts=1, consistency=10.0)}.items():
        run(tmp_path / name, decoder, adapter=adapter, mixture=mixture, train=settings)
    first, second = (_adapter(tmp_path / name).tensors for name in ("one", "two"))
    # Adam divides by small gradients; with dropout the difference is a hundred times as large.
    assert all(abs(first[key].array - second[key].array).max() < 1e-4 for key in first)


def test_dropout_is_removed_from_attention_too() -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        attention_dropout=0.5,
    )  # fmt: skip
    body = LlamaForCausalLM(config).base_model.train()
    ids = torch.tensor([[4, 5, 6, 7]])
    assert not torch.equal(body(ids).last_hidden_state, body(ids).last_hidden_state)
    remove_dropout(body)
    assert torch.equal(body(ids).last_hidden_state, body(ids).last_hidden_state)


def test_what_does_not_fit_is_refused_by_name(
    run: Any, backbone: Backbone, gpt2: Backbone, likes: GenerationData, colours: TaskData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidConfig, match="bert is an encoder"):
        run(out, backbone)
    with pytest.raises(InvalidConfig, match="without its language-model head"):
        run(out, dataclasses.replace(gpt2, lm_head=None, language_model=None))
    with pytest.raises(InvalidConfig, match="leave pooling"):
        run(out, head=HeadConfig(pooling="last"))
    with pytest.raises(InvalidData, match="validation data are not"):
        run(out, validation=colours)
    with pytest.raises(InvalidData, match="validation data are not"):
        run(out, data=colours, validation=likes, head=HeadConfig(pooling="last"))
    with pytest.raises(InvalidData, match="no rows"):
        run(out, data=GenerationData("none", ()))
    with pytest.raises(InvalidConfig, match="48 positions"):
        run(out, train=dataclasses.replace(TRAIN, max_length=49))
    assert not out.exists()


# Decoding


@pytest.fixture(scope="module")
def trained(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData, tmp_path_factory: pytest.TempPathFactory
) -> AdapterFile:
    out = tmp_path_factory.mktemp("run")
    settings = dataclasses.replace(TRAIN, max_steps=60, learning_rate=3e-2, batch_size=12)
    first = tuple(dataclasses.replace(example, references=example.references[:1]) for example in likes.examples)
    data, adapter = GenerationData("likes", first), AdapterConfig(rank=16, sites=("attn_out", "mlp_out"))
    train(decoder, words, data, None, adapter, MixtureConfig(), HeadConfig(), settings, out)
    return _adapter(out)


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
    generated = generation.generate(trained, decoder, words, sources, GREEDY)
    model = _adapted(trained, decoder)
    with torch.inference_mode():
        answers = [_stepwise(model, prompt.ids, 8) for prompt in prompts(words, sources, max_tokens=24)]
    assert generated.texts == [words.decode(ids, skip_special_tokens=True) for ids in answers]
    assert len(set(generated.texts)) > 3
    assert generated.truncated == 0
    assert generated.unfinished == sum(len(ids) == 8 for ids in answers)
    # Whatever else is in the batch.
    alone = generation.generate(trained, decoder, words, sources, GREEDY, batch_size=1)
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
    generated = generation.generate(trained, decoder, words, sources, decoding)
    for source, text in zip(sources, generated.texts, strict=True):
        (prompt,) = prompts(words, [source], max_tokens=24)
        with torch.inference_mode():
            _, best = _all_scores(model, prompt.ids, 2, decoding.length_penalty)
        assert text == words.decode([token for token in best if token != EOS], skip_special_tokens=True)


@pytest.mark.parametrize("size", [1, 2])
def test_no_ngram_repeats(trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast, size: int) -> None:
    chosen = prompts(words, ["anna likes red", "of of of", "name dora colour blue"], max_tokens=24)
    model = generation.attach_adapter(trained, decoder)
    decoding = dataclasses.replace(GREEDY, no_repeat_ngram_size=size)
    for said, _ in generation._generate_batch(model, words, chosen, decoding):
        ngrams = [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]
        assert len(set(ngrams)) == len(ngrams)


def test_what_the_source_says_may_be_said() -> None:
    """transformers' own settings of these names would count the prompt, and forbid copying a name out of it."""
    penalties = generation._penalties(Decoding(no_repeat_ngram_size=2, repetition_penalty=2.0), prompt_width=3)
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
    generated = generation.generate(trained, decoder, words, [long, tail], GREEDY)
    assert generated.truncated == 1
    # 24 tokens of the adapter's limit, of which one is the separator.
    again = generation.generate(trained, decoder, words, ["green " * 19 + tail], GREEDY)
    assert (again.truncated, again.texts[0]) == (0, generated.texts[0])
    with pytest.raises(InvalidConfig, match="leaves no prompt"):
        generation.generate(trained, decoder, words, [tail], dataclasses.replace(GREEDY, max_new_tokens=47))


def test_settings_of_the_checkpoint_do_not_leak_into_decoding(
    trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast
) -> None:
    assert decoder.language_model is not None
    want = generation.generate(trained, decoder, words, ["name anna colour red"], GREEDY).texts
    settings = decoder.language_model.generation_config
    settings.do_sample, settings.temperature, settings.min_new_tokens = True, 5.0, 8
    try:
        assert generation.generate(trained, decoder, words, ["name anna colour red"], GREEDY).texts == want
    finally:
        settings.do_sample, settings.temperature, settings.min_new_tokens = False, 1.0, None


def test_no_sources_are_no_texts(trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast) -> None:
    generated = generation.generate(trained, decoder, words, [], GREEDY)
    assert (generated.texts, generated.truncated, generated.unfinished) == ([], 0, 0)
    with pytest.raises(InvalidData, match="no rows to evaluate"):
        generation.token_metrics(trained, decoder, words, GenerationData("none", ()))


def test_few_sources_keep_all_their_references(likes: GenerationData) -> None:
    few, fewer = few_sources(likes, 5, seed=1), few_sources(likes, 3, seed=1)
    assert few.examples[:3] == fewer.examples
    assert set(few.examples) < set(likes.examples)
    assert few.is_synthetic
    assert few_sources(likes, 5, seed=2) != few
    for k in (0, 13):
        with pytest.raises(InvalidConfig, match="1 to 12 sources"):
            few_sources(likes, k, seed=1)


def test_other_heads_and_bare_backbones_generate_nothing(
    trained: AdapterFile, decoder: Backbone, words: PreTrainedTokenizerFast, colours: TaskData, make_adapter: Any
) -> None:
    with pytest.raises(FailedPrecondition, match="type classification generates no text"):
        generation.generate(make_adapter(0), decoder, words, ["anna"], GREEDY)
    bare = dataclasses.replace(decoder, lm_head=None, language_model=None)
    with pytest.raises(FailedPrecondition, match="without a language model"):
        generation.generate(trained, bare, words, ["anna"], GREEDY)
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
