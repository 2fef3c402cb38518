"""Routes at evaluation against adapters built by hand."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from adamix.backbones.backbone import Backbone, from_model
from adamix.config import AdapterConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import TaskData
from adamix.errors import InvalidAdapter, InvalidConfig, InvalidData
from adamix.evaluation.labelled import evaluate
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.mixture_file import MixtureFile
from adamix.files.tensors import TensorData
from adamix.merging.merge import merge
from adamix.modules.attach import attach
from adamix.modules.heads import Head, shared_copy
from adamix.modules.mixture import Mixture
from adamix.routing.choice import Routing, parse_routing
from adamix.routing.probe import MixtureProbe
from adamix.routing.routing import average, draw_route, draw_token_routes
from adamix.rows.labelled import collate
from adamix.training.result import build_manifest, expert_tensors, head_tensors, mixture_file
from adamix.training.task import LabelledTask

BOTTLENECK = AdapterConfig(rank=4, sites=("mlp_out",))
LORA = AdapterConfig(kind="lora", rank=4, alpha=8.0, sites=("attn_q", "attn_v"))
NORM = AdapterConfig(rank=4, sites=("attn_out", "mlp_norm"))
KINDS = pytest.mark.parametrize("adapter", [BOTTLENECK, LORA, NORM], ids=["bottleneck", "lora", "norm"])
ROUTINGS = ("random", "random:sentence", "random:token", "fixed:1", "ensemble", "ensemble:probabilities:all")

_TINY: dict[str, Any] = {"vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
_SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def make_mixture(
    backbone: Backbone, data: TaskData, adapter: AdapterConfig = BOTTLENECK, seed: int = 0, **mixture: Any
) -> MixtureFile:
    """An untrained mixture whose experts are far apart: every tensor is drawn from N(0, 0.5)."""
    config = MixtureConfig(**mixture)
    experts = Mixture(shared_copy(backbone.model), adapter, config, torch.Generator())
    plan = TrainingPlan(adapter=adapter, mixture=config, train=TrainConfig(max_length=32))
    manifest = build_manifest(plan, LabelledTask(data), backbone)
    tensors = expert_tensors(experts) | head_tensors(Head(manifest.head, backbone.spec.hidden_size, None), (0.0, 1.0))
    rng = np.random.default_rng(seed)
    drawn = {key: TensorData.from_float32(rng.normal(0, 0.5, t.shape)) for key, t in tensors.items()}
    return mixture_file(manifest, config, drawn)


def by_hand(mixture: MixtureFile, expert_of: Callable[[int, str, str], int]) -> AdapterFile:
    """An adapter of the experts that `expert_of(layer, site, "down" or "up")` names, by renaming tensors."""
    chosen: dict[str, TensorData] = {}
    for key, tensor in mixture.tensors.items():
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)\.(down_proj|up_proj|lora_A|lora_B)\.(\d+)(\.\w+)?", key)
        if match is None:
            chosen[key] = tensor
            continue
        layer, site, name, expert, part = match.groups()
        side = "down" if name in ("down_proj", "lora_A") else "up"
        wanted = 0 if mixture.manifest.share == side else expert_of(int(layer), site, side)
        if int(expert) == wanted:
            chosen[f"layers.{layer}.{site}.{name}{part or ''}"] = tensor
    return adapter_file.decode(adapter_file.encode(mixture.manifest.adapter, chosen))


def _softmax(logits: Any) -> Any:
    return torch.from_numpy(np.asarray(logits, dtype=np.float64)).softmax(-1).numpy()


@pytest.mark.parametrize("task", ["colours", "palettes", "numbers"])
@KINDS
def test_merged_is_what_the_merged_file_answers(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    request: pytest.FixtureRequest,
    adapter: AdapterConfig,
    task: str,
) -> None:
    data = request.getfixturevalue(task)
    mixture = make_mixture(backbone, data, adapter)
    merged = evaluate(adapter_file.decode(merge(mixture)), backbone, tokenizer, data)
    assert MixtureProbe(mixture, backbone, tokenizer, data).evaluate(Routing()) == merged


@pytest.mark.parametrize("share", ["up", "down", "none"])
@KINDS
def test_a_fixed_expert_is_the_adapter_of_its_tensors(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData, adapter: AdapterConfig, share: str
) -> None:
    mixture = make_mixture(backbone, colours, adapter, share=share, num_experts=3)
    results = []
    for expert in range(3):
        result = MixtureProbe(mixture, backbone, tokenizer, colours).evaluate(Routing("fixed", expert=expert))
        own = by_hand(mixture, lambda _layer, _site, _side, expert=expert: expert)
        assert result == evaluate(own, backbone, tokenizer, colours)
        results.append(result.logits)
    assert results[0] != results[1] != results[2]


@KINDS
def test_a_random_route_draws_each_projection_once_for_all_rows(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData, adapter: AdapterConfig
) -> None:
    mixture = make_mixture(backbone, colours, adapter, share="none")
    assert adapter.sites is not None
    points = [(layer, site) for layer in range(2) for site in adapter.sites]  # the table of sites has this order
    seen = set()
    for seed in range(3):
        route = draw_route(seed, len(points), 4).tolist()
        seen.add(str(route))
        own = by_hand(mixture, lambda i, site, side, route=route: int(route[points.index((i, site))][side == "up"]))
        result = MixtureProbe(mixture, backbone, tokenizer, colours).evaluate(Routing("random"), seed)
        assert result == evaluate(own, backbone, tokenizer, colours)
    assert len(seen) == 3


@KINDS
def test_each_text_has_a_route_of_its_own(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData, adapter: AdapterConfig
) -> None:
    mixture = make_mixture(backbone, colours, adapter, share="none")
    assert adapter.sites is not None
    points = [(layer, site) for layer in range(2) for site in adapter.sites]
    probe = MixtureProbe(mixture, backbone, tokenizer, colours)
    logits = probe.logits(Routing("random", granularity="sentence"), seed=5)
    for row in (0, 1, 17):
        drawn = draw_token_routes(5, [probe.rows.tokens[row]], len(points), 4, "sentence")[0, 0].tolist()
        own = by_hand(mixture, lambda i, site, side, drawn=drawn: int(drawn[points.index((i, site))][side == "up"]))
        alone = dataclasses.replace(colours, examples=colours.examples[row : row + 1])
        expected = evaluate(own, backbone, tokenizer, alone).logits[0]
        # The row shares a batch with others here: fp32 sums in another order.
        np.testing.assert_allclose(logits[row].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_each_token_has_a_route_of_its_own(tokenizer: PreTrainedTokenizerFast, colours: TaskData) -> None:
    """One layer, so that a token's adapter reaches no other token: its state is that of the path it was given."""
    torch.manual_seed(0)
    backbone = from_model(BertModel(BertConfig(**_TINY, **(_SMALL | {"num_hidden_layers": 1}))), name="one")
    mixture = make_mixture(backbone, colours, share="none", num_experts=2)
    probe = MixtureProbe(mixture, backbone, tokenizer, colours)
    logits = probe.logits(Routing("random", granularity="token"), seed=3)
    for index, row in enumerate(probe.rows.tokens[:4]):
        batch = collate([row], 0)
        positions = torch.arange(len(row))[None]
        states: dict[tuple[int, int], Tensor] = {}
        for down in (0, 1):
            for up in (0, 1):
                own = by_hand(mixture, lambda *where, pair=(down, up): pair[where[2] == "up"])
                model = attach(own, backbone)
                with torch.no_grad():
                    states[down, up] = model.body(**batch, position_ids=positions).last_hidden_state[0]
        (routes,) = draw_token_routes(3, [row], 1, 2, "token")
        mixed = torch.stack([states[int(route[0, 0]), int(route[0, 1])][t] for t, route in enumerate(routes)])
        with torch.no_grad():
            expected = model.head(mixed[None], batch["attention_mask"])[0]
        assert len({tuple(route[0]) for route in routes.tolist()}) > 1
        torch.testing.assert_close(logits[index], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["batch", "sentence", "token"])
