"""The command `adamix bench tenants`: parse, call one function, print. Heavy libraries are imported inside."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix.errors import InvalidConfig
from adamix_bench.tenants.settings import PARTS, Settings

_DEFAULTS = Settings()


def tenants(
    quick: Annotated[bool, typer.Option("--quick", help="Two minutes in all; the default.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Half a minute a row, every row.")] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="The server's rules on a made-up clock, without a server.")
    ] = False,
    rates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tenants.json of a run, whose machine is simulated.  [default: a small one]"),
    ] = None,
    batch_ms: Annotated[float | None, typer.Option(help="Of the simulated device: of each batch.")] = None,
    token_us: Annotated[float | None, typer.Option(help="Of the simulated device: of each token.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"These parts, with commas or repeated: {', '.join(PARTS)}."),
    ] = None,
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, or `minilm`.")] = _DEFAULTS.backbone,
    threads: Annotated[int, typer.Option(help="Threads of the operators.  [0: one per core]")] = _DEFAULTS.threads,
    seed: Annotated[int, typer.Option(help="Of weights, texts and arrivals.")] = _DEFAULTS.seed,
    out: Annotated[Path, typer.Option(help="Directory of the document, the page and the plot.")] = Path("bench-output"),
    json_: JsonFlag = False,
) -> None:
    """Does any tenant slow, starve or out-spend another? Each row of the proof with its target, on an own server."""
    with exit_codes():
        if quick and full:
            raise InvalidConfig("--quick and --full are two forms of the same: give one of them", field="quick")
        settings = Settings(
            backbone=backbone,
            full=full,
            simulate=simulate,
            only=tuple(name for some in only or () for name in some.split(",")),
            threads=threads,
            batch_ms=batch_ms,
            token_us=token_us,
            seed=seed,
        )
        from adamix_bench.tenants.run import run

        document = run(settings, rates=rates, out=out, command=sys.argv[1:], quiet=json_)
        if json_:
            typer.echo(json.dumps(document))
        if not document["complete"]:
            raise typer.Exit(1)
