"""The command `adamix bench kernels`: parse, call one function, print. Imports nothing that only servers need."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adamix.errors import AdamixError


def kernels(
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="fp32, fp16 or bf16; may be repeated.  [default: bf16 on CUDA, fp32 on a CPU]"),
    ] = None,
    cells: Annotated[str, typer.Option(help="Some sizes only, like 'T=1,8 A=1 H=768 r=64'.")] = "",
    budget: Annotated[float | None, typer.Option(help="Seconds after which nothing new is begun.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find faster plans for this CUDA device and write its table.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke run on a few small cells: says nothing about speed.")
    ] = False,
    aot: Annotated[
        bool,
        typer.Option("--aot", help="Time nothing: compile for sm80, sm90, sm100 and gfx942, and check what comes out."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --aot: every entry of the plans.")] = False,
    out: Annotated[Path, typer.Option(help="Directory; each device has one of its own in it.")] = Path("bench-output"),
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Time, bytes and share of the copy bandwidth of mixed bottlenecks, against other ways of computing them.

    A run that was cut short goes on where it stopped when it is started again.
    """
    if aot:
        compile_ahead(out, full=full, json_=json_)
        return
    from adamix_bench.kernels.run import run
    from adamix_bench.kernels.settings import Settings
    from adamix_bench.kernels.tuning import run_tuning

    try:
        settings = Settings(dtypes=tuple(dtype or ()), cells=cells, quick=quick, budget_s=budget)
        if tune:
            document = run_tuning(settings, out, quiet=json_)
        else:
            document = run(settings, out, sys.argv[1:], quiet=json_)
    except AdamixError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None
    if json_:
        typer.echo(json.dumps(document))
    if not tune and (document["failures"] or document["status"] == "interrupted"):
        raise typer.Exit(1)


def compile_ahead(out: Path, *, full: bool, json_: bool) -> None:
    """`--aot`: the kernels on devices that are not here; needs no device and no torch."""
    from adamix_bench.aot import run

    try:
        document = run(out, full=full, quiet=json_)
    except AdamixError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None
    if json_:
        typer.echo(json.dumps(document))
    if any("problems" in row for row in document["aot"]):
        raise typer.Exit(1)
