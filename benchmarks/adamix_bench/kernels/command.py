"""The command `adamix bench kernels`: parse, call one function, print. Imports nothing that only servers need."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from adamix.errors import AdamixError, InvalidConfig


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
    with _exit_codes():
        if full and not aot:
            raise InvalidConfig("--full goes with --aot", field="full")
        if aot and (tune or quick or dtype or cells or budget is not None):
            raise InvalidConfig(
                "--aot times nothing: of the other flags it takes --full, --out and --json", field="aot"
            )
        if tune and (quick or cells):
            raise InvalidConfig("--tune chooses its sizes itself: leave out --quick and --cells", field="tune")
        if aot:
            compile_ahead(out, full=full, json_=json_)
            return
        from adamix_bench.kernels.run import run
        from adamix_bench.kernels.settings import Settings
        from adamix_bench.kernels.tuning import run_tuning

        settings = Settings(dtypes=tuple(dtype or ()), cells=cells, quick=quick, budget_s=budget)
        document = run_tuning(settings, out, quiet=json_) if tune else run(settings, out, _asked(), quiet=json_)
        if json_:
            typer.echo(json.dumps(document))
        if not tune and (document["failures"] or document["status"] == "interrupted"):
            raise typer.Exit(1)


def compile_ahead(out: Path, *, full: bool, json_: bool) -> None:
    """`--aot`: the kernels on devices that are not here; needs no device and no torch."""
    from adamix_bench.kernels.aot import run

    document = run(out, full=full, quiet=json_)
    if json_:
        typer.echo(json.dumps(document))
    if any("problems" in row for row in document["aot"]):
        raise typer.Exit(1)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """As `adamix.cli.exit_codes`, whose module imports more than machines with a GPU may have."""
    try:
        yield
    except InvalidConfig as error:
        _fail(error.message, 2)
    except AdamixError as error:
        _fail(error.message, 1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def _asked() -> list[str]:
    """The words after `adamix`; `python -m adamix_bench.kernels` has the first two in its name."""
    words = ["bench", "kernels"]
    return sys.argv[1:] if sys.argv[1:3] == words else [*words, *sys.argv[1:]]
