"""`adamix bench serving --against DIR`: whose processor time is counted, how it is compared, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import InvalidConfig, Unavailable
from adamix_bench.serving import run as serving
from adamix_bench.serving.against import Turn, costs_ms, ratios
from adamix_bench.serving.checkouts import Checkout
from adamix_bench.serving.load import Outcome
from adamix_bench.serving.processes import Process, Processes, cpu_s, parent_of, running_processes
from adamix_bench.serving.settings import Settings

ROOT = Path(__file__).parents[3]
SUPERVISOR = 100


def process(pid: int, module: str, parent: int = SUPERVISOR, *flags: str) -> Process:
    return Process(pid, parent, ("/checkout/.venv/bin/python", *flags, "-m", module))


RUNNING = (
    process(SUPERVISOR, "adamix_server", 1),
    process(101, "adamix_server.engine"),
    process(102, "adamix_server.frontend"),
    process(103, "adamix_server.frontend"),
    # The server beside it, what judges an upload, and a program that has the same words among its arguments.
    process(201, "adamix_server.engine", 200),
    process(104, "adamix_server.frontend.control.validation", 102, "-I", "-B"),
    process(105, "adamix_server.frontend.control.validation", SUPERVISOR),
    Process(106, SUPERVISOR, ("grep", "-m", "1", "adamix_server.engine")),
    Process(107, SUPERVISOR, ("",)),
)


def test_the_engine_and_the_front_ends_are_those_that_the_supervisor_started() -> None:
    found = Processes.of("checkout", SUPERVISOR, RUNNING, 2)
    assert found.pids == {"engine": (101,), "front ends": (102, 103)}


@pytest.mark.parametrize(
    ("running", "front_ends", "message"),
    [
        (RUNNING, 1, "the server of checkout runs 1 engines and 2 front ends, not 1 and 1"),
        (RUNNING[2:], 2, "runs 0 engines"),
        ((*RUNNING, process(108, "adamix_server.engine")), 2, "runs 2 engines"),
    ],
)
def test_other_processes_than_there_should_be_are_no_comparison(
    running: Sequence[Process], front_ends: int, message: str
) -> None:
    with pytest.raises(Unavailable, match=message):
        Processes.of("checkout", SUPERVISOR, running, front_ends)


def test_the_name_of_a_process_may_look_like_the_end_of_itself() -> None:
    assert parent_of("7 (a b) R 1) S 42 7 7 0 -1 4194560 812 0 0 0 250 50 9000 9000 20 0 1 0 5 0 0\n") == 42


def test_processor_time_is_that_of_all_threads() -> None:
    program = (
        "import threading, time\n"
        "def work():\n"
        "    while time.process_time() < 0.3: pass\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(time.process_time(), flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = float(child.stdout.readline())
        assert told >= 0.3
        # A moment later: what it has spent by then on printing.
        assert told <= cpu_s(child.pid) < told + 0.1
        child.communicate("\n")


def test_a_process_that_has_ended_is_named_by_its_server() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(Unavailable, match="a process of the server of checkout has ended"):
        Processes("checkout", {"engine": (child.pid,)}).cpu_s()


def test_what_runs_is_read_with_its_command_line_and_who_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", "-m", "a b"], stdin=subprocess.PIPE) as child:
        (found,) = (process for process in running_processes() if process.pid == child.pid)
        assert found.parent == os.getpid()
        assert found.arguments[1:5] == ("-c", "input()", "-m", "a b")
        child.communicate(b"\n")


def turn(engine_s: float, front_ends_s: float) -> Turn:
    outcome = Outcome(wall_s=1, cpu_s=0, late_s=0, calls=[], latency_s=[], answered=[], errors={})
    return Turn(outcome, {"engine": engine_s, "front ends": front_ends_s})


def test_costs_are_told_for_an_input_and_for_a_call() -> None:
    costs = costs_ms([turn(2.0, 0.5), turn(4.0, 0.5), turn(3.0, 0.5)], inputs=1000, calls=10)
    assert {what: spread.median for what, spread in costs.items()} == {
        "engine, an input": 3.0,
        "engine, a call": 300.0,
        "front ends, an input": 0.5,
        "front ends, a call": 50.0,
    }


def test_costs_are_compared_turn_by_turn() -> None:
    # Something slowed the second turn of both: the ratio is of turns that were near each other.
    this, other = [turn(1.1, 0.2), turn(2.2, 0.2), turn(0.9, 0.2)], [turn(1.0, 0.1), turn(2.0, 0.4), turn(1.0, 0.2)]
    engine, front_ends = ratios(this, other, inputs_per_call=32)
    assert (engine.name, front_ends.name) == ("engine.32", "front-ends.32")
    assert engine.measured is not None
    assert front_ends.measured is not None
    assert engine.measured.values == pytest.approx((1.1, 1.1, 0.9))
    assert (engine.measured.median, engine.measured.lowest) == pytest.approx((1.1, 0.9))
    assert front_ends.measured.values == pytest.approx((2.0, 0.5, 1.0))
    assert engine.holds is None


class TestRefusals:
    def _project(self, directory: Path, name: str = "adamix") -> Path:
        (directory / "pyproject.toml").write_text(f"[project]\nname = '{name}'\n")
        return directory

    def _interpreter(self, directory: Path, says: str) -> Path:
        """A `.venv` whose interpreter does what a shell does."""
        python = directory / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{says}\n")
        python.chmod(0o755)
        return python

    def _run(self, against: Path, tmp_path: Path, *, targets: bool = False, **settings: Any) -> None:
        serving.run(
            Settings(**settings),
            targets=targets,
            against=against,
            quick=True,
            out=tmp_path / "out",
            command=[],
            quiet=True,
        )

    def test_a_directory_that_is_no_checkout(self, tmp_path: Path) -> None:
        for directory in (tmp_path, tmp_path / "none", self._project(tmp_path, "another")):
            with pytest.raises(InvalidConfig, match="is not a checkout of adamix"):
                self._run(directory, tmp_path)
        (tmp_path / "pyproject.toml").write_text("project = [")
        with pytest.raises(InvalidConfig, match="is not a checkout of adamix"):
            self._run(tmp_path, tmp_path)
        assert not (tmp_path / "out").exists()

    def test_a_checkout_without_an_interpreter(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match=r"has no \.venv: run `make setup` there"):
            self._run(self._project(tmp_path), tmp_path)

    @pytest.mark.parametrize(
        ("says", "message"),
        [("echo /elsewhere/adamix_server/__init__.py", "the server of /elsewhere/adamix_server"), ("exit 1", "no ")],
    )
    def test_an_interpreter_of_other_code(self, says: str, message: str, tmp_path: Path) -> None:
        self._interpreter(self._project(tmp_path), says)
        with pytest.raises(InvalidConfig, match=f"its .venv has {message}.*run `make setup` there"):
            self._run(tmp_path, tmp_path)

    def test_its_own_code_is_what_is_asked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever this process was told of packages."""
        monkeypatch.setenv("PYTHONPATH", str(ROOT / "server"))
        source = self._project(tmp_path) / "server" / "adamix_server" / "__init__.py"
        python = self._interpreter(tmp_path, f'test -z "$PYTHONPATH" && test -n "$PYTHONSAFEPATH" && echo {source}')
        found = Checkout.at(tmp_path)
        assert (found.directory, found.python) == (tmp_path.resolve(), str(python.resolve()))
        assert found.environment["PATH"] == os.environ["PATH"]

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"server": "localhost:1"}, "--server"),
            ({"seconds": 5.0}, "--seconds"),
            ({"loop": "open", "rate": 5.0}, "--loop and --rate"),
            ({"peers": True}, "--peers"),
        ],
    )
    def test_what_it_chooses_itself(self, settings: dict[str, Any], named: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match=f"leave {named} out"):
            self._run(tmp_path, tmp_path, **settings)

    def test_targets_are_another_measurement(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match="give one of them"):
            self._run(tmp_path, tmp_path, targets=True)


