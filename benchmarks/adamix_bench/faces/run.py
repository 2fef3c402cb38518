"""`adamix bench faces`: puts a run together, and keeps what there is when it is cut short."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from adamix.cli.terminal import stderr
from adamix.errors import AdamixError
from adamix_bench import machine
from adamix_bench.faces import programs
from adamix_bench.faces.report import Report, plot
from adamix_bench.faces.settings import Settings

_STARTED = time.monotonic()


def run(settings: Settings, *, out: Path, command: Sequence[str], quiet: bool) -> dict[str, Any]:
    """Measure, write `out/faces.json` and `out/faces.png`, print the table unless `quiet`.

    Returns:
        The JSON document; `complete` is False after Ctrl-C or when a part failed, and then it holds what was measured.

    Raises:
        InvalidConfig: the backbone cannot work.
        OSError: `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    described = machine.describe(settings.num_threads)
    report = Report(out, {**asdict(settings), "sizes": asdict(settings.sizes)}, described, command)
    if described["load_average"] > described["cores"] / 4:
        _say(f"this machine is busy (load {described['load_average']:.1f}): do not trust these numbers")
    parts: dict[str, Callable[[], None]] = {
        "cli": lambda: programs.command_line(settings.sizes, report, _say),
        "client": lambda: programs.client(settings.sizes, report, _say),
        "http": lambda: _served(settings, report, "http"),
        "file": lambda: _served(settings, report, "file"),
    }
    try:
        for name, part in parts.items():
            if settings.wants(name):
                try:
                    part()
                except AdamixError as error:
                    _say(f"{name} failed: {error.message}")
                    report.failures[name] = error.message
                report.save()
        report.complete = not report.failures
    except KeyboardInterrupt:
        _say("interrupted: what follows is what had been measured")
    document = report.save()
    picture = plot(report)
    if not quiet:
        report.print()
    _say(f"{out / 'faces.json'}" + (f" and {picture}" if picture else ""))
    return document


def _served(settings: Settings, report: Report, part: str) -> None:
    # Loads torch.
    from adamix_bench.faces import served

    served.PARTS[part](settings, report, _say)


def _say(text: str) -> None:
    stderr.print(f"[dim]{time.monotonic() - _STARTED:4.0f} s[/]  {escape(text)}", soft_wrap=True)
