"""`make gpu`: the tests that need a CUDA device and the benchmark of the kernels, on whatever Python the machine has.

Machines with a GPU often have torch and Triton installed for the system's Python and no way to a package index. So this
uses no virtual environment, says by name what is missing, runs what can be run without it, and writes under
`benchmarks/results/<device>` (or `$OUT`) what came of it. Needs the standard library alone.

Usage: PYTHONPATH=benchmarks python3 -m adamix_bench.kernels.on_gpu [--budget SECONDS]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

_ROOT = Path(__file__).resolve().parents[3]
_SOURCES = [str(_ROOT / name) for name in ("adamix", "kernels", "server", "protos", "benchmarks", "tests/support")]

_KERNELS = ("numpy", "torch", "triton")
_METHOD = (*_KERNELS, "msgspec", "transformers", "tokenizers", "safetensors", "accelerate", "sklearn", "typer", "rich")
_SERVER = (
    *_METHOD,
    "zmq",
    "sqlalchemy",
    "google.protobuf",
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "prometheus_client",
)
BENCHMARK_NEEDS = (*_KERNELS, "typer", "rich")
BENCHMARK_LIKES = ("matplotlib", "transformers")
# What the tests of a folder import, beside pytest and what all tests share.
TESTS_NEED = {
    "tests/kernels": _KERNELS,
    "tests/benchmarks/kernels": (*BENCHMARK_NEEDS, "transformers"),
    "tests/adamix": _METHOD,
    "tests/server": _SERVER,
}
_ALL_TESTS_NEED = ("pytest", "hypothesis")
# What pyproject.toml gives pytest, but for `--strict-config`.
_OPTIONS_WITHOUT_ASYNCIO = "--import-mode=importlib --strict-markers -ra"
# The benchmark gets what the tests leave, and at least half.
_TESTS_SHARE = 0.5
_MOST_PROCESSES = 8
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if there is no device, or if what could run of tests and benchmark went well; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="adamix_bench.kernels.on_gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", type=float, default=450.0, help="seconds for everything")
    budget_s = parser.parse_args(arguments).budget
    started_s = time.monotonic()
    device = device_name()
    if device is None:
        return _say_why_not()
    missing = missing_of({*BENCHMARK_NEEDS, *BENCHMARK_LIKES, *_ALL_TESTS_NEED, *_SERVER})
    if missing:
        print(f"make gpu: this Python has no {', '.join(missing)}; what needs them is left out")
    sys.path[:0] = _SOURCES
    from adamix_bench.kernels.store import slug

    out = Path(os.environ.get("OUT") or _ROOT / "benchmarks" / "results")
    summary: dict[str, object] = {"device": device, "python": sys.version.split()[0], "missing": missing}
    summary |= _run_tests(budget_s * _TESTS_SHARE)
    summary |= _run_benchmark(out, budget_s - (time.monotonic() - started_s))
    summary["seconds"] = round(time.monotonic() - started_s, 1)
    directory = out / slug(device)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "gpu.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"make gpu: tests {summary['tests']}, benchmark {summary['benchmark']}; wrote {directory}")
    outcomes = summary["tests"], summary["benchmark"]
    is_fine = outcomes != ("left out", "left out") and set(outcomes) <= {"passed", "done", "left out"}
    return 0 if is_fine else 1


def device_name() -> str | None:
    """The CUDA device as torch calls it, asked in another process; None without one, or without torch."""
    if find_spec("torch") is None:
        return None
    question = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def missing_of(modules: set[str]) -> list[str]:
    """Those that cannot be imported here."""
    return sorted(name for name in modules if not _is_there(name))


def importable_tests() -> list[str]:
    """The folders of tests whose modules are all there."""
    if missing_of(set(_ALL_TESTS_NEED)):
        return []
    return [folder for folder, needs in TESTS_NEED.items() if not missing_of(set(needs))]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # what it is a part of is missing


def _say_why_not() -> int:
    has_device = any(Path(file).exists() for file in _DEVICE_FILES)
    if has_device:
        torch = "has no torch" if find_spec("torch") is None else "has a torch that cannot use it"
        print(f"make gpu: there is a device, but {sys.executable} {torch}: make gpu PYTHON=/path/to/python3")
        return 1
    print("make gpu: there is no CUDA device here, so there is nothing to run")
    return 0


def _run_tests(budget_s: float) -> dict[str, object]:
    folders = importable_tests()
    if not folders:
        return {"tests": "left out"}
    # No cache of a plugin that may be missing; the rest is as in pyproject.toml.
    command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=5", *folders]
    if missing_of({"pytest_asyncio"}):
        # Its settings in pyproject.toml are unknown then, which `--strict-config` would not have. No test of a device
        # is a coroutine.
        command += ["-o", f"addopts={_OPTIONS_WITHOUT_ASYNCIO}"]
    if not missing_of({"xdist"}):
        # Most of the time goes into compiling kernels, on the host.
        command += ["-n", str(min(_MOST_PROCESSES, os.cpu_count() or 1))]
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.xml"
        code = _run([*command, f"--junitxml={results}"], budget_s)
        counts = _counts(results)
    # Tests that were all skipped have shown nothing.
    outcome = "out of time" if code is None else "passed" if code == 0 and counts.get("passed") else "failed"
    return {"tests": outcome, "counts": counts, "folders": folders}


def _counts(results: Path) -> dict[str, int]:
    """Tests by outcome, from what pytest wrote; empty if it did not get so far."""
    if not results.exists():
        return {}
    suite = next(ET.parse(results).iter("testsuite"))  # noqa: S314 - pytest's own file
    found = {name: int(suite.get(name, 0)) for name in ("failures", "errors", "skipped")}
    return {"passed": int(suite.get("tests", 0)) - sum(found.values()), **found}


def _run_benchmark(out: Path, budget_s: float) -> dict[str, object]:
    if missing_of(set(BENCHMARK_NEEDS)):
        return {"benchmark": "left out"}
    # It ends by itself; the spare seconds are for what it is in the middle of.
    spare_s = 0.1 * budget_s
    command = ["-m", "adamix_bench.kernels", "--budget", f"{budget_s - spare_s:.0f}", "--out", str(out.resolve())]
    code = _run(command, budget_s)
    return {"benchmark": "out of time" if code is None else "done" if code == 0 else "failed"}


def _run(command: Sequence[str], limit_s: float) -> int | None:
    """The exit code of this Python with a command, in the repository's root; None if it ran out of time."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(_SOURCES),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    process = subprocess.Popen([sys.executable, *command], cwd=_ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(limit_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
        # With the processes it started.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(stopped, KeyboardInterrupt):
            raise
        return None


if __name__ == "__main__":
    sys.exit(main())
