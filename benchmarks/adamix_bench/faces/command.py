"""The command `adamix bench faces`: parse, call one function, print. Heavy libraries are imported inside."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_bench.faces.settings import PARTS, Settings

_DEFAULTS = Settings()


def faces(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer turns and rows: a minute in all.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"These parts, with commas or repeated: {', '.join(PARTS)}."),
    ] = None,
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, or `minilm`.")] = _DEFAULTS.backbone,
    threads: Annotated[int, typer.Option(help="Threads of the operators.  [0: one per core]")] = _DEFAULTS.threads,
    seed: Annotated[int, typer.Option(help="Of weights and texts.")] = _DEFAULTS.seed,
    out: Annotated[Path, typer.Option(help="Directory of the document and the plot.")] = Path("bench-output"),
    json_: JsonFlag = False,
) -> None:
    """What HTTP, the client, the command line and files of rows cost, each with its target."""
    with exit_codes():
        settings = Settings(
            backbone=backbone,
            quick=quick,
            only=tuple(name for some in only or () for name in some.split(",")),
            threads=threads,
            seed=seed,
        )
        from adamix_bench.faces.run import run

        document = run(settings, out=out, command=sys.argv[1:], quiet=json_)
        if json_:
            typer.echo(json.dumps(document))
        if not document["complete"]:
            raise typer.Exit(1)
