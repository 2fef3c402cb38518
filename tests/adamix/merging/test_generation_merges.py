"""Merging the experts of decoders by reference texts: what each method measures, and what must hold of all of them."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from adamix.backbones.backbone import Backbone
from adamix.cli import app
from adamix.config import AdapterConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import GenerationData, GenerationExample, TaskData
from adamix.errors import FailedPrecondition, InvalidData
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.mixture_file import expert_key
from adamix.files.tensors import TensorData
from adamix.generation import beam_search
from adamix.generation.likelihood import language_model, read_references
from adamix.merging import fisher, greedy, learned, regmean, rules
from adamix.merging.merge import DATA_METHODS, MergeConfig, MixtureFile, merge
from adamix.merging.samples import Samples
from adamix.modules.heads import Head, shared_copy
from adamix.modules.mixture import Mixture
from adamix.rows.labelled import collate
from adamix.training.result import build_manifest, expert_tensors, head_tensors, mixture_file
from adamix.training.task import GenerationTask, LabelledTask

NUM_EXPERTS = 3
ADAPTERS = {
    "lora": AdapterConfig(kind="lora", rank=2, alpha=4.0, sites=("attn_q", "attn_v")),
    "bottleneck": AdapterConfig(rank=3, sites=("mlp_out",)),
}


def _quiet(_done: int, _total: int) -> None:
    """No one looks at the progress."""


def _mixture(
    backbone: Backbone, data: GenerationData | TaskData, kind: str = "bottleneck", *, same: bool = False, **mixture: Any
) -> MixtureFile:
    """Untrained experts, large enough to differ in what they predict; with `same` all of them equal."""
    adapter = ADAPTERS[kind]
    config = MixtureConfig(**{"num_experts": NUM_EXPERTS, "share": "none", **mixture})
    experts = Mixture(shared_copy(backbone.model), adapter, config, torch.Generator())
    plan = TrainingPlan(adapter=adapter, mixture=config, train=TrainConfig(max_length=24))
    task = GenerationTask(data) if isinstance(data, GenerationData) else LabelledTask(data)
    manifest = build_manifest(plan, task, backbone)
    tensors = expert_tensors(experts)
    if isinstance(data, TaskData):
        tensors |= head_tensors(Head(manifest.head, backbone.spec.hidden_size, None), (0.0, 1.0))
    rng = np.random.default_rng(0)
    drawn = {key: TensorData.from_float32(rng.normal(0, 0.5, t.shape)) for key, t in tensors.items()}
    found = mixture_file(manifest, config, drawn)
    if same:
        for projection in found.projections().values():
            for part in ("weight",) if projection.bias is None else ("weight", "bias"):
                for expert in range(1, projection.num_experts):
                    drawn[expert_key(projection.key, expert, part)] = drawn[expert_key(projection.key, 0, part)]
    return dataclasses.replace(found, tensors=drawn)


def _single(mixture: MixtureFile, expert: int) -> AdapterFile:
    weights = [float(i == expert) for i in range(NUM_EXPERTS)]
    return adapter_file.decode(merge(mixture, "weighted", weights=weights))


def _tensors(content: bytes) -> dict[str, Any]:
    return {key: tensor.to_float32() for key, tensor in adapter_file.decode(content).tensors.items()}


@pytest.fixture
def samples(decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData) -> Samples:
    return Samples(decoder, words, likes)


def _loss(adapter: AdapterFile, samples: Samples) -> float:
    assert isinstance(samples.data, GenerationData)
    return beam_search.token_metrics(adapter, samples.backbone, samples.tokenizer, samples.data)["loss"]


@pytest.mark.parametrize("how", DATA_METHODS)
@pytest.mark.parametrize(("kind", "share"), [("lora", "up"), ("bottleneck", "none")])
def test_every_method_merges_by_texts(how: str, kind: str, share: str, samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data, kind, share=share)
    config = MergeConfig(max_rows=5, batch_size=4, steps=4)
    seen: list[tuple[int, int]] = []
    content = merge(mixture, how, samples=samples, config=config, on_progress=lambda *at: seen.append(at))
    assert content == merge(mixture, how, samples=samples, config=config)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    adapter = adapter_file.decode(content)
    assert adapter.manifest.training.merge.startswith(how)
    assert adapter.manifest.head.type == "causal_lm"
    assert _loss(adapter, samples) > 0


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
@pytest.mark.parametrize("how", DATA_METHODS)
def test_equal_experts_merge_into_themselves(
    how: str, kind: str, gpt2: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    mixture = _mixture(gpt2, likes, kind, same=True)
    merged = merge(mixture, how, samples=Samples(gpt2, words, likes), config=MergeConfig(max_rows=4, steps=2))
    uniform = _tensors(merge(mixture))
    assert all(np.array_equal(value, uniform[key]) for key, value in _tensors(merged).items())


def test_learning_lowers_the_loss_of_the_target_tokens(samples: Samples) -> None:
    """What it learns by is the loss that evaluation reports of the merged adapter, and is not above the uniform's."""
    mixture = _mixture(samples.backbone, samples.data)
    config = MergeConfig(steps=12, learning_rate=0.1)
    result = learned.learn(mixture, samples, config, _quiet)
    assert result.loss_before == pytest.approx(_loss(adapter_file.decode(merge(mixture)), samples), rel=1e-5)
    assert result.loss_after < result.loss_before
    merged = adapter_file.decode(merge(mixture, "learned", samples=samples, config=config))
    assert merged.manifest.training.merge == "learned steps=12 rows=12"
    assert _loss(merged, samples) == pytest.approx(result.loss_after, rel=1e-5)
    assert all(sum(shares) == pytest.approx(1.0) for shares in result.weights.values())


