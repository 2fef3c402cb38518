"""What all commands share: the application, exit codes, and how results and progress are shown.

stdout carries results only (with `--json` one JSON document), stderr progress and errors; the exit code is 0, 1 for
a failure or 2 for wrong usage.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from adamix.errors import AdamixError, InvalidConfig

if TYPE_CHECKING:
    from adamix.files.adapter_file import AdapterFile

# Commands in the order of work, in the list of `--help`; those of other packages follow.
_ORDER = ("train", "recipes", "few-shot", "sweep", "merge", "evaluate", "glue", "report", "inspect", "import", "export")


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # a Context of the click that typer brings
        names = super().list_commands(ctx)
        return [name for name in _ORDER if name in names] + [name for name in names if name not in _ORDER]


# Plain help: in the panels of rich the longer names of flags are cut off in a terminal of 80 columns.
app = typer.Typer(
    cls=_InOrder, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
stderr = Console(stderr=True, highlight=False)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"adamix {metadata.version('adamix')}")
        raise typer.Exit


@app.callback()
def adamix(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train AdaMix adapters and serve them, many tasks on one backbone."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error into one red line on stderr and an exit code: 2 for wrong usage, 1 for any other failure.

    Only errors whose text is meant for people are turned; a bug keeps its traceback.
    """
    try:
        yield
    except InvalidConfig as error:
        _fail(error.message, 2)
    except AdamixError as error:
        _fail(error.message, 1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 1)


def print_json(document: dict[str, Any]) -> None:
    from adamix.evaluation.metrics import finite_json

    print(json.dumps(finite_json(document), indent=2))


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """On one line; None is what `finite_json` has left of a value that was no finite number."""
    return "  ".join(f"{name} {'nan' if value is None else f'{value:.4f}'}" for name, value in metrics.items())


def summary(adapter: "AdapterFile") -> dict[str, Any]:
    count, head = adapter.num_parameters()
    return {"parameters": {"adapter": count, "head": head}, "bytes": adapter.num_bytes, "digest": adapter.digest}


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar that appears with the first call of its `start`, so that an early error stands alone."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
    )
    try:
        yield bar
    finally:
        if bar.live.is_started:
            bar.stop()


def _fail(message: str, code: int) -> None:
    stderr.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)