def test_an_answer_depends_on_neither_batch_nor_order(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData, granularity: Any
) -> None:
    mixture = make_mixture(backbone, colours, share="none")
    routing = Routing("random", granularity=granularity)
    backwards = dataclasses.replace(colours, examples=colours.examples[::-1])
    together = MixtureProbe(mixture, backbone, tokenizer, colours, batch_size=48).evaluate(routing, 1)
    alone = MixtureProbe(mixture, backbone, tokenizer, backwards, batch_size=1).evaluate(routing, 1)
    np.testing.assert_allclose(together.logits, alone.logits[::-1], rtol=1e-4, atol=1e-4)
    other = MixtureProbe(mixture, backbone, tokenizer, colours).evaluate(routing, 2)
    assert np.abs(np.subtract(together.logits, other.logits)).max() > 0.1


def test_ensembles_are_means_over_paths(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData
) -> None:
    mixture = make_mixture(backbone, colours, share="none", num_experts=2)
    single = {
        (down, up): evaluate(
            by_hand(mixture, lambda *where, pair=(down, up): pair[where[2] == "up"]), backbone, tokenizer, colours
        ).logits
        for down in (0, 1)
        for up in (0, 1)
    }
    probe = MixtureProbe(mixture, backbone, tokenizer, colours)
    paired = [single[0, 0], single[1, 1]]
    np.testing.assert_allclose(probe.logits(Routing("ensemble")), np.mean(paired, axis=0), rtol=1e-5, atol=1e-6)
    every = probe.logits(parse_routing("ensemble:all"))
    np.testing.assert_allclose(every, np.mean(list(single.values()), axis=0), rtol=1e-5, atol=1e-6)
    by_chance = probe.logits(parse_routing("ensemble:probabilities"))
    np.testing.assert_allclose(_softmax(by_chance), np.mean(_softmax(paired), axis=0), rtol=1e-5, atol=1e-7)
    # They are logarithms of probabilities, without a constant.
    np.testing.assert_allclose(np.exp(by_chance.numpy()).sum(-1), 1.0, rtol=1e-5)
    every_chance = probe.logits(parse_routing("ensemble:probabilities:all"))
    expected = np.mean(_softmax(list(single.values())), axis=0)
    np.testing.assert_allclose(_softmax(every_chance), expected, rtol=1e-5, atol=1e-7)


