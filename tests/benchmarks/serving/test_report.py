"""What is said about outcomes: goodput, percentiles, errors, and verdicts that do not flatter."""

from pathlib import Path

import pytest
from rich.console import Console

from adamix.errors import AdamixError
from adamix_bench.measure import Goal, Spread
from adamix_bench.serving.load import Outcome
from adamix_bench.serving.report import Report, Way, plot


def outcome(latency_s: list[float], answered: list[int], errors: dict[str, int], wall_s: float = 2.0) -> Outcome:
    calls = list(range(len(answered)))
    return Outcome(
        wall_s=wall_s, cpu_s=0.5, late_s=0.0, calls=calls, latency_s=latency_s, answered=answered, errors=errors
    )


def shown(report: Report) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report.tables())
    return captured.get()


def test_goodput_counts_answers_in_time_and_throughput_all_answers() -> None:
    turns = [
        outcome([0.01, 0.2, 0.05, 0.01], [4, 4, 3, 0], {"NOT_FOUND": 1, "UNAVAILABLE": 4}),
        outcome([0.3], [4], {}),
    ]
    way = Way.of(turns, tokens_per_input=20.0, slo_s=0.1)
    assert way.inputs_per_s.values == (5.5, 2.0)
    assert way.goodput is not None
    assert way.goodput.values == (3.5, 0.0)
    assert way.errors == {"NOT_FOUND": 1, "UNAVAILABLE": 4}
    assert way.client_cpu == pytest.approx(0.25)
    # The refused call came back soonest; how long answers took is another question.
    assert way.percentile_ms(0) == pytest.approx(10)
    assert way.percentile_ms(50) == pytest.approx(125)
    assert way.to_json()["calls"] == 4


def test_a_turn_without_any_answer_is_an_error() -> None:
    with pytest.raises(AdamixError, match="UNAVAILABLE"):
        Way.of([outcome([0.1], [0], {"UNAVAILABLE": 4})], 20.0, 0.1)


def test_misses_and_what_could_not_be_measured_are_shown_as_such(tmp_path: Path) -> None:
    report = Report(tmp_path, {}, {}, [])
    report.goals += [
        Goal("x", "hit", Spread((0.95,)), 0.9),
        Goal("y", "missed", Spread((0.5,)), 0.9),
        Goal("z", "unknown", None, 3.0, note="PEFT is not installed"),
    ]
    lines = {name: line for line in shown(report).splitlines() for name in ("hit", "missed", "unknown") if name in line}
    assert "yes" in lines["hit"]
    assert lines["missed"].rstrip("│ ").endswith("no")
    assert "not measured" in lines["unknown"]
    document = report.to_json()
    assert [goal["holds"] for goal in document["goals"]] == [True, False, None]
    assert document["goals"][2]["measured"] is None


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert plot(Report(tmp_path, {}, {}, [])) is None
