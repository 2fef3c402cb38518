"""Merging by text: what greedy, learned, Fisher and RegMean measure, and what must hold of all of them."""

import dataclasses
import functools
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone, from_model
from adamix.data import TaskData
from adamix.errors import FailedPrecondition, InvalidAdapter, InvalidData
from adamix.evaluation import labelled
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import HeadSpec, TrainingRecord, label_map
from adamix.files.mixture_file import expert_key
from adamix.files.tensors import TensorData
from adamix.merging import fisher, greedy, learned, regmean, rules
from adamix.merging.merge import DATA_METHODS, MergeConfig, MixtureFile, MixtureManifest, merge
from adamix.merging.samples import Samples
from adamix.modules.attach import attach
from adamix.rows.labelled import collate
from adamix_testing.manifests import make_manifest

RANK = 3
NUM_EXPERTS = 3
DOWN = "layers.1.mlp_out.down_proj"


def quiet(_done: int, _total: int) -> None:
    """No one looks at the progress."""


def _mixture(
    backbone: Backbone,
    task: TaskData,
    *,
    kind: str = "bottleneck",
    share: str = "none",
    same: bool = False,
    site: str | None = None,
) -> MixtureFile:
    """Random experts for a task, large enough to differ in what they answer."""
    rng, spec = np.random.default_rng(0), backbone.spec
    site = site or ("attn_v" if kind == "lora" else "mlp_out")
    width_in, width = spec.sites[site]
    sides = {"lora_A": (RANK, width_in), "lora_B": (width, RANK)} if kind == "lora" else {}
    sides = sides or {"down_proj": (RANK, width), "up_proj": (width, RANK)}
    tensors: dict[str, TensorData] = {}
    for layer in range(spec.num_layers):
        for side, shape in sides.items():
            projection = f"layers.{layer}.{site}.{side}"
            is_down = side in ("down_proj", "lora_A")
            count = 1 if share == ("down" if is_down else "up") else NUM_EXPERTS
            for part, size in {"weight": shape, "bias": shape[:1]}.items():
                if kind == "lora" and part == "bias":
                    continue
                first = rng.normal(0, 0.4, size)
                for expert in range(count):
                    values = first if same else rng.normal(0, 0.4, size)
                    tensors[expert_key(projection, expert, part)] = TensorData.from_float32(values)
    num_labels = max(1, len(task.labels))
    tensors["head.out_proj.weight"] = TensorData.from_float32(rng.normal(0, 0.4, (num_labels, spec.hidden_size)))
    tensors["head.out_proj.bias"] = TensorData.from_float32(rng.normal(0, 0.4, num_labels))
    manifest = make_manifest(
        spec,
        HeadSpec(
            type=task.task_type,
            pooling="mean",
            num_labels=num_labels,
            id2label=label_map(list(task.labels)) if task.labels else None,
        ),
        kind=kind,  # type: ignore[arg-type]
        max_length=16,
        training=TrainingRecord(method="adamix", num_experts=NUM_EXPERTS),
    )
    mixed = MixtureManifest(
        adapter=manifest,
        num_experts=NUM_EXPERTS,
        share=share,  # type: ignore[arg-type]
        routing_granularity="batch",
    )
    return MixtureFile(mixed, tensors)


def _permuted(mixture: MixtureFile, order: list[int]) -> MixtureFile:
    """Expert i is what expert order[i] was, in every projection."""
    tensors = dict(mixture.tensors)
    for projection in mixture.projections().values():
        for part in ("weight", "bias") if projection.bias is not None else ("weight",):
            for expert in range(projection.num_experts) if projection.num_experts > 1 else ():
                source = expert_key(projection.key, order[expert], part)
                tensors[expert_key(projection.key, expert, part)] = mixture.tensors[source]
    return dataclasses.replace(mixture, tensors=tensors)


def _single(mixture: MixtureFile, expert: int) -> AdapterFile:
    weights = [float(i == expert) for i in range(NUM_EXPERTS)]
    return adapter_file.decode(merge(mixture, "weighted", weights=weights))


def _tensors(content: bytes) -> dict[str, Any]:
    return {key: tensor.to_float32() for key, tensor in adapter_file.decode(content).tensors.items()}


