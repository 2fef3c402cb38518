"""The command `adamix bench generation`: parse, call one function, print. Heavy libraries are imported inside."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adamix.cli import checks
from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_bench.generation.settings import QUICK_CONCURRENCIES, WAYS, Settings

_DEFAULTS = Settings()
_QUICK_REPETITIONS = 2


def generation(
    concurrency: Annotated[
        list[int] | None, typer.Option(metavar="C", help="Requests at once; repeatable.  [default: 1, 8, 32, 64]")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WAY", help=f"These ways, with commas or repeated, and transformers-cb: {', '.join(WAYS)}."
        ),
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(help=f"Turns that count.  [default: {_DEFAULTS.repetitions}]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="1, 8 and 32 at once, two turns.")] = False,
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, or `smollm2`.")] = _DEFAULTS.backbone,
    threads: Annotated[int, typer.Option(help="Threads of the operators.  [0: one per core]")] = _DEFAULTS.threads,
    seed: Annotated[int, typer.Option(help="Of adapters, prompts and lengths.")] = _DEFAULTS.seed,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the engine's time goes, by function.")
    ] = _DEFAULTS.profile,
    out: Annotated[Path, typer.Option(help="Directory of the JSON and the plot.")] = Path("bench-output"),
    json_: JsonFlag = False,
) -> None:
    """Tokens a second of texts for many at once, with many adapters, against transformers in one run."""
    with exit_codes():
        settings = Settings(
            backbone=backbone,
            concurrency=tuple(concurrency or (QUICK_CONCURRENCIES if quick else _DEFAULTS.concurrency)),
            ways=tuple(name for some in only for name in some.split(",")) if only else _DEFAULTS.ways,
            repetitions=repetitions or (_QUICK_REPETITIONS if quick else _DEFAULTS.repetitions),
            threads=threads,
            seed=seed,
            profile=profile,
        )
        checks.names(backbone)
        from adamix_bench.generation.run import run

        document = run(settings, out=out, command=sys.argv[1:], quiet=json_)
        if json_:
            typer.echo(json.dumps(document))
        if not document["complete"]:
            raise typer.Exit(1)