@pytest.mark.long
def test_a_checkout_against_itself(tmp_path: Path) -> None:
    """As a user runs it; a smoke run, which says nothing of speed."""
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("this checkout has no .venv, as `make setup` makes it")
    command = [sys.executable, "-m", "adamix_server", "bench", "serving", "--against", str(ROOT), "--quick", "--json"]
    command += ["--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["complete"] is True
    assert document["equal"]["max_abs_diff"].keys() == {"this server, the other one"}
    assert all(0 <= difference < 1e-4 for difference in document["equal"]["max_abs_diff"].values())
    ways = {f"{whose}, calls of {count}" for whose in ("this", "other") for count in (8, 1)}
    assert set(document["ways"]) == set(document["cpu_ms"]) == ways
    for costs in document["cpu_ms"].values():
        assert set(costs) == {f"{role}, {what}" for role in ("engine", "front ends") for what in ("an input", "a call")}
        assert all(len(spread["values"]) == 2 for spread in costs.values())
    assert [goal["name"] for goal in document["goals"]] == ["engine.8", "front-ends.8", "engine.1", "front-ends.1"]
    assert {checkout["directory"] for checkout in document["facts"]["checkouts"].values()} == {str(ROOT.resolve())}
    assert json.loads((tmp_path / "serving.json").read_text())["cpu_ms"] == document["cpu_ms"]
