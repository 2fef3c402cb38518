"""`adamix tasks`, `show` and `versions`: what a server has.

Thin, as the other commands: parse, call one function, print.
"""

import json
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import (
    day_and_time,
    labels_of,
    plain,
    print_for_people,
    safe,
    shares,
    short,
    show,
    until_ctrl_c,
    without_empty,
)
from adamix_server.cli.task_call import find_version, split_target, task_call

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adamix_client import Client, TaskChange, Version

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Its id.")]


def tasks(
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and print each change, until Ctrl-C.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """List the tasks of a server. With --watch --json a line is a document."""
    with exit_codes(), connect(server, api_key_file) as client:
        if watch:
            with until_ctrl_c(), closing(client.watch()) as changes:
                _follow(changes, as_json=json_)
            return
        found = client.tasks()
        rows = [
            (
                safe(task.task),
                safe(task.head_type),
                labels_of(task),
                shares(task.traffic),
                safe(task.unavailable_reason),
            )
            for task in found
        ]
        table = without_empty("task", "head", "labels", "live version", "note", rows=rows)
        show({"tasks": [plain(task) for task in found]}, table, as_json=json_)


def show_task(
    target: Annotated[str, typer.Argument(metavar="TASK[@DIGEST]", help="Its id; with a digest, that version.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Show a task with its versions, or all that is known of one version."""
    with exit_codes():
        task, digest = split_target(target)
        with task_call(task, server, api_key_file) as client:
            if digest:
                _show_version(client, task, digest, as_json=json_)
                return
            found, of_task = client.get_task(task), client.versions(task)
        document = {"task": plain(found), "versions": [plain(version) for version in of_task]}
        if json_:
            show(document, "", as_json=True)
            return
        table = _facts(
            {
                "task": found.name,
                "head": found.head_type,
                "labels": f"{len(found.labels)}" if found.labels else "",
                "at most": f"{found.max_length:,} tokens" if found.max_length else "",
                "created": f"{day_and_time(found.create_time)} UTC",
                "changed": f"{day_and_time(found.update_time)} UTC",
                "not answered": found.unavailable_reason,
                "etag": found.etag,
            }
        )
        if found.labels:
            table.add_row("", labels_of(found))
        table.add_row("traffic", shares(found.traffic) or "nothing is live")
        print_for_people(table)
        print_for_people(_table_of(of_task))


def versions(
    task: TaskArgument,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """List the versions of a task, newest first."""
    with task_call(task, server, api_key_file) as client:
        found = client.versions(task)
        show({"versions": [plain(version) for version in found]}, _table_of(found), as_json=json_)


def _follow(changes: "Iterable[TaskChange]", *, as_json: bool) -> None:
    """A line for each task, and for each change as it comes."""
    known: set[str] = set()
    for change in changes:
        if as_json:
            typer.echo(json.dumps({"name": change.name, "task": None if change.task is None else plain(change.task)}))
            continue
        name, now = safe(change.name.rsplit("/", 1)[-1], 63), f"{datetime.now(UTC):%H:%M:%S}"
        if change.task is None:
            known.discard(change.name)
            print_for_people(f"{now}  {name:<24} deleted")
            continue
        what = "changed" if change.name in known else "task"
        known.add(change.name)
        note = safe(change.task.unavailable_reason)
        live = shares(change.task.traffic) or "nothing live"
        print_for_people(f"{now}  {name:<24} {what:<8} {live}  {note}".rstrip())


def _show_version(client: "Client", task: str, prefix: str, *, as_json: bool) -> None:
    digest = find_version(client, task, prefix)
    found = next((version for version in client.versions(task) if version.digest == digest), None)
    if found is None:
        from adamix.errors import NotFound

        raise NotFound(f"{task} has no version {digest}", reason="VERSION_NOT_FOUND")
    if as_json:
        show({"version": plain(found)}, "", as_json=True)
        return
    training = found.manifest.get("training")
    table = _facts(
        {
            "version": found.digest,
            "state": f"{found.state.lower()}{', live' if found.live else ''}{', pinned' if found.pinned else ''}",
            "bytes": f"{found.num_bytes:,}",
            "created": f"{day_and_time(found.create_time)} UTC",
            "residency": found.residency.lower(),
            "quarantined": found.quarantine_reason if found.quarantined else "",
            "kind": str(found.manifest.get("kind", "")),
            "head": _words(found.manifest.get("head"), ("type", "num_labels", "pooling")),
            "backbone": _words(found.manifest.get("backbone"), ("name", "model_type")),
            "trained on": _words(training, ("data",)),
            "method": _words(training, ("method", "merge", "num_experts")),
            "metrics": _metrics(found),
        }
    )
    print_for_people(table)


def _facts(facts: dict[str, str]) -> Table:
    """Names and values, without those that are empty."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if value:
            table.add_row(name, safe(value, 200))
    return table


def _table_of(found: "Sequence[Version]") -> Table:
    rows = []
    for version in found:
        notes = ["pinned"] if version.pinned else []
        notes += [f"quarantined: {safe(version.quarantine_reason)}"] if version.quarantined else []
        rows.append(
            (
                short(version.digest),
                safe(version.state.lower()),
                "yes" if version.live else "",
                f"{version.num_bytes:,}",
                day_and_time(version.create_time),
                safe(version.residency.lower()),
                ", ".join(notes),
                safe(_metrics(version)),
            )
        )
    columns = ("version", "state", "live", Column("bytes", justify="right"), "created", "residency", "note", "metrics")
    return without_empty(*columns, rows=rows)


def _metrics(version: "Version") -> str:
    """Of its training, as the manifest has them; it may be of another release, or anybody's."""
    training = version.manifest.get("training")
    metrics = training.get("metrics") if isinstance(training, dict) else None
    if not isinstance(metrics, dict):
        return ""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return "  ".join(f"{name} {value:.4g}" for name, value in list(numbers.items())[:4])


def _words(part: Any, names: "Sequence[str]") -> str:
    """Some fields of a part of a manifest, where it has them."""
    if not isinstance(part, dict):
        return ""
    return ", ".join(str(part[name]) for name in names if part.get(name) not in (None, ""))
