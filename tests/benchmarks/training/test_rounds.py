"""The cost of training: who is compared with whom, that turns are fair, and what memory is counted."""

from pathlib import Path

import pytest
import torch
from torch import nn

from adamix.config import MixtureConfig
from adamix.errors import InvalidConfig
from adamix_bench.training import rounds
from adamix_bench.training.memory import watched
from adamix_bench.training.report import Report, plot
from adamix_bench.training.rounds import Bench, Found, measure
from adamix_bench.training.settings import UNCOUNTED_STEPS, Settings
from adamix_bench.training.shapes import SHAPES, random_backbone
from adamix_bench.training.ways import MIXTURE, PEER, ways

TINY = Settings(backbone="random:tiny", batch_size=3, max_length=8, steps=2, rounds=1, rank=4)


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(TINY, "cpu")


def test_the_peer_is_a_mixture_without_a_choice() -> None:
    found = ways(TINY)
    assert list(found)[:2] == [MIXTURE, PEER]
    mixture, peer = found[MIXTURE], found[PEER]
    assert mixture.mixture == MixtureConfig(num_experts=4)
    assert (peer.mixture.num_experts, peer.mixture.passes) == (1, 2)
    assert peer.mixture.consistency == mixture.mixture.consistency
    assert peer.adapter == mixture.adapter
    assert found["head alone"].adapter.sites == ()
    assert {way.mixture.num_experts for way in found.values()} == {1, 2, 4, 8}


def test_the_number_of_experts_is_measured_once() -> None:
    assert "mixture, M = 8" not in ways(Settings(experts=8))
    assert "mixture, M = 4" in ways(Settings(experts=8))


def test_a_step_is_timed_and_memory_counted(bench: Bench) -> None:
    chosen = {name: way for name, way in ways(TINY).items() if name in (MIXTURE, PEER, "single, one pass")}
    found: dict[str, Found] = {}
    measure(bench, chosen, 1, found, lambda _: None)
    assert all(len(result.step_s) == len(result.cpu_step_s) == 1 for result in found.values())
    assert all(0 < seconds < 60 for result in found.values() for seconds in (*result.step_s, *result.cpu_step_s))
    mixture, peer, once = (found[name] for name in chosen)
    assert mixture.memory is not None
    assert peer.memory is not None
    assert once.memory is not None
    # Four experts down, one up, of rank 4 in both layers; the head has two labels and as many rows of 32.
    down, up, head = 4 * 32 + 4, 32 * 4 + 32, 2 * 32 + 2
    assert mixture.parameters == (2 * (4 * down + up), 2 * (down + up), head)
    assert mixture.memory.weights == 4 * (mixture.parameters[0] + head)
    assert mixture.memory.optimiser == 2 * mixture.memory.weights  # two moments of Adam
    # No more than two of four experts are drawn in a step.
    assert peer.memory.gradients == peer.memory.weights
    assert mixture.memory.gradients <= 4 * (2 * (2 * down + up) + head)
    # What two passes keep does not depend on how many experts they chose among.
    assert mixture.memory.activations == pytest.approx(peer.memory.activations, rel=0.02)
    assert once.memory.activations == pytest.approx(peer.memory.activations / 2, rel=0.02)


def test_rounds_run_forth_and_back_on_the_same_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, watched_ways = [], []
    monkeypatch.setattr(bench, "take_memory", lambda way, _: watched_ways.append(way))

    def train(way: object, found: Found) -> None:
        trained.append(way)
        found.step_s.append(1.0)
        found.cpu_step_s.append(1.0)

    monkeypatch.setattr(bench, "train", train)
    chosen = dict(list(ways(TINY).items())[:3])
    a, b, c = chosen.values()
    found: dict[str, Found] = {}
    measure(bench, chosen, 3, found, lambda _: None)
    assert trained == [a, b, c, c, b, a, a, b, c]
    # One more before them: what a process allocates once is not the first way's.
    assert watched_ways == [a, a, b, c]
    assert list(found) == list(chosen)


def test_a_round_that_was_cut_short_leaves_the_rounds_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def train(_: object, found: Found) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        found.step_s.append(1.0)

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(bench, "take_memory", lambda *_: None)
    chosen = dict(list(ways(TINY).items())[:2])
    found: dict[str, Found] = {}
    with pytest.raises(KeyboardInterrupt):
        measure(bench, chosen, 5, found, lambda _: None)
    assert [result.step_s for result in found.values()] == [[1.0], [1.0]]


