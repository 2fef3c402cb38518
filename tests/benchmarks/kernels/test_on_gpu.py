"""`make gpu` on a machine that lacks some modules: what is run, and what is said about the rest."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from adamix_bench import on_gpu

ROOT = Path(__file__).parents[3]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What would be run on a device, all of it with success; results go to `tmp_path`."""
    ran: list[list[str]] = []

    def run(command: Sequence[str], limit_s: float) -> int:
        assert limit_s > 0
        ran.append(list(command))
        return 0

    monkeypatch.setattr(on_gpu, "device_name", lambda: "Some GPU 80GB")
    monkeypatch.setattr(on_gpu, "_run", run)
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return ran


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    there = on_gpu._is_there
    monkeypatch.setattr(on_gpu, "_is_there", lambda name: name not in modules and there(name))


def summary(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "some-gpu-80gb" / "gpu.json").read_text("utf-8"))


def test_without_a_device_it_says_so_and_succeeds(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(on_gpu, "device_name", lambda: None)
    monkeypatch.setattr(on_gpu, "_DEVICE_FILES", ())
    assert on_gpu.main([]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_a_device_without_torch_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(on_gpu, "device_name", lambda: None)
    monkeypatch.setattr(on_gpu, "find_spec", lambda _: None)
    monkeypatch.setattr(on_gpu, "_DEVICE_FILES", (str(tmp_path),))
    assert on_gpu.main([]) == 1
    assert "no torch" in capsys.readouterr().out


def test_tests_and_benchmark_run_and_are_summed_up(commands, tmp_path: Path) -> None:
    assert on_gpu.main(["--budget", "100"]) == 0
    tests, benchmark = commands
    assert tests[:5] == ["-m", "pytest", "-q", "-m", "gpu"]
    assert "tests/kernels" in tests
    assert benchmark[:2] == ["-m", "adamix_bench.kernels"]
    assert benchmark[benchmark.index("--out") + 1] == str(tmp_path)
    assert float(benchmark[benchmark.index("--budget") + 1]) < 100
    found = summary(tmp_path)
    assert (found["tests"], found["benchmark"], found["missing"]) == ("passed", "done", [])


def test_what_needs_a_missing_module_is_left_out_and_the_module_named(
    commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    without(monkeypatch, "msgspec", "zmq")
    assert on_gpu.main([]) == 0
    assert "msgspec, zmq" in capsys.readouterr().out
    folders = summary(tmp_path)["folders"]
    assert "tests/kernels" in folders
    assert "tests/server" not in folders
    assert "tests/adamix" not in folders
    assert len(commands) == 2


@pytest.mark.parametrize("has_xdist", [True, False])
def test_tests_run_side_by_side_only_where_they_can(has_xdist: bool, commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "_is_there", lambda name: has_xdist or name != "xdist")
    assert on_gpu.main([]) == 0
    assert ("-n" in commands[0]) == has_xdist


def test_without_pytest_the_benchmark_still_runs(commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pytest")
    assert on_gpu.main([]) == 0
    assert [command[1] for command in commands] == ["adamix_bench.kernels"]
    assert summary(tmp_path)["tests"] == "left out"


@pytest.mark.parametrize(("code", "outcome"), [(0, 0), (5, 0), (1, 1), (None, 1)])
def test_failed_tests_fail_the_whole_but_not_the_benchmark(
    code: int | None, outcome: int, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "_run", lambda command, _: code if "pytest" in command else 0)
    assert on_gpu.main([]) == outcome
    assert summary(tmp_path)["benchmark"] == "done"


def test_a_command_that_takes_too_long_is_ended() -> None:
    assert on_gpu._run(["-c", "import time; time.sleep(60)"], 0.5) is None
    assert on_gpu._run(["-c", "import adamix, adamix_kernels, adamix_bench; raise SystemExit(3)"], 60) == 3


def test_folders_that_are_named_exist() -> None:
    assert all((ROOT / folder).is_dir() for folder in on_gpu.TESTS_NEED)


def test_it_needs_the_standard_library_alone() -> None:
    """It has to say what is missing, so it may not need it."""
    program = "import sys; sys.path.append('benchmarks'); import adamix_bench.on_gpu; print(sys.modules.get('numpy'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert done.stdout == "None\n"