@pytest.fixture
def samples(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData) -> Samples:
    return Samples(backbone, tokenizer, colours)


@pytest.mark.parametrize("how", DATA_METHODS)
@pytest.mark.parametrize(
    ("task", "kind", "share"),
    [("colours", "bottleneck", "up"), ("palettes", "lora", "none"), ("numbers", "bottleneck", "down")],
)
def test_every_task_type_is_merged_by_its_text(
    how: str,
    task: str,
    kind: str,
    share: str,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    request: pytest.FixtureRequest,
) -> None:
    rows: TaskData = request.getfixturevalue(task)
    samples = Samples(backbone, tokenizer, rows)
    mixture = _mixture(backbone, rows, kind=kind, share=share)
    config = MergeConfig(max_rows=20, batch_size=8, steps=6)
    seen: list[tuple[int, int]] = []
    content = merge(mixture, how, samples=samples, config=config, on_progress=lambda *at: seen.append(at))
    assert content == merge(mixture, how, samples=samples, config=config)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    adapter = adapter_file.decode(content)
    assert adapter.manifest.training.merge.startswith(how)
    assert labelled.evaluate(adapter, backbone, tokenizer, rows).rows == 48
    for name in ("head.out_proj.weight", "head.out_proj.bias"):
        assert np.array_equal(adapter.tensors[name].array, mixture.tensors[name].array)


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
@pytest.mark.parametrize("how", DATA_METHODS)
def test_equal_experts_merge_into_themselves(how: str, kind: str, samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data, kind=kind, same=True)
    merged = _tensors(merge(mixture, how, samples=samples, config=MergeConfig(max_rows=10, steps=3)))
    uniform = _tensors(merge(mixture))
    assert all(np.array_equal(value, uniform[key]) for key, value in merged.items())


@pytest.mark.parametrize("how", ["fisher", "regmean", "learned", "greedy"])
def test_the_order_of_the_experts_changes_nothing(how: str, samples: Samples, numbers: TaskData) -> None:
    samples = dataclasses.replace(samples, data=numbers) if how == "greedy" else samples
    mixture = _mixture(samples.backbone, samples.data, share="up")
    config = MergeConfig(steps=5, max_rows=48)
    first = _tensors(merge(mixture, how, samples=samples, config=config))
    second = _tensors(merge(_permuted(mixture, [2, 0, 1]), how, samples=samples, config=config))
    if how == "greedy":  # which goes by order where experts are equally good: not here
        assert len(set(greedy.choose(mixture, samples, config, quiet).single)) == NUM_EXPERTS
    # Sums in another order, in fp32 inside the backbone.
    assert all(np.allclose(value, second[key], atol=2e-4) for key, value in first.items())


