"""How the commands that ask a server print what it has said: one document, or something for people.

What a server says is other people's text: a label, a name or a reason may hold what a terminal acts on. Every such text
goes through `safe` before it is shown to a person; documents hold it as it is, which JSON escapes.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table

from adamix.cli.terminal import Screen

if TYPE_CHECKING:
    from adamix_client import Task

_PIPE_CHARS = 240
_SHORT_DIGEST = 12
_MOST_LABELS = 6
_MOST_LABEL_CHARS = 24


def show(document: Mapping[str, Any], text: str | Table | Group, *, as_json: bool) -> None:
    """Print one of the two on stdout."""
    if as_json:
        typer.echo(json.dumps(document))
    else:
        print_for_people(text)


def print_for_people(text: str | Table | Group) -> None:
    console = Screen()
    if not console.is_terminal:
        # Whoever reads it from a file or a pipe has lines of any length.
        console.width = _PIPE_CHARS
    console.print(text, highlight=False, soft_wrap=isinstance(text, str))


def without_empty(*columns: str | Column, rows: Sequence[Sequence[str]]) -> Table:
    """A table that fits a laptop: columns in which no row has anything are left out, and the first is never cut."""
    first, *others = (Column(column) if isinstance(column, str) else column for column in columns)
    first.no_wrap = True
    kept = [first, *(column for number, column in enumerate(others, 1) if any(row[number] for row in rows))]
    numbers = [number for number, column in enumerate((first, *others)) if any(column is one for one in kept)]
    table = Table(*kept, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(row[number] for number in numbers))
    return table


def safe(text: str, most_chars: int = 80) -> str:
    """`text` for a cell or a line: cut, and with nothing in it that moves a cursor, hides or turns round what stands
    beside it, or is markup."""
    if len(text) > most_chars:
        text = text[: most_chars - 1] + "…"
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return escape(shown)


def plain(value: Any) -> Any:
    """A dataclass of the client as a document has it."""
    import msgspec

    return msgspec.to_builtins(value)


def short(digest: str) -> str:
    return safe(digest, _SHORT_DIGEST + 1)[:_SHORT_DIGEST]


def shares(traffic: Sequence[tuple[str, int]], *, whole: bool = False) -> str:
    """The live versions by the start of their digests; if there are several, with the share of each."""
    names = [safe(digest, 64) if whole else short(digest) for digest, _ in traffic]
    if len(names) == 1:
        return names[0]
    total = sum(weight for _, weight in traffic)
    return ", ".join(f"{name} {weight / total:.1%}" for name, (_, weight) in zip(names, traffic, strict=True))


def labels_of(task: "Task") -> str:
    """The first labels of a task."""
    told = [safe(label, _MOST_LABEL_CHARS) for label in task.labels[:_MOST_LABELS]]
    return ", ".join([*told, "…"] if len(task.labels) > _MOST_LABELS else told)


def day_and_time(time: datetime | None, never: str = "") -> str:
    """In UTC, to the minute; `never` for None."""
    return never if time is None else f"{time:%Y-%m-%d %H:%M}"


@contextmanager
def until_ctrl_c() -> Iterator[None]:
    """Around what goes on until it is ended: by Ctrl-C, or because nobody reads any more, as after `| head`."""
    try:
        yield
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Nor is there anything to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
