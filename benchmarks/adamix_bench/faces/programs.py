"""Programs from start to end: commands that answer or refuse at once, and what the client loads and takes on a disk."""

import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
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
    "import time; began = time.perf_counter(); from adamix_client import Client; print(time.perf_counter() - began)"
)
_INSTALL_S = 300.0


def command_line(sizes: Sizes, report: Report, say: Callable[[str], None]) -> None:
    """`cli.help_s` and `cli.mistake_s`. Raises Unavailable if a mistake is taken for none."""
    say("the command line: --help")
    helps = [_seconds((*_ADAMIX, "--help"), code=0) for _ in range(sizes.starts + 1)][1:]
    report.add("cli.help_s", "`adamix --help`, seconds", Spread(tuple(helps)), 0.3)
    found: dict[tuple[str, ...], Spread] = {}
    for mistake in _MISTAKES:
        say(f"the command line: adamix {' '.join(mistake)}")
        found[mistake] = Spread(tuple(_seconds((*_ADAMIX, *mistake), code=None) for _ in range(sizes.starts)))
    slowest = max(found, key=lambda mistake: found[mistake].median)
    report.facts["mistakes_s"] = {" ".join(mistake): spread.to_json() for mistake, spread in found.items()}
    note = f"adamix {' '.join(slowest)}"
    report.add("cli.mistake_s", f"the slowest of {len(found)} mistakes, seconds", found[slowest], 0.5, note=note)


def client(sizes: Sizes, report: Report, say: Callable[[str], None]) -> None:
    """`client.import_s` and `client.mb`."""
    say("the client: import")
    seconds = [float(_output((sys.executable, "-c", _IMPORT))) for _ in range(sizes.starts + 1)][1:]
    report.add("client.import_s", "`from adamix_client import Client`, seconds", Spread(tuple(seconds)), 0.25)
    say("the client: a venv of its own")
    what = "a venv of `adamix-client` without pip, in 10^6 bytes"
    source = Path(adamix_client.__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as name:
        directory = Path(name) / "venv"
        venv.create(directory, with_pip=False)
        install = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install", "--quiet"]
        install += ["--no-compile", str(source) if (source / "pyproject.toml").exists() else "adamix-client"]
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


def _seconds(command: Sequence[str], code: int | None) -> float:
    """How long a program ran that ends with this code; None for any but 0. Raises Unavailable if it ends otherwise."""
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as directory:
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=directory, check=False)
        seconds = time.perf_counter() - began
    if done.returncode != code if code is not None else not done.returncode:
        raise Unavailable(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return seconds


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-200:]}")
    return done.stdout