@pytest.mark.parametrize("how", DATA_METHODS)
def test_one_expert_is_what_it_merges_into(how: str, samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    others = ("_proj.1.", "_proj.2.")
    only = {key: tensor for key, tensor in mixture.tensors.items() if not any(name in key for name in others)}
    single = MixtureFile(msgspec.structs.replace(mixture.manifest, num_experts=1), only)
    merged = adapter_file.decode(merge(single, how, samples=samples))
    assert merged.manifest.training.merge == how
    assert {k: t.array.tobytes() for k, t in merged.tensors.items()} == {
        k: t.array.tobytes() for k, t in adapter_file.decode(merge(single)).tensors.items()
    }


@pytest.mark.parametrize(("task", "metric"), [("palettes", "micro_f1"), ("numbers", "pearson")])
def test_greedy_is_never_below_its_best_expert(
    task: str, metric: str, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> None:
    rows: TaskData = request.getfixturevalue(task)
    mixture, samples = _mixture(backbone, rows), Samples(backbone, tokenizer, rows)
    choice = greedy.choose(mixture, samples, MergeConfig(), quiet)
    scores = [
        labelled.evaluate(_single(mixture, e), backbone, tokenizer, rows).metrics[metric] for e in range(NUM_EXPERTS)
    ]
    # Batches of other sizes, in fp32.
    assert list(choice.single) == pytest.approx(scores, abs=1e-5)
    assert choice.experts[0] == int(np.argmax(scores))
    assert choice.score >= max(choice.single)
    merged = adapter_file.decode(merge(mixture, "greedy", samples=samples))
    result = labelled.evaluate(merged, backbone, tokenizer, rows)
    assert result.metrics[metric] == pytest.approx(choice.score, abs=1e-5)
    assert merged.manifest.training.merge == "greedy " + ",".join(map(str, choice.experts))


def test_greedy_leaves_out_an_expert_that_does_harm(samples: Samples) -> None:
    """Two experts that change nothing, so that they are as good as the backbone; and one that drowns the text."""
    mixture = _mixture(samples.backbone, samples.data, share="down")
    tensors = dict(mixture.tensors)
    for layer in range(2):
        for expert in range(NUM_EXPERTS):
            for part, shape in (("weight", (32, RANK)), ("bias", (32,))):
                constant = 900.0 * (expert == 1) * np.sign(np.arange(32) % 3 - 1)
                values = np.broadcast_to(constant.reshape(-1, *(1,) * (len(shape) - 1)), shape)
                key = expert_key(f"layers.{layer}.mlp_out.up_proj", expert, part)
                tensors[key] = TensorData.from_float32(np.array(values))
    # A head that reads the text off the backbone: the best linear one on these rows.
    harmful = _with_fitted_head(dataclasses.replace(mixture, tensors=tensors), samples)
    choice = greedy.choose(harmful, samples, MergeConfig(), quiet)
    assert set(choice.experts) == {0, 2}
    assert choice.score == choice.single[0] > choice.single[1]


def _with_fitted_head(mixture: MixtureFile, samples: Samples) -> MixtureFile:
    model = attach(_single(mixture, 0), samples.backbone)
    features: list[torch.Tensor] = []
    out_proj = model.head.out_proj
    assert out_proj is not None
    out_proj.register_forward_hook(lambda _m, inputs, _y: features.append(inputs[0]))
    rows = samples.labelled_rows(mixture).tokens
    labelled.predict(model, rows, pad_id=0, batch_size=len(rows))
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    x = np.hstack([features[0].double().numpy(), np.ones((len(rows), 1))])
    labels = np.array([int(samples.data.examples[i].label) for i in order])  # type: ignore[arg-type]
    solution = np.linalg.lstsq(x, np.eye(3)[labels], rcond=1e-6)[0]
    head = {"head.out_proj.weight": solution[:-1].T, "head.out_proj.bias": solution[-1]}
    return dataclasses.replace(
        mixture, tensors=mixture.tensors | {key: TensorData.from_float32(value) for key, value in head.items()}
    )


@pytest.mark.parametrize(
    ("family", "kind", "site"),
    [("bert", "bottleneck", "mlp_out"), ("bert", "bottleneck", "attn_norm"), ("gpt2", "lora", "attn_v")],
)
def test_the_information_is_the_mean_square_of_every_rows_gradient(
    family: str, kind: str, site: str, samples: Samples
) -> None:
    """Against autograd on one row at a time, through the merged adapter of one expert."""
    if family == "gpt2":
        samples = dataclasses.replace(samples, backbone=_tiny_gpt2())
    mixture = _mixture(samples.backbone, samples.data, kind=kind, site=site)
    config = MergeConfig(max_rows=6, batch_size=4)
    few = samples.limited(config)
    found = fisher.information(mixture, few, config, quiet)
    rows = few.labelled_rows(mixture).tokens
    quantiles = torch.rand(6, 3, generator=torch.Generator().manual_seed(config.seed))
    for expert in range(NUM_EXPERTS):
        linears: dict[str, nn.Linear] = {}
        model = attach(_single(mixture, expert), few.backbone, linears.setdefault)
        squares: dict[str, list[Any]] = {key: [0.0, 0.0] for key in linears}
        for index, row in enumerate(rows):
            for linear in linears.values():
                linear.requires_grad_(True).zero_grad()
            logits = model(**collate([row], 0))
            fisher.log_likelihood(logits, quantiles[index : index + 1], "classification").backward()
            for key, linear in linears.items():
                for place, parameter in enumerate(linear.parameters()):
                    assert parameter.grad is not None
                    squares[key][place] += parameter.grad.double().square().numpy() / len(rows)
        assert set(squares) == set(found)
        for key, (weight, bias) in squares.items():
            # Gradients in fp32, of rows padded to others' length.
            information, tolerance = found[key], 1e-5 * weight.max()
            np.testing.assert_allclose(information.weight[expert], weight, rtol=1e-3, atol=tolerance)
            assert (information.bias is None) == (kind == "lora")
            if information.bias is not None:
                np.testing.assert_allclose(information.bias[expert], bias, rtol=1e-3, atol=tolerance)


def _tiny_gpt2() -> Backbone:
    """Its query, key and value projections are one module, of which a site is a window."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    return from_model(GPT2Model(config), name="tiny-gpt2")


def _note(seen: dict[str, torch.Tensor], key: str, _: nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
    seen[key] = inputs[0]


@pytest.mark.parametrize(
    ("family", "kind", "site"),
    [("bert", "bottleneck", "mlp_out"), ("bert", "bottleneck", "mlp_norm"), ("gpt2", "lora", "attn_q")],
)
def test_the_moments_are_those_of_the_tokens_and_not_of_the_padding(
    family: str, kind: str, site: str, samples: Samples
) -> None:
    if family == "gpt2":
        samples = dataclasses.replace(samples, backbone=_tiny_gpt2())
    mixture = _mixture(samples.backbone, samples.data, kind=kind, site=site)
    config = MergeConfig(max_rows=7, batch_size=5)
    few = samples.limited(config)
    found = regmean.moments(mixture, few, config, quiet)
    projections = mixture.projections()
    sums = {key: np.zeros_like(value.gram) for key, value in found.items()}
    crosses = {key: np.zeros_like(value.cross) for key, value in found.items()}
    for expert in range(NUM_EXPERTS):
        linears: dict[str, nn.Linear] = {}
        model = attach(_single(mixture, expert), few.backbone, linears.setdefault)
        seen: dict[str, torch.Tensor] = {}
        for key, linear in linears.items():
            linear.register_forward_hook(functools.partial(_note, seen, key))
        for row in few.labelled_rows(mixture).tokens:  # one by one: no padding
            with torch.inference_mode():
                model(**collate([row], 0))
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


def test_experts_that_see_the_same_inputs_have_their_mean_for_regmean(samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    merged = _tensors(merge(mixture, "regmean", samples=samples))
    uniform = _tensors(merge(mixture))
    first, deeper = "layers.0.mlp_out.down_proj.weight", "layers.1.mlp_out.down_proj.weight"
    np.testing.assert_allclose(merged[first], uniform[first], atol=1e-5)
    assert not np.allclose(merged[deeper], uniform[deeper], atol=1e-3)


@pytest.mark.parametrize("task", ["colours", "palettes", "numbers"])
def test_learning_lowers_the_loss_it_learns_by(
    task: str, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> None:
    rows: TaskData = request.getfixturevalue(task)
    samples = Samples(backbone, tokenizer, rows)
    mixture = _mixture(backbone, rows)
    result = learned.learn(mixture, samples, MergeConfig(steps=15, learning_rate=0.1), quiet)
    assert result.loss_after < result.loss_before
    assert result.steps == 15
    assert all(sum(shares) == pytest.approx(1.0) for shares in result.weights.values())
    assert {len(shares) for shares in result.weights.values()} == {NUM_EXPERTS}
    # The loss it speaks of is the merged adapter's: for a class, the mean of -log p.
    if task == "colours":
        config = MergeConfig(steps=15, learning_rate=0.1)
        merged = adapter_file.decode(merge(mixture, "learned", samples=samples, config=config))
        logits = torch.tensor(labelled.evaluate(merged, backbone, tokenizer, rows).logits)
        targets = torch.tensor([int(example.label) for example in rows.examples])  # type: ignore[arg-type]
        assert float(nn.functional.cross_entropy(logits, targets)) == pytest.approx(result.loss_after, abs=1e-4)


@pytest.mark.parametrize("config", [MergeConfig(steps=0), MergeConfig(steps=3, learning_rate=0.0)])
def test_learning_begins_at_the_uniform_mean(config: MergeConfig, samples: Samples) -> None:
    """And returns to it if the loss has not fallen."""
    mixture = _mixture(samples.backbone, samples.data)
    content = merge(mixture, "learned", samples=samples, config=config)
    assert adapter_file.decode(content).manifest.training.merge == "learned steps=0 rows=48"
    uniform = _tensors(merge(mixture))
    assert all(np.array_equal(value, uniform[key]) for key, value in _tensors(content).items())


def test_the_backbone_stays_as_it_is(samples: Samples) -> None:
    before = {name: tensor.clone() for name, tensor in samples.backbone.model.state_dict().items()}
    for how in DATA_METHODS:
        merge(_mixture(samples.backbone, samples.data), how, samples=samples, config=MergeConfig(max_rows=8, steps=2))
    for name, tensor in samples.backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in samples.backbone.model.parameters())


def test_rows_are_drawn_by_the_seed(samples: Samples) -> None:
    first, again, other = (samples.limited(MergeConfig(max_rows=10, seed=seed)).data for seed in (1, 1, 2))
    assert first == again != other
    assert len(first.examples) == 10
    order = [samples.data.examples.index(example) for example in first.examples]
    assert order == sorted(order)
    assert samples.limited(MergeConfig(max_rows=48)) is samples


@pytest.mark.parametrize("how", DATA_METHODS)
def test_text_of_another_task_is_refused(how: str, samples: Samples, numbers: TaskData) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    with pytest.raises(InvalidData, match="is a regression task, but the adapter is for classification"):
        merge(mixture, how, samples=dataclasses.replace(samples, data=numbers))
    empty = dataclasses.replace(samples, data=dataclasses.replace(samples.data, examples=()))
    with pytest.raises(InvalidData, match="no rows"):
        merge(mixture, how, samples=empty)


@pytest.mark.parametrize("how", DATA_METHODS)
def test_another_backbone_is_refused(how: str, samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    other = from_model(BertModel(samples.backbone.model.config))  # new random weights
    with pytest.raises(InvalidAdapter) as caught:
        merge(mixture, how, samples=dataclasses.replace(samples, backbone=other))
    assert caught.value.reason == "BACKBONE_MISMATCH"


@pytest.mark.parametrize("how", DATA_METHODS)
def test_a_malformed_mixture_is_refused(how: str, samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    flat = {expert_key(DOWN, e, "weight"): TensorData.from_float32(np.zeros(RANK)) for e in range(NUM_EXPERTS)}
    with pytest.raises(InvalidAdapter) as caught:
        merge(dataclasses.replace(mixture, tensors=mixture.tensors | flat), how, samples=samples)
    assert caught.value.reason == "SHAPE_MISMATCH"


@pytest.mark.parametrize("how", ["greedy", "learned"])
def test_labels_that_the_head_does_not_know_are_refused(how: str, samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    foreign = dataclasses.replace(samples.data, labels=("red", "green", "ultraviolet"))
    with pytest.raises(InvalidData, match="ultraviolet"):
        merge(mixture, how, samples=dataclasses.replace(samples, data=foreign))


def test_labels_are_matched_by_name(samples: Samples) -> None:
    """The same rows with their labels listed in another order are the same rows."""
    mixture = _mixture(samples.backbone, samples.data)
    turned = dataclasses.replace(
        samples.data,
        labels=("blue", "green", "red"),
        examples=tuple(dataclasses.replace(e, label=2 - int(e.label)) for e in samples.data.examples),  # type: ignore[arg-type]
    )
    config = MergeConfig(steps=4)
    first = merge(mixture, "learned", samples=samples, config=config)
    assert first == merge(mixture, "learned", samples=dataclasses.replace(samples, data=turned), config=config)


def test_a_head_without_labels_is_refused(samples: Samples) -> None:
    mixture = _mixture(samples.backbone, samples.data)
    adapter = mixture.manifest.adapter
    vectors = msgspec.structs.replace(adapter, head=HeadSpec(type="embedding", pooling="mean"))
    tensors = {key: tensor for key, tensor in mixture.tensors.items() if not key.startswith("head.")}
    embedding = MixtureFile(msgspec.structs.replace(mixture.manifest, adapter=vectors), tensors)
    with pytest.raises(FailedPrecondition, match="head of type embedding"):
        merge(embedding, "fisher", samples=samples)
