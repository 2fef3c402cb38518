"""`adamix bench tenants` as a user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.errors import Unavailable
from adamix_bench import tiny
from adamix_bench.cli import bench
from adamix_bench.measure import Spread
from adamix_bench.tenants import run
from adamix_bench.tenants.proof import Proof, attempt
from adamix_bench.tenants.report import FORMAT, Report
from adamix_bench.tenants.scenarios import Scenario
from adamix_bench.tenants.settings import PARTS, QUICK, Settings
from adamix_bench.tenants.trace import Ended, Trace


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(bench, ["tenants", *arguments])


def test_a_simulation_prints_one_document_and_writes_a_page_and_a_picture(tmp_path: Path) -> None:
    done = invoke("--simulate", "--only", "rates", "--only", "fair-share", "--json", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "tenants-simulated.json").read_text("utf-8"))
    assert (document["format"], document["complete"], document["simulated"]) == (FORMAT, True, True)
    assert document["rates"]["admitted_ratio"] >= 0.99
    assert {each["weight"] for each in document["fair_share"]["tenants"]} == {1, 2}
    assert all(goal["holds"] for goal in document["goals"])
    page = (tmp_path / "tenants-simulated.md").read_text("utf-8")
    assert "| rates.2x | admitted of a rate at 2x, over the rate | >= 0.99 |" in page
    assert (tmp_path / "tenants-simulated.png").read_bytes().startswith(b"\x89PNG")


def test_what_needs_a_server_says_so_in_a_simulation(tmp_path: Path) -> None:
    done = invoke("--simulate", "--only", "cost,revocation", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert done.stdout.count("not measured") == 2
    assert "needs a server" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "everything"], "noisy-neighbour"),
        (["--quick", "--full"], "--quick and --full"),
        (["--batch-ms", "5"], "--simulate"),
        (["--rates", "tenants.json"], "--simulate"),
        (["--simulate", "--token-us", "nan"], "token_us"),
        (["--simulate", "--rates", "missing.json"], "missing.json"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], words: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_part_that_fails_leaves_the_others_be(tmp_path: Path) -> None:
    report = Report(tmp_path, "tenants", {}, {}, [])

    def fails() -> None:
        raise Unavailable("there is nobody")

    attempt(report, "traps", fails, lambda text: None)
    attempt(report, "cost", lambda: report.add("cost", "what", Spread((1.0, 3.0, 2.0)), 2.5, at_least=False), print)
    assert report.failures == {"traps": "there is nobody"}
    document = json.loads((tmp_path / "tenants.json").read_text("utf-8"))
    assert document["goals"][0]["holds"] is True
    assert document["failures"] == {"traps": "there is nobody"}


class Late:
    """A stage whose generator comes late."""

    knee = 1000.0

    def run(self, scenario: Scenario) -> Trace:
        ended = [Ended(tenant, 2.0, 2.1, 10, 10, "ok") for tenant in scenario.tenants]
        return Trace(scenario.seconds, ended, [], late_s=0.2)


def test_a_generator_that_is_late_is_said_and_nothing_judged(tmp_path: Path) -> None:
    report = Report(tmp_path, "tenants", {}, {}, [])
    Proof(Late(), QUICK, report, lambda text: None).noisy_neighbour()
    assert {goal.measured for goal in report.goals} == {None}
    assert {goal.note for goal in report.goals} == {"the generator was 200 ms late"}


def test_ctrl_c_leaves_what_had_been_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_simulate", stop)
    done = invoke("--simulate", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert json.loads((tmp_path / "tenants-simulated.json").read_text("utf-8"))["complete"] is False


@pytest.mark.long
def test_a_real_server_shows_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a backbone that says nothing about speed: that everything is carried out, not that anything is met."""
    backbone = tiny.write_backbone(tmp_path / "backbone")
    # Without the batch class: calls that cost the device nothing are more than the other processes can make.
    parts = [name for name in PARTS if name != "batch-class"]
    only = [word for name in parts for word in ("--only", name)]
    done = invoke(*only, "--backbone", str(backbone), "--threads", "1", "--json", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["failures"] == {}
    assert document["knee_tokens_per_s"] > 0
    assert document["revocation"]["answered_after"] == 0
    assert document["revocation"]["answered_before"] > 0
    assert document["noisy_neighbour"]["alone_p99_s"] > 0
    assert {row["times"] for row in document["overload"]} == {2.0, 5.0}
    assert document["rates"]["cases"][0]["admitted_tokens"] <= document["rates"]["cases"][0]["ceiling_tokens"]
    assert Settings().sizes == QUICK
