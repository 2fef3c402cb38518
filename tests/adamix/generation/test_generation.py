"""Training decoders on generation data: losses of target tokens alone, and runs from the first step to the file."""

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import GenerationData, GenerationExample, TaskData
from adamix.errors import Cancelled, InvalidConfig, InvalidData
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.generation import beam_search
from adamix.generation.decoding import Decoding
from adamix.merging.merge import MIXTURE_FILE, merge
from adamix.modules.heads import remove_dropout
from adamix.rows.targets import target_rows
from adamix.training.loop import MixtureTrainer
from adamix.training.train import Progress, TrainResult, train

MakeWords = Callable[..., PreTrainedTokenizerFast]

VOCABULARY, PAD, BOS, EOS = 17, 0, 2, 3

TRAIN = TrainConfig(max_steps=6, batch_size=8, learning_rate=5e-3, log_every=2, max_length=24, group_by_length=False)
LORA = AdapterConfig.of("lora", rank=4, alpha=32, lora_dropout=0.1)
PAPER = MixtureConfig(num_experts=8, share="up", consistency=100.0)
GREEDY = Decoding(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=8)


Run = Callable[..., TrainResult]


@pytest.fixture
def run(gpt2: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData) -> Run:
    def call(
        out: Path, backbone: Backbone = gpt2, data: Any = likes, validation: Any = None, **changes: Any
    ) -> TrainResult:
        options = {name: changes.pop(name) for name in ("callbacks", "resume") if name in changes}
        plan = TrainingPlan(**{"adapter": LORA, "train": TRAIN, **changes})
        return train(plan, backbone, words, data, validation, out, **options)

    return call


def _adapter(out: Path) -> AdapterFile:
    return adapter_file.decode(merge(out))


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
        mixture = MixtureConfig(share="none", routing_granularity="instance")
        plan = TrainingPlan(adapter=AdapterConfig(rank=4), mixture=mixture, train=settings)
        train(plan, gpt2, words, GenerationData("uneven", tuple(uneven)), None, out)
        weights.append({key: t.array for key, t in _adapter(out).tensors.items()})
    for key in weights[0]:
        assert abs(weights[0][key] - weights[1][key]).max() < 1e-5, key


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_first_loss_is_the_backbones_own_over_all_target_tokens(
    run: Run,
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


@pytest.mark.parametrize("adapter", [LORA, AdapterConfig(rank=8)], ids=["lora", "bottleneck"])
def test_training_lowers_the_loss_of_the_merged_adapter(
    run: Run,
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
    assert beam_search.token_metrics(merged, decoder, words, likes) == result.metrics


def test_the_papers_mixture_trains_its_lora_on_queries_and_values(
    run: Run, gpt2: Backbone, likes: GenerationData, tmp_path: Path
) -> None:
    result = run(tmp_path, mixture=PAPER, train=dataclasses.replace(TRAIN, label_smoothing=0.1))
    # A is [4, 16] in 8 copies, B is [16, 4] once, at two sites of two layers (method: parameters of the LoRA).
    assert result.trained_parameters == 2 * 2 * (8 * 4 * 16 + 16 * 4)
    assert result.merged_parameters == 2 * 2 * (4 * 16 + 16 * 4)
    manifest = _adapter(tmp_path).manifest
    assert (manifest.scaling, manifest.training.consistency) == (8.0, 100.0)


def test_stopped_and_resumed_a_run_ends_the_same(run: Run, tmp_path: Path) -> None:
    changes = {"mixture": MixtureConfig(share="none"), "train": dataclasses.replace(TRAIN, accumulation=2)}
    run(tmp_path / "whole", **changes)

    def interrupt(progress: Progress) -> None:
        if progress.step == 4:  # inside an epoch of three steps
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Cancelled):
        run(tmp_path / "parts", callbacks=[interrupt], **changes)
    run(tmp_path / "parts", resume=True, **changes)
    assert (tmp_path / "parts" / MIXTURE_FILE).read_bytes() == (tmp_path / "whole" / MIXTURE_FILE).read_bytes()


def test_gradient_checkpointing_gives_the_same_weights(run: Run, tmp_path: Path) -> None:
    for name, on in (("without", False), ("with", True)):
        run(tmp_path / name, train=dataclasses.replace(TRAIN, max_steps=2, gradient_checkpointing=on))
    first, second = (_adapter(tmp_path / name).tensors for name in ("without", "with"))
    assert all(abs(first[key].array - second[key].array).max() < 1e-6 for key in first)


def test_without_the_backbones_dropout_only_routes_tell_the_passes_apart(
    run: Run, decoder: Backbone, tmp_path: Path
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
    run: Run, backbone: Backbone, gpt2: Backbone, likes: GenerationData, colours: TaskData, tmp_path: Path
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
