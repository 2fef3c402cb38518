"""Programs from start to end: commands that answer or refuse at once, and what the client loads and takes on a disk."""

import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import adamix_client
from adamix.errors import Unavailable
from adamix_bench.faces.report import Report
from adamix_bench.faces.settings import Sizes
from adamix_bench.measure import Spread

_ADAMIX = (sys.executable, "-m", "adamix_server")
_NOWHERE = "127.0.0.1:1"
# One of each kind: an unknown command, a missing argument, a flag that does not exist, values out of range or that do
# not go together, files that are not there.
_MISTAKES = (
    ("predit", "sst2"),
    ("predict",),
    ("predict", "sst2", "text", "--tuncate"),
    ("predict", "sst2", "--file", "missing.csv", "--out", "out.csv", "--server", _NOWHERE),
    ("predict", "sst2", "--file", "missing.csv", "--server", _NOWHERE),
    ("generate", "poet", "a", "--top-p", "7", "--server", _NOWHERE),
    ("register", "sst2", "--server", _NOWHERE),
    ("train", "--data", "trec"),
    ("serve", "--backbone", "minilm", "--listen", "nowhere"),
)
_IMPORT = (
    "import time; began, cpu = time.perf_counter(), time.process_time(); from adamix_client import Client; "
    "print(time.perf_counter() - began, time.process_time() - cpu)"
)
_INSTALL_S = 300.0


def command_line(sizes: Sizes, report: Report, say: Callable[[str], None]) -> None:
    """`cli.help_s` and `cli.mistake_s`. Raises Unavailable if a mistake is taken for none."""
    say("the command line: --help")
    helps = [_ran((*_ADAMIX, "--help"), fails=False) for _ in range(sizes.starts + 1)][1:]
    report.add("cli.help_s", "`adamix --help`, seconds", _seconds(helps), 0.3, note=_cpu(helps))
    found: dict[str, list[Ran]] = {}
    for mistake in _MISTAKES:
        said = f"adamix {' '.join(mistake)}"
        say(f"the command line: {said}")
        found[said] = [_ran((*_ADAMIX, *mistake), fails=True) for _ in range(sizes.starts)]
    slowest = max(found, key=lambda said: _seconds(found[said]).median)
    report.facts["mistakes_s"] = {said: _seconds(times).to_json() for said, times in found.items()}
    what = f"the slowest of {len(found)} mistakes, seconds"
    report.add("cli.mistake_s", what, _seconds(found[slowest]), 0.5, note=f"{slowest}; {_cpu(found[slowest])}")


def client(sizes: Sizes, report: Report, say: Callable[[str], None]) -> None:
    """`client.import_s` and `client.mb`."""
    say("the client: import")
    found = [_output((sys.executable, "-c", _IMPORT)).split() for _ in range(sizes.starts + 1)][1:]
    seconds, cpu_s = (Spread(tuple(float(each[place]) for each in found)) for place in (0, 1))
    note = f"{cpu_s.median:.2f} s of processor time"
    report.add("client.import_s", "`from adamix_client import Client`, seconds", seconds, 0.25, note=note)
    say("the client: a venv of its own")
    what = "a venv of `adamix-client` without pip, in 10^6 bytes"
    source = Path(adamix_client.__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as name:
        directory = Path(name) / "venv"
        venv.create(directory, with_pip=False)
        install = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install", "--quiet"]
        install.append(str(source) if (source / "pyproject.toml").exists() else "adamix-client")
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
            failure = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        except subprocess.TimeoutExpired:
            failure = f"pip had not ended after {_INSTALL_S:g} s"
        if failure:
            report.add("client.mb", what, None, 60, note=failure)
            return
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
        report.add("client.mb", what, Spread((size / 1e6,)), 60)


@dataclass(frozen=True)
class Ran:
    """How long a program ran, and the processor time it took, in seconds."""

    seconds: float
    cpu_s: float


def _ran(command: Sequence[str], *, fails: bool) -> Ran:
    """A program from its start to its end. Raises Unavailable if it fails where it should not, or the other way."""
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as directory:
        before, began = cpu_of_children_s(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=directory, check=False)
        found = Ran(time.perf_counter() - began, cpu_of_children_s() - before)
    if bool(done.returncode) != fails:
        raise Unavailable(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return found


def cpu_of_children_s() -> float:
    """Processor time of all programs that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(runs: Sequence[Ran]) -> Spread:
    return Spread(tuple(run.seconds for run in runs))


def _cpu(runs: Sequence[Ran]) -> str:
    return f"{Spread(tuple(run.cpu_s for run in runs)).median:.2f} s of processor time"


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-200:]}")
    return done.stdout
