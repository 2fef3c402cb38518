"""`adamix load`, `unload`, `pin` and `unpin`: where a version is kept.

Thin, as the other commands: parse, call one function, print.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix.errors import InvalidConfig
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption
from adamix_server.cli.printing import plain, safe, short, show
from adamix_server.cli.task_call import find_version, split_target, task_call

if TYPE_CHECKING:
    from adamix_client import Client, Version

TargetArgument = Annotated[
    str, typer.Argument(metavar="TASK[@DIGEST]", help="The version; without a digest, the one that is live.")
]


def load(
    target: TargetArgument,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Bring a version into a slot if one is free, else to host memory; lifts its quarantine."""
    _do(target, server, api_key_file, lambda client, *version: client.load(*version), as_json=json_)


def unload(
    target: TargetArgument,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Take a version out of the server's memory until somebody asks for it."""
    _do(target, server, api_key_file, lambda client, *version: client.unload(*version), as_json=json_)


def pin(
    target: TargetArgument,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Keep a version in a slot, over every restart."""
    _do(target, server, api_key_file, lambda client, *version: client.pin(*version), as_json=json_)


def unpin(
    target: TargetArgument,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Keep it in its slot no longer."""
    _do(
        target,
        server,
        api_key_file,
        lambda client, *version: client.unpin(*version),
        as_json=json_,
    )


def _do(
    target: str,
    server: str,
    api_key_file: Path | None,
    act: "Callable[[Client, str, str], Version]",
    *,
    as_json: bool,
) -> None:
    with exit_codes():
        task, prefix = split_target(target)
        with task_call(task, server, api_key_file) as client:
            version = act(client, task, find_version(client, task, prefix) if prefix else _live(client, task))
        pinned = ", pinned" if version.pinned else ""
        text = f"{safe(task)} {short(version.digest)}: {safe(version.residency.lower())}{pinned}"
        show({"version": plain(version)}, text, as_json=as_json)


def _live(client: "Client", task: str) -> str:
    """The one live version. Raises InvalidConfig where there is none, or several."""
    live = [digest for digest, _ in client.get_task(task).traffic]
    if len(live) != 1:
        which = f"{len(live)} versions are live" if live else "nothing is live"
        raise InvalidConfig(f"{which} of {task}: say TASK@DIGEST", field="target")
    return live[0]
