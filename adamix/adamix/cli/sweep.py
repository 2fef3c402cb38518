"""`adamix sweep`: every table of a TOML file is one `adamix train`, with the same settings under the same names."""

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adamix.cli import train as training
from adamix.cli.session import Prepared, ReleaseSession, TrainSession
from adamix.cli.terminal import JsonFlag, app, exit_codes, format_metrics, print_json, stderr
from adamix.errors import Cancelled, FailedPrecondition, InvalidConfig

if TYPE_CHECKING:
    from adamix.backbone import Backbone
    from adamix.experiments.gates import Gate
    from adamix.experiments.release import Publisher
    from adamix.experiments.sweep import Entry, Kind, Ledger, Outcome, SweepTask

# What the sweep itself decides.
_NOT_SETTINGS = {"ctx", "out", "resume", "json_"}
_KINDS: "dict[type, Kind]" = {bool: "switch", int: "integer", float: "number"}
_COLOURS = {"finished": "green", "rejected": "yellow", "failed": "red", "interrupted": "yellow"}

_private = typer.Typer()
_private.command()(training.train)


@app.command()
def sweep(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML: a table `defaults`, and a table `task` for each training.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the sweep; one that was begun is continued.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and say what would be done.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Train, merge and measure many tasks. The exit code is 1 if any of them failed."""
    with exit_codes():
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InvalidConfig("a sweep is one process: start one for each device, each with its own file and --out")
        from adamix.experiments import sweep as sweeps

        publisher: Publisher | None = ctx.obj
        tasks = sweeps.read_sweep(file, _kinds())
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
    """Runs `adamix train` for one task after the other, with the backbones kept loaded."""

    def __init__(self, publisher: "Publisher | None") -> None:
        self._publisher = publisher
        self._backbones: dict[str, Backbone] = {}
        self._command = typer.main.get_command(_private)
        self._options = {parameter.name: parameter for parameter in self._command.params}

    def check(self, task: "SweepTask", file: Path) -> None:
        """Refuse settings that could not be trained or judged, before anything begins."""
        try:
            session = self._session(task)
            session.is_plan = True
            self._run(task, Path(), session)
        except InvalidConfig as error:
            raise InvalidConfig(f"{file}: {task.name}: {error.message}", field=error.field) from None

    def train(self, task: "SweepTask", out: Path) -> "Outcome":
        """Train, merge, measure, judge, and publish if there is where to."""
        from adamix.experiments.sweep import Outcome

        session = self._session(task)
        self._run(task, out, session)
        released = session.released
        if released is None or released.failure is None:
            return Outcome("finished", session.document)
        return Outcome("failed" if released.holds else "rejected", session.document, released.failure.message)

    def is_done(self, entry: "Entry") -> bool:
        """Whether a finished task is published as well, if it is to be: there, and not somewhere else."""
        if self._publisher is None:
            return True
        release = entry.result.get("release", {})
        return bool(release.get("registered")) and self._publisher.has(entry.task, str(release.get("version")))

    def _session(self, task: "SweepTask") -> "_SweepSession":
        from adamix.experiments.gates import BASELINE, parse_gate
        from adamix.experiments.release import Release

        texts = task.settings.get("gate", [] if self._publisher is None else [BASELINE])
        gates: list[Gate] = [parse_gate(text) for text in texts] if isinstance(texts, list) else []
        release = Release(task.name, gates, str(task.settings.get("split", "validation")), self._publisher)
        return _SweepSession(release, self._backbones)

    def _run(self, task: "SweepTask", out: Path, session: TrainSession) -> None:
        from torch import OutOfMemoryError

        arguments = [f"--out={out}", "--resume"]
        for key, value in task.settings.items():
            option = self._options.get(_parameter(key))
            if option is None:
                continue  # of the release
            if isinstance(value, bool):
                arguments += option.opts[:1] if value else option.secondary_opts[:1]
            else:
                arguments.append(f"{option.opts[0]}={value}")
        try:
            # A usage error can only be a setting that is missing: types were checked when the file was read.
            context = self._command.make_context("train", arguments, obj=session)
            with context:
                self._command.invoke(context)
        except typer.BadParameter as error:
            raise InvalidConfig(error.format_message()) from None
        except OutOfMemoryError:
            raise FailedPrecondition(
                "out of memory: lower batch-size, or raise accumulation or set gradient-checkpointing", reason="MEMORY"
            ) from None


class _SweepSession(ReleaseSession):
    """A training of a sweep: silent, and on a backbone that other trainings use too."""

    is_silent = True

    def __init__(self, release: Any, backbones: "dict[str, Backbone]") -> None:
        super().__init__(release, "release")
        self._backbones = backbones
        self.document: dict[str, Any] = {}

    def load_backbone(self, name: str, **how: Any) -> "Backbone":
        key = repr((name, sorted(how.items())))
        if key not in self._backbones:
            self._backbones[key] = super().load_backbone(name, **how)
        return self._backbones[key]

    def after(self, prepared: Prepared, document: dict[str, Any]) -> None:
        super().after(prepared, document)
        self.document = document

    def close(self, document: dict[str, Any], *, as_json: bool) -> None:
        """Nothing: the sweep tells."""


def _kinds() -> "dict[str, Kind]":
    """The settings of `adamix train` by the names of their flags, with their types."""
    kinds: dict[str, Kind] = {}
    for name, parameter in inspect.signature(training.train).parameters.items():
        if name not in _NOT_SETTINGS:
            types = get_args(get_args(parameter.annotation)[0]) or (get_args(parameter.annotation)[0],)
            kinds[name.replace("_", "-")] = next((_KINDS[kind] for kind in types if kind in _KINDS), "text")
    return kinds


def _parameter(key: str) -> str:
    return key.replace("-", "_")


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
    Console().print(table)


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
    Console().print(table)
