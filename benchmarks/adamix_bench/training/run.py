"""One run: every way in turns, kept as soon as it is known, and what there is when it is cut short."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from adamix.cli import stderr
from adamix.errors import Cancelled
from adamix_bench import machine
from adamix_bench.training.report import Report, plot
from adamix_bench.training.rounds import Bench, measure
from adamix_bench.training.settings import Settings
from adamix_bench.training.ways import ways

# Numbers that are cut off say nothing: a narrow terminal breaks the lines instead.
_WIDTH = 132


def run(settings: Settings, device: str, out: Path, command: Sequence[str], *, quiet: bool = False) -> dict[str, Any]:
    """Measure, write `out/training.json` and `out/training.png`, print tables unless `quiet`.

    Args:
        device: `cpu` or `cuda:N`.
        command: what was asked, for the document.

    Returns:
        The JSON document; `complete` is False after Ctrl-C, and then it holds the rounds before.

    Raises:
        InvalidConfig: a setting does not fit the backbone.
        OSError: `out` cannot be written.
    """
    started = time.monotonic()

    def say(text: str) -> None:
        stderr.print(f"[dim]{time.monotonic() - started:4.0f} s[/]  {escape(text)}", soft_wrap=True)

    # Before the operators start their threads.
    torch.set_num_threads(settings.num_threads)
    out.mkdir(parents=True, exist_ok=True)
    described = machine.describe(settings.num_threads)
    if described["load_average"] > described["cores"] / 4:
        say(f"this machine is busy (load {described['load_average']:.1f}): do not trust these numbers")
    report = Report(out, asdict(settings), described, command, dict(ways(settings)))
    bench = Bench(settings, device)
    report.facts = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else described["cpu"],
        "backbone_bytes": bench.backbone_bytes,
        "tokens_a_pass": settings.batch_size * settings.max_length,
    }
    try:
        measure(bench, report.ways, settings.rounds, report.found, say)
        report.complete = True
    except (KeyboardInterrupt, Cancelled):  # the trainer turns the first Ctrl-C into the second
        say("interrupted: what follows is what had been measured")
    report.save()
    picture = plot(report)
    if not quiet:
        console = Console()
        console.width = max(console.width, _WIDTH)
        console.print(report.tables())
    say(f"{out / 'training.json'}" + (f" and {picture}" if picture else ""))
    return report.to_json()
