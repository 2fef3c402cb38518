"""`adamix register`: one adapter, or many at once.

Thin, as the other commands: parse, call one function, print. Of many, those that a task has already are left out by
their digests, so that the same command goes on where it was ended.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamix.cli.interrupts import finishing
from adamix.cli.progress import progress
from adamix.cli.terminal import INTERRUPTED, JsonFlag, exit_codes, stderr
from adamix.errors import InvalidConfig, NotFound
from adamix_server.cli.apply import JobsOption
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import plain, print_for_people, safe, show
from adamix_server.names import is_name

if TYPE_CHECKING:
    from adamix_client import Client
    from adamix_server.cli.many import Run

_FINISHING = "finishing the uploads that are under way; the same command goes on with the rest"
_SUFFIX = ".safetensors"
# What `adamix sweep` leaves in the directory of each task.
_OF_SWEEP = "adapter.safetensors"


def register(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="The id that clients will call.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A merged adapter file.")] = None,
    all_: Annotated[
        Path | None,
        typer.Option(
            "--all",
            metavar="DIR|FILE.yaml",
            help="Many instead: DIR/TASK.safetensors, DIR/TASK/adapter.safetensors, or `tasks: {TASK: FILE}`.",
        ),
    ] = None,
    on_server: Annotated[
        bool, typer.Option("--on-server", help="FILE is a name below the server's --adapter-root.")
    ] = False,
    make_live: Annotated[bool, typer.Option(help="Answer with this version from now on.")] = True,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check the file and store nothing.")] = False,
    jobs: JobsOption = 4,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Upload an adapter as a new version of a task. With --all many, but those that are there already."""
    with exit_codes():
        if all_ is not None:
            if task is not None or on_server:
                raise InvalidConfig("--all names tasks and files itself: give no TASK and no --on-server", field="all")
            _register_all(
                find_files(all_),
                _Way(make_live=make_live, validate_only=validate_only, jobs=jobs),
                server,
                api_key_file,
                as_json=json_,
            )
            return
        if task is None or file is None:
            raise InvalidConfig("give a TASK and a FILE, or --all", field="file" if task else "task")
        if not on_server and not file.is_file():
            raise InvalidConfig(f"{file}: there is no such file", field="file")
        with connect(server, api_key_file) as client:
            from adamix_client import ServerFile

            adapter = ServerFile(str(file)) if on_server else file
            result = client.register(task, adapter, make_live=make_live, validate_only=validate_only)
            show(
                {"task": task, "version": plain(result.version), "already_exists": result.already_exists},
                f"{safe(task)}: {result.version.digest}" + (" (was there already)" if result.already_exists else ""),
                as_json=json_,
            )


@dataclass(frozen=True)
class ToRegister:
    """One file, and the task that it becomes a version of."""

    task: str
    file: Path


@dataclass(frozen=True)
class _Way:
    make_live: bool
    validate_only: bool
    jobs: int


def find_files(source: Path) -> list[ToRegister]:
    """The adapters of a directory by the names of their files, or of their own directories; or those that a file names.

    Raises:
        InvalidConfig: there are none, one has the name of no task, a task has two, or the file says more than files.
    """
    if not source.is_dir():
        return _named_in(source)
    files = [ToRegister(path.name.removesuffix(_SUFFIX), path) for path in source.glob(f"*{_SUFFIX}")]
    files += [ToRegister(path.parent.name, path) for path in source.glob(f"*/{_OF_SWEEP}")]
    if not files:
        raise InvalidConfig(f"{source}: there is no *{_SUFFIX}, nor a */{_OF_SWEEP}", field="all")
    files.sort(key=lambda each: (each.task, each.file))
    seen: dict[str, Path] = {}
    for each in files:
        if not is_name(each.task):
            raise InvalidConfig(f"{each.file}: {each.task[:64]!r} is no id of a task; name it in a file", field="all")
        if (other := seen.setdefault(each.task, each.file)) != each.file:
            raise InvalidConfig(f"{other} and {each.file} are both for the task {each.task}", field="all")
    return files


def _named_in(path: Path) -> list[ToRegister]:
    from adamix_server.cli.declared.declaration import read_declaration

    files = []
    for declared in read_declaration(path):
        if declared.pins is not None or declared.grants is not None or len(declared.versions or ()) != 1:
            raise InvalidConfig(
                f"{declared.where}: --all takes one file for each task; `adamix apply -f` does the rest", field="all"
            )
        files += [ToRegister(declared.task, file) for file in (declared.versions or {}).values()]
    if not files:
        raise InvalidConfig(f"{path} names no file", field="all")
    return files


@dataclass(frozen=True)
class _Registered:
    digest: str
    was_there: bool


def _register_all(
    files: Sequence[ToRegister], way: _Way, server: str, api_key_file: Path | None, *, as_json: bool
) -> None:
    from adamix_server.cli.many import run_many

    with connect(server, api_key_file) as client:
        # Asked once, and first: one sentence if there is no server, not one a file.
        live = {task.task: frozenset(dict(task.traffic)) for task in client.tasks()}
        what = "validating" if way.validate_only else "registering"
        with finishing(_FINISHING) as stop, progress(what, total=len(files)) as shown:
            run = run_many(
                files, lambda each: _register_one(client, each, way, live), jobs=way.jobs, shown=shown, stop=stop
            )
    for one in run.failed:
        message = one.error.message if one.error is not None else ""
        stderr.print(f"[red]{safe(one.item.task)}:[/] {safe(str(one.item.file))}: {safe(message, 400)}", soft_wrap=True)
    if as_json:
        show(_document(run), "", as_json=True)
    else:
        print_for_people(_summary(run, way))
    if run.failed:
        raise typer.Exit(1)
    if run.left:
        raise typer.Exit(INTERRUPTED)


def _register_one(client: "Client", each: ToRegister, way: _Way, live: Mapping[str, Collection[str]]) -> _Registered:
    from adamix_server.cli.declared.resolving import digest_of

    digest = digest_of(each.file)
    # What is live the list has told already.
    if not way.validate_only and each.task in live and (digest in live[each.task] or _has(client, each.task, digest)):
        return _Registered(digest, was_there=True)
    made = client.register(
        each.task, each.file, expected_digest=digest, make_live=way.make_live, validate_only=way.validate_only
    )
    return _Registered(digest, made.already_exists)


def _has(client: "Client", task: str, digest: str) -> bool:
    try:
        return any(version.digest == digest for version in client.versions(task))
    except NotFound:
        # Deleted since it was listed.
        return False


def _summary(run: "Run[ToRegister, _Registered]", way: _Way) -> str:
    values = [one.value for one in run.ended if one.value is not None]
    there = sum(value.was_there for value in values)
    done = f"{len(values) - there:,} {'are valid' if way.validate_only else 'registered'}"
    text = f"{done}, {there:,} were there already, {len(run.failed):,} failed"
    if run.left:
        text += f", {len(run.left):,} not begun; the same command goes on with them"
    return text


def _document(run: "Run[ToRegister, _Registered]") -> dict[str, Any]:
    registered = [
        {
            "task": one.item.task,
            "file": str(one.item.file),
            "version": one.value.digest,
            "already_exists": one.value.was_there,
        }
        for one in run.ended
        if one.value is not None
    ]
    failed = [
        {
            "task": one.item.task,
            "file": str(one.item.file),
            "reason": one.error.reason,
            "error": one.error.message,
        }
        for one in run.ended
        if one.error is not None
    ]
    return {"registered": registered, "failed": failed, "left": len(run.left)}
