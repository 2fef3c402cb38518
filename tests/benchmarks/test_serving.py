"""`adamix bench serving` as a user runs it: a smoke run of everything, and what an interruption leaves."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import InvalidConfig
from adamix_bench import mixed, serving, tiny
from adamix_bench.measure import Spread
from adamix_bench.report import FORMAT, Report, Way
from adamix_bench.servers import own_server
from adamix_bench.settings import Settings
from adamix_bench.workbench import Workbench
from adamix_server.client import Client

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


@pytest.mark.slow
def test_a_quick_run_of_the_targets_measures_every_one(tmp_path: Path) -> None:
    result = command(tmp_path, "--targets", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    check_document(document)
    goals = {goal["name"]: goal for goal in document["goals"]}
    assert {name.partition(".")[0] for name in goals} == {"a", "b", "c", "d", "e", "f"}
    assert {name for name, goal in goals.items() if goal["target"] is not None} == {
        *("a.3", "a.4", "b", "c", "c.lora", "d", "d.single", "e", "f")
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
