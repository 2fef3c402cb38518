"""`adamix delete`: a task with all its versions, or one version.

Thin, as the other commands: parse, call one function, print.
"""

import sys
from typing import Annotated

import typer

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix.errors import InvalidConfig
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption
from adamix_server.cli.printing import safe, shares, short, show
from adamix_server.cli.task_call import find_version, split_target, task_call


def delete(
    target: Annotated[str, typer.Argument(metavar="TASK|TASK@DIGEST", help="The task, or one of its versions.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Delete a task with all its versions, or one that is not live."""
    with exit_codes():
        task, prefix = split_target(target)
        if not yes and not sys.stdin.isatty():
            raise InvalidConfig("nobody can be asked here: say --yes to delete", field="yes")
        with task_call(task, server, api_key_file) as client:
            digest = find_version(client, task, prefix) if prefix else ""
            etag = ""
            if not yes:
                found = client.get_task(task)
                # What was agreed to is what goes: a change in between is refused.
                etag = found.etag
                what = f"version {short(digest)} of {safe(task)}" if digest else f"{safe(task)} and all its versions"
                live = shares(found.traffic) or "nothing"
                if not typer.confirm(f"Delete {what}? Live now: {live}", err=True):
                    raise typer.Exit(1)
            if digest:
                client.delete_version(task, digest, etag=etag)
            else:
                client.delete_task(task, etag=etag)
        text = f"{safe(task)}: version {digest} is deleted" if digest else f"{safe(task)} is deleted"
        show({"deleted": {"task": task, "version": digest or None}}, text, as_json=json_)
