"""`adamix demo`; the `adamix` command finds `register` through the entry point group `adamix.commands`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adamix.cli.lazy import Command
from adamix.cli.terminal import JsonFlag, exit_codes, stderr


def register() -> Command:
    """What the `adamix` command lists."""
    return Command(
        "demo",
        "adamix_bench.demo.command:demo",
        "Train, merge, serve, register, swap and measure on packaged weights and texts, in a few minutes.",
    )


def demo(
    out: Annotated[Path, typer.Option(help="Directory for adapters, logs and plots; emptied first.")] = Path(
        "demo-output"
    ),
    json_: JsonFlag = False,
) -> None:
    """Train, merge, serve, register, swap and measure on packaged weights and texts, in a few minutes."""
    with exit_codes():
        from adamix_bench.demo.main import run

        result = run(out, stderr)
        if json_:
            typer.echo(json.dumps(result))
