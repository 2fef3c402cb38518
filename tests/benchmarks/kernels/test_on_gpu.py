"""`make gpu` on a machine that lacks some modules: what is run, and what is said about the rest."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from adamix_bench.kernels import on_gpu

ROOT = Path(__file__).parents[3]


def write_results(command: Sequence[str], tests: int = 3, skipped: int = 1) -> None:
    """What pytest writes where `--junitxml` says, in the one line that is read."""
    for word in command:
        option, _, path = word.partition("=")
        if option == "--junitxml":
            suite = f'<testsuite errors="0" failures="0" skipped="{skipped}" tests="{tests}"/>'
            Path(path).write_text(f"<testsuites>{suite}</testsuites>", encoding="utf-8")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What would be run on a device, all of it with success; results go to `tmp_path`."""
    ran: list[list[str]] = []

    def run(command: Sequence[str], limit_s: float) -> int:
        assert limit_s > 0
        ran.append(list(command))
        write_results(command)
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


@pytest.mark.parametrize(("spec", "said"), [(None, "has no torch"), (object(), "has a torch that cannot use it")])
def test_a_device_that_torch_does_not_see_is_a_failure(
    spec: object, said: str, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(on_gpu, "device_name", lambda: None)
    monkeypatch.setattr(on_gpu, "find_spec", lambda _: spec)
    monkeypatch.setattr(on_gpu, "_DEVICE_FILES", (str(tmp_path),))
    assert on_gpu.main([]) == 1
    assert said in capsys.readouterr().out


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
    assert found["counts"] == {"passed": 2, "failures": 0, "errors": 0, "skipped": 1}


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


@pytest.mark.parametrize("has_asyncio", [True, False])
def test_settings_of_a_plugin_that_is_missing_do_not_keep_the_tests_from_running(
    has_asyncio: bool, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "_is_there", lambda name: has_asyncio or name != "pytest_asyncio")
    assert on_gpu.main([]) == 0
    words = commands[0]
    assert ("-o" in words) is not has_asyncio
    given = words[words.index("-o") : words.index("-o") + 2] if "-o" in words else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:asyncio", "--collect-only", "-q", *given, __file__],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # With the settings as they stand, a pytest without the plugin refuses to start.
    assert (done.returncode == 0) is not has_asyncio, done.stdout + done.stderr


def test_the_settings_that_are_given_instead_are_those_of_the_project() -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]["addopts"]
    assert ours.replace("--strict-config ", "") == on_gpu._OPTIONS_WITHOUT_ASYNCIO


def test_without_pytest_the_benchmark_still_runs(commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pytest")
    assert on_gpu.main([]) == 0
    assert [command[1] for command in commands] == ["adamix_bench.kernels"]
    assert summary(tmp_path)["tests"] == "left out"


def test_a_device_on_which_nothing_can_run_is_a_failure(
    commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "triton")
    assert on_gpu.main([]) == 1
    assert commands == []
    assert summary(tmp_path)["missing"] == ["triton"]


@pytest.mark.parametrize("code", [1, 5, None])
def test_failed_tests_fail_the_whole_but_not_the_benchmark(
    code: int | None, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "_run", lambda command, _: code if "pytest" in command else 0)
    assert on_gpu.main([]) == 1
    assert summary(tmp_path)["benchmark"] == "done"


def test_tests_that_were_all_skipped_have_not_passed(commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "_run", lambda command, _: write_results(command, tests=2, skipped=2) or 0)
    assert on_gpu.main([]) == 1
    assert (summary(tmp_path)["tests"], summary(tmp_path)["counts"]["skipped"]) == ("failed", 2)


def test_the_counts_are_those_of_pytest(tmp_path: Path) -> None:
    tests, results = tmp_path / "test_some.py", tmp_path / "results.xml"
    tests.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no')\ndef test_c(): raise ValueError\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tests)]
    subprocess.run([*command, f"--junitxml={results}"], cwd=tmp_path, capture_output=True, check=False)
    assert on_gpu._counts(results) == {"passed": 1, "failures": 1, "errors": 0, "skipped": 1}
    assert on_gpu._counts(tmp_path / "not-there.xml") == {}


def test_a_command_that_takes_too_long_is_ended() -> None:
    assert on_gpu._run(["-c", "import time; time.sleep(60)"], 0.5) is None
    imports = "import adamix, adamix_kernels, adamix_bench, adamix_testing"
    assert on_gpu._run(["-c", f"{imports}; raise SystemExit(3)"], 60) == 3


def test_folders_that_are_named_exist() -> None:
    assert all((ROOT / folder).is_dir() for folder in on_gpu.TESTS_NEED)


def test_it_needs_the_standard_library_alone() -> None:
    """It has to say what is missing, so it may not need it."""
    program = (
        "import sys; sys.path.append('benchmarks'); import adamix_bench.kernels.on_gpu; print(sys.modules.get('numpy'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert done.stdout == "None\n"