def test_ratios_are_taken_round_by_round() -> None:
    found = {MIXTURE: Found([2.0, 9.0, 4.0]), PEER: Found([1.0, 3.0, 4.0])}
    ratio = rounds.over(found, MIXTURE, PEER)
    assert ratio is not None
    assert ratio.values == (2.0, 3.0, 1.0)
    assert rounds.over({MIXTURE: Found(), PEER: Found()}, MIXTURE, PEER) is None
    assert rounds.over({}, MIXTURE, PEER, on_processors=True) is None


@pytest.mark.parametrize(("median", "holds"), [(1.149, True), (1.151, False)])
def test_the_verdict_is_the_medians(median: float, holds: bool, tmp_path: Path) -> None:
    report = Report(tmp_path, {}, {}, [], dict(ways(TINY)))
    assert report.goals[0].holds is None
    assert plot(report) is None
    seconds = [0.5, median, 2.0]
    report.found = {MIXTURE: Found(seconds, seconds), PEER: Found([1.0] * 3, [1.0] * 3)}
    assert report.goals[0].holds is holds
    assert report.to_json()["goals"][0]["target"] == 1.15


def test_memory_counts_what_the_backward_pass_needs_and_no_weights() -> None:
    frozen, trained = nn.Linear(64, 64), nn.Linear(64, 8)
    frozen.requires_grad_(False)
    optimiser = torch.optim.AdamW(trained.parameters())
    x = torch.zeros(10, 64)
    with watched(frozen.parameters(), torch.device("cpu")) as found:
        for _ in range(3):
            optimiser.zero_grad()
            trained(torch.tanh(frozen(x))).sum().backward()
            optimiser.step()
    weights = 4 * (64 * 8 + 8)
    assert (found.weights, found.gradients, found.optimiser) == (weights, weights, 2 * weights)
    # The input of the trained linear alone: nothing before it needs a gradient.
    assert found.activations == 4 * 10 * 64
    assert found.peak is None or found.peak >= 0


def test_the_hooks_of_the_watch_are_gone_afterwards() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=0.1)
    found = None

    def fail() -> None:
        nonlocal found
        with watched([], torch.device("cpu")) as found:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    weight.square().sum().backward()
    optimiser.step()
    assert found is not None
    assert (found.weights, found.activations) == (0, 0)


@pytest.mark.parametrize("name", ["tiny", "minilm"])
def test_a_random_backbone_has_the_shape_and_its_tokenizer_words(name: str) -> None:
    backbone, tokenizer = random_backbone(f"random:{name}")
    assert backbone.spec.hidden_size == SHAPES[name].hidden_size
    assert backbone.spec.num_layers == SHAPES[name].num_layers
    assert max(tokenizer.get_vocab().values()) < backbone.spec.vocab_size
    same, _ = random_backbone(f"random:{name}")
    assert same.spec.fingerprint == backbone.spec.fingerprint


def test_a_decoder_is_read_at_its_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from adamix_bench.training import shapes

    monkeypatch.setitem(SHAPES, "tiny-gpt2", shapes.Shape("gpt2", 16, 1, 2, 500, positions=32))
    settings = Settings(backbone="random:tiny-gpt2", batch_size=2, max_length=6, steps=1, method="lora", rank=2)
    found = Found()
    Bench(settings, "cpu").train(ways(settings)[MIXTURE], found)
    assert len(found.step_s) == 1


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"experts": 1}, "experts"), ({"steps": 0}, "steps"), ({"rank": 0}, "rank"), ({"precision": "fp8"}, "precision"),
     ({"method": "prefix"}, "kind"), ({"max_length": 2}, "max_length")],
    ids=str,
)  # fmt: skip
def test_settings_are_checked_when_they_are_made(settings: dict, field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Settings(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"backbone": "random:huge"}, "random ones are random:tiny"), ({"max_length": 200}, "over the backbone's 128")],
    ids=["shape", "length"],
)
def test_what_does_not_fit_the_backbone_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Bench(Settings(**({"backbone": "random:tiny"} | settings)), "cpu")


def test_the_uncounted_steps_come_before_the_counted() -> None:
    assert TINY.train.max_steps == UNCOUNTED_STEPS + 2
