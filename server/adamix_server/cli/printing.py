"""How the commands that ask a server print what it has said: one document, or something for people."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import typer
from rich.table import Table

from adamix.cli.terminal import Screen

_PIPE_CHARS = 240


def show(document: Mapping[str, Any], text: str | Table, *, as_json: bool) -> None:
    """Print one of the two on stdout."""
    if as_json:
        typer.echo(json.dumps(document))
    else:
        console = Screen()
        # Whoever reads it from a file or a pipe has lines of any length.
        width = None if console.is_terminal else _PIPE_CHARS
        console.print(text, highlight=False, soft_wrap=isinstance(text, str), width=width)


def day_and_time(time: datetime | None, never: str = "") -> str:
    """In UTC, to the minute; `never` for None."""
    return never if time is None else f"{time:%Y-%m-%d %H:%M}"


def plain(value: Any) -> dict[str, Any]:
    """A struct, or one of the client's values, as JSON has it."""
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(value)
    return document
