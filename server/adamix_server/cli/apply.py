"""`adamix apply -f tasks.yaml`: make a server what a file declares, and show what differs.

Thin, as the other commands: the declaration is read in `declared/`, compared there, and carried out there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamix.cli.interrupts import finishing
from adamix.cli.progress import progress
from adamix.cli.terminal import INTERRUPTED, JsonFlag, exit_codes, stderr
from adamix.errors import InvalidConfig
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import print_for_people, safe, shares, short, show

if TYPE_CHECKING:
    from adamix_server.cli.declared.carrying_out import Taken
    from adamix_server.cli.declared.plan import Step

JobsOption = Annotated[int, typer.Option(min=1, max=16, help="Calls at once.")]

_FINISHING = "finishing the calls that are under way"
_SIGNS = {"register": "+", "traffic": "~", "pin": "+", "grant": "+"}


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="YAML: what should be there; - reads stdin.")],
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete tasks, and versions of its tasks, that the file does not name.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what differs, and change nothing.")] = False,
    jobs: JobsOption = 4,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Make a server what a file declares: tasks, versions, traffic, pins and grants. Asks nothing."""
    with exit_codes():
        from adamix_server.cli.declared.carrying_out import carry_out
        from adamix_server.cli.declared.declaration import read_declaration
        from adamix_server.cli.declared.plan import plan
        from adamix_server.cli.declared.resolving import digests_of, observe, resolve

        declared = read_declaration(file)
        if prune and not declared:
            raise InvalidConfig(f"{file} declares no task, and --prune would delete all there are", field="prune")
        digests = digests_of(path for task in declared for path in (task.versions or {}).values())
        with connect(server, api_key_file) as client:
            actual = observe(client, declared, digests, prune=prune)
            steps = plan([resolve(task, actual.get(task.task), digests) for task in declared], actual, prune=prune)
            if not json_:
                _print_plan(steps, len(declared))
            if dry_run or not steps:
                if json_:
                    show(_document(steps, None), "", as_json=True)
                return
            with finishing(_FINISHING) as stop, progress("applying", total=len(steps)) as shown:
                taken = carry_out(client, steps, jobs=jobs, shown=shown, stop=stop)
        for step, error in taken.failed:
            stderr.print(f"[red]failed:[/] {_line(step)}: {safe(error.message, 400)}", soft_wrap=True)
        if json_:
            show(_document(steps, taken), "", as_json=True)
        else:
            print_for_people(_summary(taken))
        if taken.failed:
            raise typer.Exit(1)
        if taken.left:
            raise typer.Exit(INTERRUPTED)


def _print_plan(steps: "Sequence[Step]", num_tasks: int) -> None:
    for step in steps:
        print_for_people(_line(step))
    changed = f"{len(steps):,} changes" if len(steps) != 1 else "1 change"
    print_for_people(f"{changed}, of {num_tasks:,} declared tasks" if steps else "nothing differs")


def _line(step: "Step") -> str:
    what = f"{_SIGNS.get(step.action, '-')} {step.action:<14} {safe(step.task, 63)}"
    if step.digest:
        what += f" {short(step.digest)}"
    if step.file is not None:
        what += f" ({safe(str(step.file), 160)})"
    if step.action == "traffic":
        what += f" {shares(list(step.traffic.items()))} (was {shares(list(step.was.items())) or 'nothing'})"
    return f"{what} {safe(step.tenant, 63)}".rstrip()


def _summary(taken: "Taken") -> str:
    if not taken.failed and not taken.left:
        return f"{len(taken.done):,} done"
    return (
        f"{len(taken.done):,} done, {len(taken.failed):,} failed, {len(taken.left):,} not begun; the same command "
        "goes on with what is left"
    )


def _document(steps: "Sequence[Step]", taken: "Taken | None") -> dict[str, Any]:
    states: dict[int, dict[str, Any]] = {}
    if taken is not None:
        states |= {id(step): {"state": "done"} for step in taken.done}
        states |= {id(step): {"state": "not begun"} for step in taken.left}
        for step, error in taken.failed:
            states[id(step)] = {"state": "failed", "reason": error.reason, "error": error.message}
    plan = [step.document | states.get(id(step), {"state": "planned"}) for step in steps]
    done = 0 if taken is None else len(taken.done)
    failed = 0 if taken is None else len(taken.failed)
    return {"plan": plan, "done": done, "failed": failed, "left": len(steps) - done - failed}
