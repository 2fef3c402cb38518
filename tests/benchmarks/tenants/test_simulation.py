"""The proof of tenants on a made-up clock: the server's own rules meet every row that a simulation can show."""

import json
from pathlib import Path

import pytest

from adamix.errors import InvalidConfig
from adamix_bench.measure import Goal
from adamix_bench.tenants import flows, scenarios
from adamix_bench.tenants.proof import Proof, deviation
from adamix_bench.tenants.report import FORMAT, Report
from adamix_bench.tenants.settings import Sizes
from adamix_bench.tenants.simulation.hardware import Hardware
from adamix_bench.tenants.simulation.rates import admit
from adamix_bench.tenants.simulation.stage import SimulatedStage

SIZES = Sizes(
    knee_s=2,
    alone_s=6,
    flood_s=6,
    share_s=7,
    overload_s=8,
    batch_s=7,
    trap_s=6,
    idle_s=60,
    rate_s=20,
    many_tasks=1000,
    cost_calls=0,
    cost_turns=0,
    all_rows=True,
)


def proof(tmp_path: Path, hardware: Hardware | None = None) -> tuple[Proof, Report]:
    report = Report(tmp_path, "tenants-simulated", {}, {}, [])
    stage = SimulatedStage(hardware or Hardware(), seed=0)
    found = stage.hardware
    report.facts["rates_of_machine"] = {"batch_s": found.batch_s, "token_s": found.token_s}
    return Proof(stage, SIZES, report, lambda text: None), report


def missed(report: Report) -> list[Goal]:
    return [goal for goal in report.goals if goal.holds is False or goal.measured is None]


def test_a_noisy_neighbour_costs_its_victim_two_and_a_half_short_batches(tmp_path: Path) -> None:
    judge, report = proof(tmp_path)
    judge.noisy_neighbour()
    assert missed(report) == []
    cases = report.parts["noisy_neighbour"]["cases"]
    assert [case["flood"] for case in cases] == ["one task", "1,000 tasks", "the victim's own adapter", "short texts"]
    assert report.parts["noisy_neighbour"]["beside_p99_s"] == max(case["beside_p99_s"] for case in cases)
    assert report.parts["noisy_neighbour"]["failed"] == 0


def test_tokens_go_by_weight_whatever_is_asked(tmp_path: Path) -> None:
    judge, report = proof(tmp_path)
    judge.fair_share()
    assert missed(report) == []
    one, two, double = report.parts["fair_share"]["tenants"]
    assert (one["weight"], two["weight"], double["weight"]) == (1, 1, 2)
    assert double["tokens"] == pytest.approx(one["tokens"] + two["tokens"], rel=0.05)


@pytest.mark.parametrize("times", [2.0, 5.0])
@pytest.mark.parametrize(("cv", "expired"), [(1.0, 0.01), (4.0, 0.03)])
@pytest.mark.parametrize("retries", [0.0, 0.5])
def test_what_is_let_in_under_overload_is_answered(times: float, cv: float, expired: float, retries: float) -> None:
    stage = SimulatedStage(Hardware(), seed=0)
    trace = stage.run(scenarios.overload(12, times, cv, retries))
    assert trace.goodput() >= 0.9 * stage.knee
    assert trace.expired_share() <= expired
    refused_s = trace.refusal_p99_s()
    assert refused_s is not None
    assert refused_s <= 0.02


def test_the_batch_class_has_a_twentieth_and_costs_interactive_calls_one_short_batch(tmp_path: Path) -> None:
    judge, report = proof(tmp_path)
    judge.batch_class()
    assert missed(report) == []
    assert report.parts["batch_class"]["least_share"] >= 0.045


def test_traps_make_nobody_wait(tmp_path: Path) -> None:
    judge, report = proof(tmp_path)
    judge.traps()
    assert missed(report) == []
    names = [row["name"] for row in report.parts["traps"]]
    assert names == ["an adapter that loads for 2 s", "weight 1 to 1,000", "return after 60 s"]


@pytest.mark.parametrize("seed", range(3))
def test_a_rate_over_uneven_front_ends_is_admitted_whole_and_never_exceeded(seed: int) -> None:
    twice = admit(flows.RATE, 2.0, 60, seed, tokens_per_call=60)
    assert 0.99 * twice.entitled <= twice.tokens <= twice.ceiling
    below = admit(flows.RATE, 0.9, 60, seed, tokens_per_call=60)
    assert below.tokens >= 0.99 * below.wanted


def test_the_same_seed_gives_the_same_trace_and_another_one_does_not() -> None:
    scenario = scenarios.overload(2, 5.0, 4.0, 0.5)
    first, again = (SimulatedStage(Hardware(), seed=3).run(scenario) for _ in range(2))
    assert (first.calls, first.served) == (again.calls, again.served)
    assert SimulatedStage(Hardware(), seed=4).run(scenario).calls != first.calls


def test_calls_go_to_every_front_end_and_each_has_its_part_of_the_room() -> None:
    stage = SimulatedStage(Hardware(), seed=0, front_ends=3)
    scenario = scenarios.weights(7)
    trace = stage.run(scenario)
    off = deviation(trace, scenario.tenants)
    assert off is not None
    assert off <= 0.05


def test_the_device_that_is_simulated_is_the_one_that_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps({"format": FORMAT, "rates_of_machine": {"batch_s": 0.01, "token_s": 0.001}}))
    hardware = Hardware.measured(path)
    assert hardware.seconds(1000) == pytest.approx(1.01)
    assert hardware.knee == pytest.approx(1024 / 1.034)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', json.dumps({"format": FORMAT, "rates_of_machine": None})]
)
def test_a_document_without_rates_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tenants.json"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match="tenants"):
        Hardware.measured(path)
    with pytest.raises(InvalidConfig):
        Hardware.measured(tmp_path / "missing.json")


@pytest.mark.parametrize("rates", [(float("nan"), 0.1), (-1.0, 0.1), (0.1, 0.0), (0.1, 11.0)])
def test_a_device_that_cannot_be_is_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(InvalidConfig):
        Hardware(batch_s=rates[0], token_s=rates[1])