@pytest.mark.parametrize("config", [MergeConfig(steps=0), MergeConfig(steps=2, learning_rate=10.0)])
def test_learning_that_does_not_help_leaves_the_uniform_mean(config: MergeConfig, samples: Samples) -> None:
    """No steps; and steps so long that they end above where they began, or else did help."""
    mixture = _mixture(samples.backbone, samples.data)
    content = merge(mixture, "learned", samples=samples, config=config)
    uniform = _loss(adapter_file.decode(merge(mixture)), samples)
    assert _loss(adapter_file.decode(content), samples) <= uniform * (1 + 1e-6)
    if config.steps == 0:
        assert all(np.array_equal(value, _tensors(merge(mixture))[key]) for key, value in _tensors(content).items())


def test_a_mean_weighs_every_target_token_alike(
    gpt2: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    """However rows of few and of many target tokens are cut into batches."""
    uneven = GenerationExample("name", ("anna likes red of green is fond of blue",))
    data = GenerationData("uneven", (*likes.examples[:2], uneven))
    mixture, samples = _mixture(gpt2, data), Samples(gpt2, words, data)
    want = _loss(adapter_file.decode(merge(mixture)), samples)
    for batch_size in (1, 2, 16):
        config = MergeConfig(steps=0, batch_size=batch_size)
        assert learned.learn(mixture, samples, config, _quiet).loss_before == pytest.approx(want, rel=1e-5)


def test_greedy_is_never_above_the_loss_of_its_best_expert(samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    choice = greedy.choose(mixture, samples, MergeConfig(), _quiet)
    losses = [_loss(_single(mixture, expert), samples) for expert in range(NUM_EXPERTS)]
    assert [-score for score in choice.single] == pytest.approx(losses, rel=1e-6)
    assert choice.experts[0] == int(np.argmin(losses))
    assert choice.score >= max(choice.single)
    merged = adapter_file.decode(merge(mixture, "greedy", samples=samples))
    assert _loss(merged, samples) == pytest.approx(-choice.score, rel=1e-6)
    assert merged.manifest.training.merge == "greedy " + ",".join(map(str, choice.experts))


def test_greedy_leaves_out_an_expert_that_does_harm(samples: Samples) -> None:
    """Expert 2 is the opposite of expert 0, so that with both the mean is expert 1 alone, at a third of its size."""
    mixture = _mixture(samples.backbone, samples.data, "lora", share="down")
    tensors = dict(mixture.tensors)
    for key, projection in mixture.projections().items():
        if projection.num_experts > 1:
            opposite = -projection.weight.copies[0]
            tensors[expert_key(key, 2, "weight")] = TensorData.from_float32(opposite)
    turned = dataclasses.replace(mixture, tensors=tensors)
    choice = greedy.choose(turned, samples, MergeConfig(), _quiet)

    def loss(experts: list[int]) -> float:
        weights = [float(expert in experts) for expert in range(NUM_EXPERTS)]
        return _loss(adapter_file.decode(merge(turned, "weighted", weights=weights)), samples)

    left_out = sorted(set(range(NUM_EXPERTS)) - set(choice.experts))
    assert left_out
    for expert in left_out:
        tried = choice.experts[: 1 + sum(choice.single[kept] >= choice.single[expert] for kept in choice.experts[1:])]
        assert loss([*tried, expert]) > loss(list(tried))


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_the_information_is_the_mean_square_of_every_rows_gradient(kind: str, samples: Samples) -> None:
    """Against autograd on one row at a time, through the merged adapter of one expert."""
    mixture = _mixture(samples.backbone, samples.data, kind)
    config = MergeConfig(max_rows=3, batch_size=4)
    few = samples.limited(config)
    found = fisher.information(mixture, few, config, _quiet)
    assert isinstance(few.data, GenerationData)
    references = read_references(few.tokenizer, few.data, 24).rows
    counts = [len(row.targets) for row in references.rows]
    quantiles = torch.rand(sum(counts), 1, generator=torch.Generator().manual_seed(config.seed)).split(counts)
    for expert in range(NUM_EXPERTS):
        linears: dict[str, nn.Linear] = {}
        model = language_model(_single(mixture, expert), few.backbone, linears.setdefault)
        squares: dict[str, list[Any]] = {key: [0.0, 0.0] for key in linears}
        for index, drawn in enumerate(quantiles):
            for linear in linears.values():
                linear.requires_grad_(True).zero_grad()
            batch = references.batch([index])
            del batch["targets"]
            logits = model(**batch)
            assert len(logits) == len(drawn)
            fisher.log_likelihood(logits, drawn, "classification").backward()
            for key, linear in linears.items():
                for place, parameter in enumerate(linear.parameters()):
                    assert parameter.grad is not None
                    squares[key][place] += parameter.grad.double().square().numpy() / len(counts)
        assert set(squares) == set(found)
        for key, (weight, bias) in squares.items():
            # Gradients in fp32, of rows padded to others' length.
            information, tolerance = found[key], 1e-5 * weight.max()
            np.testing.assert_allclose(information.weight[expert], weight, rtol=1e-3, atol=tolerance)
            assert (information.bias is None) == (kind == "lora")
            if information.bias is not None:
                np.testing.assert_allclose(information.bias[expert], bias, rtol=1e-3, atol=tolerance)


def test_tokens_are_drawn_from_their_own_distributions() -> None:
    """More of them than are drawn at a time: each is the token in whose share of [0, 1) its quantile lies."""
    generator = torch.Generator().manual_seed(0)
    logits, quantiles = torch.randn(150, 7, generator=generator), torch.rand(150, 1, generator=generator)
    shares = logits.double().softmax(-1).cumsum(-1).numpy()
    drawn = [int(np.searchsorted(row, float(q), side="right")) for row, q in zip(shares, quantiles, strict=True)]
    want = float(logits.log_softmax(-1)[torch.arange(150), torch.tensor(drawn)].sum())
    assert float(fisher.log_likelihood(logits, quantiles, "classification")) == pytest.approx(want, rel=1e-5)
    # Rows of shares with a quantile at the very end have a token too.
    assert torch.isfinite(fisher.log_likelihood(logits, torch.ones(150, 1), "classification"))


def test_the_square_of_a_texts_gradient_is_expected_to_be_the_information_of_its_tokens() -> None:
    """Of a linear model of 4 words on 5 tokens: summed over these the mean of `(d log p_t / d w)^2`, written out."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, generator=generator)
    weight = torch.randn(4, 3, generator=generator, requires_grad=True)
    total, draws = torch.zeros(4, 3), 3000
    for _ in range(draws):
        drawn = fisher.log_likelihood(inputs @ weight.T, torch.rand(5, 1, generator=generator), "classification")
        total += torch.autograd.grad(drawn, weight)[0].square()
    chances = (inputs @ weight.detach().T).softmax(-1)
    # d log p(v) / d w_u = ([u is v] - p(u)) x, whose square has the expectation p(u) (1 - p(u)) x^2.
    want = (chances * (1 - chances)).T @ inputs.square()
    # A mean of 3,000 squares, whose relative deviation is about that of a squared normal variable: sqrt(2 / 3000).
    torch.testing.assert_close(total / draws, want, rtol=0.15, atol=0.01)


def _note(seen: dict[str, torch.Tensor], key: str, _: nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
    seen[key] = inputs[0]


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_the_moments_are_those_of_the_tokens_and_not_of_the_padding(kind: str, samples: Samples) -> None:
    """Of all tokens that are read, the source's as well: the adapter works on these too."""
    mixture = _mixture(samples.backbone, samples.data, kind)
    config = MergeConfig(max_rows=3, batch_size=5)
    few = samples.limited(config)
    assert isinstance(few.data, GenerationData)
    found = regmean.moments(mixture, few, config, _quiet)
    projections = mixture.projections()
    sums = {key: np.zeros_like(value.gram) for key, value in found.items()}
    crosses = {key: np.zeros_like(value.cross) for key, value in found.items()}
    for expert in range(NUM_EXPERTS):
        linears: dict[str, nn.Linear] = {}
        model = language_model(_single(mixture, expert), few.backbone, linears.setdefault)
        seen: dict[str, torch.Tensor] = {}
        for key, linear in linears.items():
            linear.register_forward_hook(functools.partial(_note, seen, key))
        for row in read_references(few.tokenizer, few.data, 24).rows.rows:  # one by one: no padding
            batch = collate([row.inputs], 0)
            with torch.inference_mode():
                model(**batch, target_mask=batch["attention_mask"].bool())
            for key, x in seen.items():
                inputs = x[0].double().numpy()
                if kind == "bottleneck":
                    inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
                sums[key] += inputs.T @ inputs
                crosses[key] += inputs.T @ inputs @ rules.deviations(projections[key])[expert].T
    for key, value in found.items():
        scale = np.abs(sums[key]).max()
        np.testing.assert_allclose(value.gram, sums[key], atol=1e-5 * scale)
        np.testing.assert_allclose(value.cross, crosses[key], atol=1e-5 * scale)


def test_sources_are_drawn_with_all_their_references(samples: Samples) -> None:
    first, again, other = (samples.limited(MergeConfig(max_rows=5, seed=seed)).data for seed in (1, 1, 2))
    assert first == again != other
    assert len(first.examples) == 5
    assert set(first.examples) <= set(samples.data.examples)
    assert samples.limited(MergeConfig(max_rows=12)) is samples


def test_the_backbone_stays_as_it_is(samples: Samples) -> None:
    assert samples.backbone.language_model is not None
    before = {name: tensor.clone() for name, tensor in samples.backbone.language_model.state_dict().items()}
    for how in DATA_METHODS:
        merge(_mixture(samples.backbone, samples.data), how, samples=samples, config=MergeConfig(max_rows=3, steps=1))
    for name, tensor in samples.backbone.language_model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in samples.backbone.language_model.parameters())


@pytest.mark.parametrize("how", DATA_METHODS)
def test_what_does_not_fit_is_refused(how: str, samples: Samples, colours: TaskData) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    labelled = _mixture(samples.backbone, colours)
    with pytest.raises(InvalidData, match="colours has labels, but the adapter generates texts"):
        merge(mixture, how, samples=dataclasses.replace(samples, data=colours))
    with pytest.raises(InvalidData, match="likes has texts to generate, but the adapter is for labels"):
        merge(labelled, how, samples=samples)
    with pytest.raises(InvalidData, match="no rows"):
        merge(mixture, how, samples=dataclasses.replace(samples, data=GenerationData("none", ())))
    bare = dataclasses.replace(samples.backbone, lm_head=None, language_model=None)
    with pytest.raises(FailedPrecondition, match="without a language model"):
        merge(mixture, how, samples=dataclasses.replace(samples, backbone=bare))


TRAIN = ["--task-type", "generation", "--max-steps", "2", "--batch-size", "8", "--max-length", "24", "--rank", "2"]


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, decoder_directory: Path, likes: GenerationData) -> tuple[Path, Path]:
    """A trained mixture, and its data."""
    out, data = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("likes")
    lines = [json.dumps({"source": e.source, "references": e.references}) + "\n" for e in likes.examples]
    for name, part in (("train", lines), ("validation", lines[:4])):
        (data / f"{name}.jsonl").write_text("".join(part))
    backbone = ("--backbone", decoder_directory)
    result = _invoke("train", *backbone, "--data", data, *TRAIN, "--experts", 2, "--no-validate", "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, data


@pytest.mark.parametrize(
    ("how", "flags", "record"),
    [
        ("learned", ["--max-rows", 5, "--steps", 2, "--lr", 0.1], "learned steps="),
        ("greedy", ["--batch-size", 4], "greedy "),
        ("fisher", ["--max-rows", 4, "--seed", 3], "fisher rows=4"),
        ("regmean", ["--few-shot", 5, "--split", "train"], "regmean rows=5"),
    ],
)
def test_every_method_writes_an_adapter(
    how: str, flags: list[object], record: str, run: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "adapter.safetensors"
    result = _invoke("merge", run[0], "--out", out, "--how", how, "--data", run[1], *flags, "--json")
    assert result.exit_code == 0, result.stderr
    adapter = adapter_file.read(out)
    assert adapter.manifest.training.merge.startswith(record)
    assert json.loads(result.stdout)["digest"] == adapter.digest


def test_wrong_data_are_one_sentence_and_leave_no_file(run: tuple[Path, Path], tmp_path: Path) -> None:
    labelled, out = tmp_path / "labels.csv", tmp_path / "adapter.safetensors"
    labelled.write_text("text,label\nred,a\ngreen,b\n")
    for flags, code, message in (
        (["--data", labelled], 1, "labels.csv:1: the header needs the columns"),
        (["--data", run[1], "--split", "test"], 2, "--split train or validation"),
        (["--data", run[1], "--few-shot", 13], 2, "few-shot takes 1 to 12 sources"),
    ):
        result = _invoke("merge", run[0], "--out", out, "--how", "fisher", *flags)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not out.exists()
