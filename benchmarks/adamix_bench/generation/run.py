"""`adamix bench generation`: puts a run together, and keeps what there is when it is cut short."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from adamix.cli import stderr
from adamix_bench import machine
from adamix_bench.generation.report import Report, plot
from adamix_bench.generation.settings import Settings

_WIDTH = 132
_STARTED = time.monotonic()


def run(settings: Settings, *, out: Path, command: Sequence[str], quiet: bool) -> dict[str, Any]:
    """Measure, write document and picture to `out`, print the tables unless `quiet`.

    Returns:
        The JSON document; `complete` is False after Ctrl-C or when a way failed, and then it holds what was measured.

    Raises:
        AdamixError: the backbone cannot be had or writes no text, or a way did not do its work.
        OSError: `out` cannot be written.
    """
    # Loads torch.
    from adamix_bench.generation.measured import measure

    out.mkdir(parents=True, exist_ok=True)
    described = machine.describe(settings.threads)
    report = Report(out, asdict(settings), described, command)
    if described["load_average"] > described["cores"] / 4:
        _say(f"this machine is busy (load {described['load_average']:.1f}): do not trust these numbers")
    try:
        measure(settings, report, _say)
        report.complete = not report.failures
    except KeyboardInterrupt:
        _say("interrupted: what follows is what had been measured")
    document = report.save()
    written = [out / "generation.json"]
    if (picture := plot(report)) is not None:
        written.append(picture)
    if not quiet:
        console = Console()
        # Numbers that are cut off say nothing.
        console.width = max(console.width, _WIDTH)
        console.print(report.tables())
    _say(", ".join(map(str, written)))
    return document


def _say(text: str) -> None:
    stderr.print(f"[dim]{time.monotonic() - _STARTED:4.0f} s[/]  {escape(text)}", soft_wrap=True)
