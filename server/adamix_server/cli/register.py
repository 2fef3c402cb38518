"""`adamix register`."""

from pathlib import Path
from typing import Annotated

import typer

from adamix.cli import checks
from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import plain, show


def register(
    task: Annotated[str, typer.Argument(help="The id that clients will call.")],
    file: Annotated[Path, typer.Argument(help="A merged adapter file.")],
    on_server: Annotated[
        bool, typer.Option("--on-server", help="FILE is a name below the server's --adapter-root.")
    ] = False,
    make_live: Annotated[bool, typer.Option(help="Answer with this version from now on.")] = True,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check the file and store nothing.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Upload an adapter as a new version of a task."""
    with exit_codes():
        if not on_server:
            checks.existing(file)
        with connect(server, api_key_file) as client:
            from adamix_client import ServerFile

            adapter = ServerFile(str(file)) if on_server else file
            result = client.register(task, adapter, make_live=make_live, validate_only=validate_only)
        show(
            {"task": task, "version": plain(result.version), "already_exists": result.already_exists},
            f"{task}: {result.version.digest}" + (" (was there already)" if result.already_exists else ""),
            as_json=json_,
        )
