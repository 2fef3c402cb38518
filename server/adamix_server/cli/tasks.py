"""`adamix tasks`, `versions` and `rollback`: what a server has, and what it had before."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import plain, show


def tasks(server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, json_: JsonFlag = False) -> None:
    """List the tasks of a server."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.tasks()
        table = Table("task", "head", "labels", "live version", "note")
        for task in found:
            labels = ", ".join(task.labels[:6]) + (", …" if len(task.labels) > 6 else "")
            table.add_row(task.task, task.head_type, escape(labels), _shares(task.traffic), task.unavailable_reason)
        show({"tasks": [plain(task) for task in found]}, table, as_json=json_)


def versions(
    task: Annotated[str, typer.Argument()],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """List the versions of a task, newest first."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.versions(task)
        table = Table("version", "state", "live", "bytes", "created", "residency", "pinned")
        for version in found:
            table.add_row(
                version.digest[:12],
                version.state,
                "yes" if version.live else "",
                f"{version.num_bytes:,}",
                f"{version.create_time:%Y-%m-%d %H:%M}",
                version.residency,
                "yes" if version.pinned else "",
            )
        show({"versions": [plain(version) for version in found]}, table, as_json=json_)


def rollback(
    task: Annotated[str, typer.Argument()],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Make the version that was live before the current one live again."""
    with exit_codes(), connect(server, api_key_file) as client:
        result = client.rollback(task)
        show({"task": plain(result)}, f"{task}: {_shares(result.traffic, 64)}", as_json=json_)


def _shares(traffic: Sequence[tuple[str, int]], chars: int = 12) -> str:
    """The live versions by the start of their digests; if there are several, with the share of each."""
    if len(traffic) == 1:
        return traffic[0][0][:chars]
    total = sum(weight for _, weight in traffic)
    return ", ".join(f"{digest[:chars]} {weight / total:.1%}" for digest, weight in traffic)