def test_pairs_with_a_shared_projection_are_one_path_each(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData
) -> None:
    def paths(share: str) -> tuple[Any, Any]:
        probe = MixtureProbe(make_mixture(backbone, colours, share=share, num_experts=3), backbone, tokenizer, colours)
        return probe.paths("paired"), probe.paths("all")

    assert paths("up") == ([(0, 0), (1, 0), (2, 0)],) * 2
    assert paths("down") == ([(0, 0), (0, 1), (0, 2)],) * 2
    paired, every = paths("none")
    assert paired == [(0, 0), (1, 1), (2, 2)]
    assert every == [(i, j) for i in range(3) for j in range(3)]


@pytest.mark.parametrize("task", ["palettes", "numbers"])
def test_means_of_labels_and_of_values(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest, task: str
) -> None:
    data = request.getfixturevalue(task)
    probe = MixtureProbe(make_mixture(backbone, data, num_experts=3), backbone, tokenizer, data)
    paths = torch.stack([probe.logits(Routing("fixed", expert=expert)) for expert in range(3)]).double()
    found = probe.logits(parse_routing("ensemble:probabilities")).double()
    if task == "numbers":
        torch.testing.assert_close(found, paths.mean(0), rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(found.sigmoid(), paths.sigmoid().mean(0), rtol=1e-5, atol=1e-7)


def test_mean_probabilities_of_certain_paths_stay_finite() -> None:
    """e^-800 is 0 in fp64, and its logarithm would be infinite."""
    certain = torch.tensor([[[800.0, 0.0, -800.0]], [[790.0, 0.0, -800.0]]])
    for task_type in ("classification", "multilabel"):
        assert torch.isfinite(average(certain, task_type, "probabilities")).all()
    opposed = torch.tensor([[[800.0, -800.0]], [[-800.0, 800.0]]])
    assert average(opposed, "classification", "probabilities").softmax(-1).tolist() == [[0.5, 0.5]]
    assert average(opposed, "multilabel", "probabilities").tolist() == [[0.0, 0.0]]


_FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, ...]]] = {
    "roberta": (lambda: RobertaModel(RobertaConfig(**_TINY, **_SMALL)), ("attn_v", "mlp_norm")),
    "distilbert": (
        lambda: DistilBertModel(
            DistilBertConfig(vocab_size=64, max_position_embeddings=64, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
        ),
        ("attn_norm", "mlp_out"),
    ),
    "gpt2": (
        lambda: GPT2Model(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2)),
        ("attn_q", "attn_v", "mlp_out"),
    ),
    "llama": (lambda: LlamaModel(LlamaConfig(**_TINY, **_SMALL)), ("attn_v", "mlp_gate")),
}


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
@pytest.mark.parametrize("family", _FAMILIES)
def test_equal_experts_answer_alike_by_every_route(
    tokenizer: PreTrainedTokenizerFast, numbers: TaskData, family: str, kind: Any
) -> None:
    """In all families, at linear and norm points and in the windows of a fused projection."""
    make, sites = _FAMILIES[family]
    torch.manual_seed(0)
    backbone = from_model(make(), name=family)
    if kind == "lora":
        sites = tuple(site for site in sites if not site.endswith("_norm"))
    mixture = make_mixture(backbone, numbers, AdapterConfig(kind=kind, rank=2, sites=sites), num_experts=3)
    equal = {key: mixture.tensors.get(re.sub(r"\.[12](?=$|\.(weight|bias)$)", ".0", key)) for key in mixture.tensors}
    assert None not in equal.values()
    same = dataclasses.replace(mixture, tensors=equal)
    few = dataclasses.replace(numbers, examples=numbers.examples[:6])
    probe = MixtureProbe(same, backbone, tokenizer, few)
    merged = probe.logits(Routing())
    assert merged.std() > 0.01
    for text in ROUTINGS:
        # Equal but for the order of fp32 sums.
        torch.testing.assert_close(probe.logits(parse_routing(text), seed=4), merged, rtol=1e-4, atol=1e-4)
    apart = MixtureProbe(mixture, backbone, tokenizer, few)
    token = apart.logits(parse_routing("random:token"))
    assert not torch.allclose(token, apart.logits(Routing()), atol=1e-2)


