"""What `adamix bench kernels` says to a person: one line and an exit code, never a traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from adamix_bench.kernels import aot, command, devices, run


def invoke(*arguments: str):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command.kernels)
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    "flags",
    [
        ("--full",),
        ("--aot", "--tune"),
        ("--aot", "--cells", "T=1"),
        ("--tune", "--quick"),
        ("--dtype", "fp8"),
        ("--budget", "nan"),
        ("--cells", "T=3"),
    ],
    ids=" ".join,
)
def test_flags_that_mean_nothing_are_wrong_usage(flags: Sequence[str], tmp_path: Path) -> None:
    done = invoke(*flags, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_a_device_tuning_fails_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = invoke("--tune", "--out", str(tmp_path))
    assert (done.exit_code, done.output) == (1, "error: --tune times kernels and needs a CUDA device\n")


def test_an_out_that_cannot_be_written_fails_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "found", devices.Cpu)
    monkeypatch.setattr(devices.Cpu, "facts", lambda _: {"copy_gb_per_s": 10.0})
    file = tmp_path / "file"
    file.touch()
    done = invoke("--quick", "--budget", "1e-9", "--out", str(file))
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith(f"error: {file}")


@pytest.mark.parametrize("arguments", [["adamix", "bench", "kernels", "--quick"], ["__main__.py", "--quick"]], ids=len)
def test_the_document_has_the_command_either_way(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []

    def remember(_: object, __: Path, words: Sequence[str], **___: object) -> dict:
        asked.append(words)
        return {"failures": {}, "status": "complete"}

    monkeypatch.setattr(run, "run", remember)
    monkeypatch.setattr(sys, "argv", arguments)
    assert invoke("--quick").exit_code == 0
    assert asked == [["bench", "kernels", "--quick"]]


def test_interrupting_the_compiler_ends_the_processes_it_started(tmp_path: Path) -> None:
    """As `--aot` runs it: a process of its own, whose workers ignore interrupts."""
    pids = tmp_path / "pids"
    compiler = (
        "import os, signal, subprocess, sys, time, pathlib\n"
        "worker = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)'\n"
        "started = subprocess.Popen([sys.executable, '-c', worker])\n"
        f"temporary = pathlib.Path({str(pids)!r} + '.new')\n"
        "temporary.write_text(f'{os.getpid()} {started.pid}')\n"
        f"temporary.rename({str(pids)!r})\n"
        "time.sleep(60)\n"
    )
    program = (
        f"import sys; from adamix_bench.kernels.aot import output_of; output_of([sys.executable, '-c', {compiler!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    while not pids.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert not any(is_running(int(pid)) for pid in pids.read_text("utf-8").split())


def test_the_compiler_is_told_apart_from_its_output() -> None:
    assert aot.output_of([sys.executable, "-c", "print('rows'); raise SystemExit(1)"]) == (1, "rows\n")


def test_the_compiler_never_inherits_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    program = "import json, os; print(json.dumps(os.environ.get('TRITON_INTERPRET')))"
    _, output = aot.output_of([sys.executable, "-c", program])
    assert json.loads(output) is None


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that nobody waited for is still listed."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
