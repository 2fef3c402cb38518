"""`adamix bench serving` as a user runs it: a smoke run of everything, and what an interruption leaves."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamix.errors import InvalidConfig
from adamix_bench import tiny
from adamix_bench.measure import Spread
from adamix_bench.serving import mixed
from adamix_bench.serving import run as serving
from adamix_bench.serving.equality import failures, largest
from adamix_bench.serving.report import FORMAT, Report, Way
from adamix_bench.serving.servers import own_server
from adamix_bench.serving.settings import Settings
from adamix_bench.serving.workbench import Workbench
from adamix_client import Client

TOLERANCE = 1e-4


def command(out: Path, *flags: str) -> Any:
    line = [sys.executable, "-m", "adamix_server", "bench", "serving", "--quick", "--threads", "1", "--out", str(out)]
    return subprocess.run([*line, *flags], capture_output=True, text=True, timeout=280, check=False)


def check_spread(spread: dict[str, Any]) -> None:
    assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert spread["median"] in spread["values"] or len(spread["values"]) % 2 == 0


def check_document(document: dict[str, Any]) -> None:
    assert document["format"] == FORMAT
    assert document["complete"] is True
    assert document["command"][:3] == ["adamix", "bench", "serving"]
    assert {"cpu", "cores", "packages", "threads", "load_average"} <= set(document["machine"])
    assert document["machine"]["packages"]["torch"]
    assert document["settings"]["seed"] == 0
    for way in document["ways"].values():
        check_spread(way["inputs_per_s"])
        assert way["tokens_per_s"] > way["inputs_per_s"]["median"]
        if "latency_ms" in way:
            assert 0 < way["latency_ms"]["p50"] <= way["latency_ms"]["p90"] <= way["latency_ms"]["p99"]
            assert way["errors"] == {}


@pytest.mark.slow
def test_a_quick_run_prints_one_document(tmp_path: Path) -> None:
    result = command(tmp_path, "--peers", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    check_document(document)
    assert set(document["ways"]) == {
        "bare backbone",
        "engine in process",
        "padded transformers, no adapters",
        "PEFT, mixed batch (LoRA only)",
        "PEFT, task after task (LoRA only)",
        "server",
    }
    assert {goal["name"] for goal in document["goals"]} == {"retention", "wire"}
    assert all(0 <= difference < TOLERANCE for difference in document["equal"]["max_abs_diff"].values())
    assert json.loads((tmp_path / "serving.json").read_text())["ways"] == document["ways"]
    assert (tmp_path / "serving.png").stat().st_size > 0


@pytest.mark.long
@pytest.mark.slow
def test_a_quick_run_of_the_targets_measures_every_one(tmp_path: Path) -> None:
    result = command(tmp_path, "--targets", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    check_document(document)
    goals = {goal["name"]: goal for goal in document["goals"]}
    assert {name.partition(".")[0] for name in goals} == {"a", "b", "c", "d", "e", "f", "g"}
    assert {name for name, goal in goals.items() if goal["target"] is not None} == {
        *("a.3", "a.4", "b", "c", "c.lora", "d", "d.single", "e", "f", "g")
    }
    for goal in goals.values():
        check_spread(goal["measured"])
        assert (goal["holds"] is None) == (goal["target"] is None)
    assert set(document["equal"]["max_abs_diff"]) == {
        "engine in process, one request alone",
        "bare packed backbone, padded transformers",
        "PEFT mixed batch, engine in process",
        "server, engine in process",
    }
    assert all(0 <= difference < TOLERANCE for difference in document["equal"]["max_abs_diff"].values())
    assert all(count > 0 for count in document["facts"]["registering"]["registered"])


@pytest.mark.slow
def test_a_running_server_is_left_as_it_was(tmp_path: Path) -> None:
    backbone = str(tiny.write_backbone(tmp_path / "backbone"))
    settings = Settings(backbone=backbone, tasks=3, requests=16, inputs_per_call=4, repetitions=1, threads=1)
    bench = Workbench.load(backbone, seed=0)
    mine = bench.tasks(1, prefix="mine")
    with (
        own_server(settings, bench.backbone.spec, mine, 1, 1 << 20, tmp_path / "server.log", print) as address,
        Client(address) as client,
    ):
        asking = replace(settings, server=address)
        report = Report(tmp_path, {}, {}, [])
        mixed.measure(asking, report, print)
        assert [task.task for task in client.tasks()] == ["mine-00000"]
        # Nothing of this machine is compared with what may be another one.
        assert (set(report.ways), report.goals) == ({"server"}, [])
        assert report.ways["server"].errors == {}
        client.register("bench-00001", next(bench.tasks(1)).data)
        with pytest.raises(InvalidConfig, match="bench-00001"):
            mixed.measure(asking, report, print)
        assert [task.task for task in client.tasks()] == ["bench-00001", "mine-00000"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"resident_share": 0.25}, "--resident-share"),
        ({"tasks": 64, "in_flight": 8}, "--tasks and --in-flight"),
        ({"server": "localhost:1"}, "--server"),
        ({"loop": "open", "rate": 5.0}, "--loop and --rate"),
    ],
)
def test_the_targets_refuse_what_they_choose_themselves(flags: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=f"leave {named} out"):
        serving.run(Settings(**flags), targets=True, quick=True, out=tmp_path / "out", command=[], quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("server", [None, "localhost:1"])
def test_ways_that_answer_differently_are_a_failure(
    server: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """But not of another machine's server: its dtype is its own."""

    def measure(settings: Settings, report: Report, say: Any) -> None:
        report.equal |= {"this, that": 0.5, "these, those": 1e-6}

    monkeypatch.setattr(mixed, "measure", measure)
    settings = Settings(threads=1, server=server)
    document = serving.run(settings, targets=False, quick=False, out=tmp_path, command=[], quiet=True)
    assert document["complete"] is (server is not None)
    assert list(document["failures"]) == ([] if server else ["this, that"])
    assert ("answers differ by 0.5" in capsys.readouterr().err) is (server is None)


def test_a_number_that_is_none_is_no_equal_answer() -> None:
    found, nan = [np.zeros(2, np.float32)] * 3, np.array([0, np.nan], np.float32)
    assert largest(found, [found[0] + 1, found[0], found[0]]) == 1
    # Wherever it stands: comparing with it is never true.
    for place in range(3):
        others = [nan if index == place else value for index, value in enumerate(found)]
        assert list(failures({"pair": largest(found, others)})) == ["pair"]


def test_an_interruption_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(settings: Settings, report: Report, say: Any) -> None:
        report.ways["bare backbone"] = Way(Spread((10.0, 12.0, 11.0)), tokens_per_input=20.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(mixed, "measure", interrupted)
    document = serving.run(Settings(threads=1), targets=False, quick=False, out=tmp_path, command=[], quiet=False)
    assert document["complete"] is False
    assert document["ways"]["bare backbone"]["inputs_per_s"]["median"] == 11.0
    assert json.loads((tmp_path / "serving.json").read_text())["complete"] is False
    assert "bare backbone" in capsys.readouterr().out