def test_a_mixture_of_one_has_one_route(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData
) -> None:
    mixture = make_mixture(backbone, colours, num_experts=1, share="none", consistency=0.0)
    probe = MixtureProbe(mixture, backbone, tokenizer, colours)
    merged = probe.logits(Routing())
    for text in ("random", "random:token", "fixed:0", "ensemble:probabilities:all"):
        found = probe.logits(parse_routing(text))
        torch.testing.assert_close(found.log_softmax(-1), merged.log_softmax(-1), rtol=1e-5, atol=1e-5)


def test_a_head_alone_has_no_routes_to_differ_by(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData
) -> None:
    probe = MixtureProbe(make_mixture(backbone, colours, AdapterConfig(sites=())), backbone, tokenizer, colours)
    for text in ("random", "random:sentence", "random:token", "fixed:3", "ensemble"):
        assert torch.allclose(probe.logits(parse_routing(text)), probe.logits(Routing()), atol=1e-6)


_ALL = [
    Routing(),
    *(Routing("random", granularity=g) for g in ("batch", "sentence", "token")),
    Routing("fixed", expert=0),
    Routing("fixed", expert=63),
    *(Routing("ensemble", average=a, pairing=p) for a in ("logits", "probabilities") for p in ("paired", "all")),
]


@pytest.mark.parametrize("routing", _ALL, ids=str)
def test_a_routing_is_named_and_found_by_its_name(routing: Routing) -> None:
    assert parse_routing(str(routing)) == routing


def test_short_names() -> None:
    assert parse_routing("random") == Routing("random", granularity="batch")
    assert parse_routing("ensemble") == Routing("ensemble", average="logits", pairing="paired")
    assert parse_routing("ensemble:all") == parse_routing("ensemble:all:logits")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "mean",
            "merged:1",
            "random:row",
            "random:batch:1",
            "fixed",
            "fixed:",
            "fixed:-1",
            "fixed:x",
            "fixed:1:2",
        ),
        *(
            "fixed:²",
            "fixed:٣",
            "fixed:9999",
            "ensemble:mean",
            "ensemble:all:paired",
            "ensemble:",
            "Random",
            "x" * 10_000,
        ),
    ],
)
def test_other_names_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InvalidConfig, match=r"random\[:batch\|sentence\|token\]") as caught:
        parse_routing(text)
    assert len(caught.value.message) < 300


def test_a_routing_that_cannot_be_is_not_made() -> None:
    for wrong in ({"mode": "mean"}, {"mode": "random", "granularity": "row"}, {"mode": "fixed", "expert": -1}):
        with pytest.raises(InvalidConfig, match="no such routing"):
            Routing(**wrong)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData, numbers: TaskData
) -> None:
    mixture = make_mixture(backbone, colours)
    with pytest.raises(InvalidConfig, match="experts 0 to 3"):
        MixtureProbe(mixture, backbone, tokenizer, colours).evaluate(Routing("fixed", expert=4))
    with pytest.raises(InvalidData, match="regression task"):
        MixtureProbe(mixture, backbone, tokenizer, numbers).evaluate(Routing("random"))
    torch.manual_seed(3)
    other = from_model(BertModel(BertConfig(**_TINY, **_SMALL)), name="other")
    for text in ROUTINGS:
        with pytest.raises(InvalidAdapter):
            MixtureProbe(mixture, other, tokenizer, colours).evaluate(parse_routing(text))


def test_rows_are_counted_once_a_pass(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData
) -> None:
    counted: list[int] = []
    mixture = make_mixture(backbone, colours, num_experts=3, share="none")
    probe = MixtureProbe(mixture, backbone, tokenizer, colours, batch_size=20, on_rows=counted.append)
    probe.evaluate(parse_routing("ensemble:all"))
    assert counted == [20, 20, 8] * 9
