"""The application without a server: the method's commands, and the options that stand before any."""

from typing import Annotated

import typer

from adamix.cli.commands import COMMANDS
from adamix.cli.lazy import lazy_app


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib import metadata

        print(f"adamix {metadata.version('adamix')}")
        raise typer.Exit


def adamix(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Train AdaMix adapters and serve them, many tasks on one backbone."""


app = lazy_app(COMMANDS, adamix)
