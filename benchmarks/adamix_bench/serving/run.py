"""`adamix bench serving`: puts a run together, and keeps what there is when it is cut short.

The parts do the measuring: `mixed.py` one setting of tasks, popularity and loop; `targets.py` everything with a target;
`against.py` this checkout beside another one.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from adamix.cli import stderr
from adamix.errors import InvalidConfig
from adamix_bench import machine, tiny
from adamix_bench.serving import against as _against
from adamix_bench.serving import equality, mixed
from adamix_bench.serving import targets as _targets
from adamix_bench.serving.checkouts import Checkout
from adamix_bench.serving.report import Report, plot
from adamix_bench.serving.settings import Settings
from adamix_server.engine.host_memory import keep_freed_memory

# Numbers that are cut off say nothing: a narrow terminal breaks the lines instead.
_WIDTH = 132
_STARTED = time.monotonic()
# What `--targets` chooses itself.
_CHOSEN = ("tasks", "popularity", "loop", "in_flight", "inputs_per_call", "rate", "resident_share", "seconds", "server")
_QUICK = {"tasks": 6, "requests": 48, "repetitions": 2, "inputs_per_call": 8}


def run(
    settings: Settings,
    *,
    targets: bool = False,
    against: Path | None = None,
    quick: bool,
    out: Path,
    command: Sequence[str],
    quiet: bool,
) -> dict[str, Any]:
    """Measure, write `out/serving.json` and `out/serving.png`, print tables unless `quiet`.

    Args:
        against: the directory of another checkout to compare with.

    Returns:
        The JSON document; `complete` is False after Ctrl-C or when a part failed, and then it holds what was measured.

    Raises:
        InvalidConfig: the backbone or a setting cannot work.
        AdamixError: the server did not start, or did not answer.
        OSError: `out` cannot be written.
    """
    if targets and against is not None:
        raise InvalidConfig("--targets and --against measure different things: give one of them")
    if targets:
        _refuse("--targets chooses its own servers, tasks and loops", _CHOSEN, settings)
    other = None
    if against is not None:
        _refuse("--against starts both servers and gives both the same calls to answer", _against.CHOSEN, settings)
        other = Checkout.at(against)
    # Before the operators start their threads. As in the engine's process, so that both sides have the same.
    torch.set_num_threads(settings.num_threads)
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    with _sized(settings, quick=quick) as sized:
        described = machine.describe(sized.num_threads)
        report = Report(out, asdict(sized), described, command)
        if quick:
            _say("a smoke run: these numbers say nothing about speed")
        elif described["load_average"] > described["cores"] / 4:
            _say(f"this machine is busy (load {described['load_average']:.1f}): do not trust these numbers")
        try:
            if targets:
                _targets.measure(sized, _targets.QUICK if quick else _targets.FULL, report, _say)
            elif other is not None:
                _against.measure(sized, other, report, _say)
            else:
                mixed.measure(sized, report, _say)
            if sized.server is None:
                # Another machine's server may compute in another dtype.
                for pair, why in equality.failures(report.equal).items():
                    _say(f"{pair}: {why}")
                    report.failures[pair] = why
            report.complete = not report.failures
        except KeyboardInterrupt:
            _say("interrupted: what follows is what had been measured")
    report.save()
    picture = plot(report)
    if not quiet:
        console = Console()
        console.width = max(console.width, _WIDTH)
        console.print(report.tables())
    _say(f"{out / 'serving.json'}" + (f" and {picture}" if picture else ""))
    return report.to_json()


def _refuse(why: str, chosen: Sequence[str], settings: Settings) -> None:
    """Raise InvalidConfig if one of the settings that are chosen for the user was given."""
    given = [f"--{name.replace('_', '-')}" for name in chosen if getattr(settings, name) != getattr(Settings(), name)]
    if given:
        raise InvalidConfig(f"{why}: leave {' and '.join(given)} out")


@contextmanager
def _sized(settings: Settings, *, quick: bool) -> Iterator[Settings]:
    """The settings of a smoke run over a backbone made for it; unchanged settings otherwise."""
    if not quick:
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as directory:
        backbone = tiny.write_backbone(Path(directory))
        yield replace(settings, backbone=str(backbone), **_QUICK)  # type: ignore[arg-type]  # int fields all


def _say(text: str) -> None:
    stderr.print(f"[dim]{time.monotonic() - _STARTED:4.0f} s[/]  {escape(text)}", soft_wrap=True)
