"""`adamix sweep`: every table of a TOML file is one `adamix train`, with the same settings under the same names."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from adamix.cli import checks
from adamix.cli import train as training
from adamix.cli.push import PushOption, publishing
from adamix.cli.terminal import JsonFlag, Screen, exit_codes, format_metrics, print_json, stderr
from adamix.errors import Cancelled, FailedPrecondition, InvalidConfig
from adamix.experiments.plan import Plan
from adamix.experiments.settings import SETTINGS

if TYPE_CHECKING:
    from adamix.experiments.gates import Gate
    from adamix.experiments.release import Publisher, Release
    from adamix.experiments.run import Backbones
    from adamix.experiments.sweep import Entry, Ledger, Outcome, SweepTask

_COLOURS = {"finished": "green", "rejected": "yellow", "failed": "red", "interrupted": "yellow"}


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML: a table `defaults`, and a table `task` for each training.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the sweep; one that was begun is continued.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and say what would be done.")] = False,
    json_: JsonFlag = False,
    push: PushOption = None,
) -> None:
    """Train, merge and measure many tasks. The exit code is 1 if any of them failed."""
    with exit_codes():
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InvalidConfig("a sweep is one process: start one for each device, each with its own file and --out")
        checks.existing(file)
        from adamix.experiments import sweep as sweeps

        publisher = None if push is None else publishing.to(push)
        tasks = sweeps.read_sweep(file)
        runner = _Runner(publisher)
        for task in tasks:
            runner.check(task, file)
        if dry_run:
            _show_plan(tasks, sweeps.Ledger(out), runner, as_json=json_)
            return

        def announce(number: int, task: "SweepTask") -> None:
            stderr.print(f"{number}/{len(tasks)} {task.name}")

        entries: list[Entry] = []
        try:
            for entry in sweeps.run(tasks, out, runner.train, is_done=runner.is_done, on_task=announce):
                entries.append(entry)
                if entry.error is not None:
                    stderr.print(f"[red]{entry.task}:[/red] {escape(entry.error)}", soft_wrap=True)
        except Cancelled:
            _show(entries, len(tasks), as_json=json_)
            raise
        _show(entries, len(tasks), as_json=json_)
        if any(entry.state != "finished" for entry in entries):
            raise typer.Exit(1)


class _Runner:
    """Trains, merges, measures and judges one task after the other, with the backbones kept loaded."""

    def __init__(self, publisher: "Publisher | None") -> None:
        self._publisher = publisher
        self._backbones: Backbones | None = None

    def check(self, task: "SweepTask", file: Path) -> None:
        """Refuse settings that could not be trained or judged, before anything begins."""
        try:
            self._release(task)
            checks.form(_plan(task))
        except InvalidConfig as error:
            raise InvalidConfig(f"{file}: {task.name}: {error.message}", field=error.field) from None

    def train(self, task: "SweepTask", out: Path) -> "Outcome":
        """Train, merge, measure, judge, and publish if there is where to."""
        from torch import OutOfMemoryError

        from adamix.experiments.run import Backbones
        from adamix.experiments.sweep import Outcome

        self._backbones = self._backbones or Backbones()
        release = self._release(task)
        try:
            prepared = training.prepare(_plan(task), self._backbones)
            release.prepare(prepared)
            finished = training.run(prepared, out, resume=True)
            released = release.finish(finished)
        except OutOfMemoryError:
            raise FailedPrecondition(
                "out of memory: lower batch-size, or raise accumulation or set gradient-checkpointing", reason="MEMORY"
            ) from None
        document = finished.to_json() | {"release": released.to_json()}
        if released.failure is None:
            return Outcome("finished", document)
        return Outcome("failed" if released.holds else "rejected", document, released.failure.message)

    def is_done(self, entry: "Entry") -> bool:
        """Whether a finished task is published as well, if it is to be: there, and not somewhere else."""
        if self._publisher is None:
            return True
        release = entry.result.get("release", {})
        return bool(release.get("registered")) and self._publisher.has(entry.task, str(release.get("version")))

    def _release(self, task: "SweepTask") -> "Release":
        from adamix.experiments.gates import BASELINE, parse_gate
        from adamix.experiments.release import Release

        texts = task.settings.get("gate", [] if self._publisher is None else [BASELINE])
        gates: list[Gate] = [parse_gate(text) for text in texts] if isinstance(texts, list) else []
        return Release(task.name, gates, str(task.settings.get("split", "validation")), self._publisher)


def _plan(task: "SweepTask") -> Plan:
    named = {key.replace("-", "_"): value for key, value in task.settings.items()}
    return Plan.of({name: value for name, value in named.items() if name in SETTINGS and not isinstance(value, list)})


def _show_plan(tasks: "list[SweepTask]", ledger: "Ledger", runner: _Runner, *, as_json: bool) -> None:
    plan = []
    for task in tasks:
        entry = ledger.entry(task.name)
        if entry is None:
            state = "new"
        elif entry.state == "finished" and not (ledger.is_done(task) and runner.is_done(entry)):
            state = "changed"
        else:
            state = entry.state
        plan.append({"task": task.name, "state": state, "settings": task.settings})
    if as_json:
        print_json({"plan": plan})
        return
    table = Table("task", "state", "settings")
    for task, item in zip(tasks, plan, strict=True):
        settings = ", ".join(f"{key} = {value}" for key, value in task.settings.items())
        table.add_row(task.name, str(item["state"]), escape(settings))
    Screen().print(table)


def _show(entries: "list[Entry]", total: int, *, as_json: bool) -> None:
    counts = {state: sum(entry.state == state for entry in entries) for state in _COLOURS if state != "interrupted"}
    if as_json:
        print_json({"tasks": [entry.to_json() for entry in entries], **counts, "left": total - len(entries)})
        return
    table = Table("task", "state", "steps", "seconds", "metrics", "version")
    for entry in entries:
        release = entry.result.get("release", {})
        table.add_row(
            entry.task,
            f"[{_COLOURS[entry.state]}]{entry.state}[/]" + (" before" if entry.skipped else ""),
            str(entry.result.get("steps", "")),
            f"{entry.seconds:.1f}",
            format_metrics(release.get("metrics", {})),
            str(release.get("digest", ""))[:12] + (" registered" if release.get("registered") else ""),
        )
    Screen().print(table)
