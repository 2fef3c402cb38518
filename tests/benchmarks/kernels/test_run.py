"""A run keeps what it measured, goes on where it stopped, and says what is missing. Times are never judged here."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from adamix.errors import InvalidConfig
from adamix_bench.kernels import devices
from adamix_bench.kernels.cells import QUICK, Cell
from adamix_bench.kernels.clocks import Timing
from adamix_bench.kernels.forms import ON_CPU
from adamix_bench.kernels.run import run
from adamix_bench.kernels.settings import Settings

CELLS = "H=64"


class Counting:
    """The times of a CPU device that measures nothing, and how often it was asked."""

    def __init__(self, stop_at: int | None = None, error: str = "") -> None:
        self.asked: list[Cell] = []
        self._stop_at, self._error = stop_at, error

    def __call__(self, _: object, cell: Cell, dtype: str, wanted: Sequence[str]) -> dict[str, Timing]:
        if len(self.asked) == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append(cell)
        return {form: Timing(None, error=self._error) if self._error else Timing(1.0, 0.5, 2.0) for form in wanted}


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch):
    """Makes the benchmark run on this CPU, with given times."""

    def use(times: Counting) -> Counting:
        monkeypatch.setattr(devices, "found", devices.Cpu)
        monkeypatch.setattr(devices.Cpu, "times", lambda *arguments: times(*arguments))
        monkeypatch.setattr(devices.Cpu, "facts", lambda _: {"copy_gb_per_s": 10.0})
        return times

    return use


def measure(out: Path, **settings) -> dict:
    return run(Settings(**{"quick": True, "cells": CELLS} | settings), out, ["bench", "kernels"], quiet=True)


def saved(out: Path) -> dict:
    (path,) = out.glob("*/kernels.json")
    return json.loads(path.read_text("utf-8"))


@pytest.mark.slow
def test_a_smoke_run_measures_every_form_for_real(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "adamix_bench.kernels", "--quick", "--json", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    document = json.loads(done.stdout)
    assert document["status"] == "complete"
    assert [(cell["rows"], cell["adapters"]) for cell in document["cells"]] == [(c.rows, c.adapters) for c in QUICK]
    for cell in document["cells"]:
        assert set(cell["times"]) == set(ON_CPU)
        assert all(time["us"] > 0 for time in cell["times"].values())
    assert document["rule"]["fp32"]["cells"] == len(QUICK)
    assert [goal["name"] for goal in document["goals"]] == ["encoder", "encoder.both"]
    assert document["device"]["copy_gb_per_s"] > 0
    (directory,) = tmp_path.iterdir()
    assert {path.name for path in directory.iterdir()} == {"kernels.json", "kernels.jsonl", "kernels.png"}
    assert json.loads((directory / "kernels.json").read_text("utf-8")) == document


def test_what_was_measured_before_is_not_measured_again(tmp_path: Path, cpu) -> None:
    first = cpu(Counting())
    measure(tmp_path)
    assert len(first.asked) == 2
    second = cpu(Counting())
    document = measure(tmp_path)
    assert second.asked == []
    assert [cell["times"]["loop"]["us"] for cell in document["cells"]] == [1.0, 1.0]
    third = cpu(Counting())
    measure(tmp_path, dtypes=("bf16",))
    assert len(third.asked) == 2


def test_after_an_interruption_the_rest_is_measured(tmp_path: Path, cpu) -> None:
    cpu(Counting(stop_at=1))
    assert measure(tmp_path)["status"] == "interrupted"
    assert len(saved(tmp_path)["cells"]) == 1
    rest = cpu(Counting())
    assert measure(tmp_path)["status"] == "complete"
    assert len(rest.asked) == 1
    assert len(saved(tmp_path)["cells"]) == 2


def test_out_of_time_it_says_how_much_is_missing(tmp_path: Path, cpu) -> None:
    times = cpu(Counting())
    document = measure(tmp_path, budget_s=1e-9)
    assert times.asked == []
    assert document["status"].startswith("out of time: 3 of 3")


def test_a_failure_of_the_chosen_form_is_told_and_tried_again(tmp_path: Path, cpu) -> None:
    cpu(Counting(error="RuntimeError: no room"))
    document = measure(tmp_path)
    assert set(document["failures"]) == {"T=1 A=1 H=64 r=8 fp32", "T=8 A=8 H=64 r=16 fp32"}
    again = cpu(Counting())
    assert measure(tmp_path)["failures"] == {}
    assert len(again.asked) == 2


def test_other_sources_are_measured_anew(tmp_path: Path, cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(Counting())
    measure(tmp_path)
    monkeypatch.setattr("adamix_bench.kernels.run.sources_digest", lambda: "another")
    again = cpu(Counting())
    measure(tmp_path)
    assert len(again.asked) == 2


@pytest.mark.parametrize("wrong", [{"dtypes": ("fp8",)}, {"cells": "H=5"}, {"cells": "X"}, {"budget_s": 0.0}], ids=str)
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidConfig):
        Settings(**wrong)


def test_nothing_is_imported_that_only_servers_need() -> None:
    """A machine with a GPU often has torch and little else."""
    absent = ("msgspec", "zmq", "sqlalchemy", "grpc", "google.protobuf", "safetensors", "tokenizers", "accelerate")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "import adamix_bench.kernels.command, adamix_bench.kernels.run, adamix_bench.kernels.tuning\n"
        "import adamix_bench.kernels.plan_clock, adamix_bench.kernels.empty\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
