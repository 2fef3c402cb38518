"""`adamix few-shot`: `adamix train` for several seeds of few rows, each merged and measured, and the table of them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.exceptions import TyperException

from adamix.cli import train as training
from adamix.cli.session import Prepared, TrainSession
from adamix.cli.terminal import JsonFlag, app, exit_codes, print_json, stderr
from adamix.errors import Cancelled, InvalidConfig

if TYPE_CHECKING:
    from adamix.backbone import Backbone
    from adamix.data import TaskData
    from adamix.experiments.few_shot import SeedResult, Summary

# What the protocol itself decides: a fixed length, the last step, no validation rows.
_DECIDED = ("--out", "--few-shot", "--seed", "--resume", "--validate", "--no-validate", "--json")
# Ours, where neither a flag nor a recipe says otherwise: 200 steps on 30 rows.
_DEFAULTS = {"epochs": 50.0, "batch_size": 8}

_private = typer.Typer()
_private.command()(training.train)


@app.command("few-shot", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def few_shot(
    ctx: typer.Context,
    backbone: Annotated[str, typer.Option(help="As for `train`, as are all flags that are not listed here.")],
    data: Annotated[str, typer.Option(help="As for `train`.")],
    out: Annotated[Path, typer.Option(help="Directory of all seeds; an experiment that was begun is continued.")],
    k: Annotated[int, typer.Option(help="Rows to train on in all, balanced over classes.", min=1)] = 30,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N - 1.", min=1, max=1000)] = 5,
    split: Annotated[str, typer.Option(help="Rows to measure on: test, or validation.")] = "test",
    json_: JsonFlag = False,
) -> None:
    """Train on K rows with several seeds, and report mean and deviation of the merged adapters on held-out rows."""
    with exit_codes():
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InvalidConfig("few-shot is one process: its runs are short")
        if split == "train":
            raise InvalidConfig("--split train holds the rows that were trained on; use test or validation")
        for argument in ctx.args:
            name = argument.partition("=")[0]
            if name in _DECIDED:
                raise InvalidConfig(f"{name} is not for few-shot, which decides it itself")
        command = typer.main.get_command(_private)
        session = _FewShotSession(data, split)
        arguments = [f"--backbone={backbone}", f"--data={data}", f"--few-shot={k}", "--no-validate", "--resume"]
        session.is_plan = True
        _train(command, [*arguments, "--seed=0", f"--out={out}", *ctx.args], session)
        session.is_plan = False
        from adamix.experiments.few_shot import run_directory, summarise

        results: list[SeedResult] = []
        for seed in range(seeds):
            stderr.print(f"seed {seed}, {seed + 1}/{seeds}", highlight=False)
            session.seed = seed
            try:
                _train(command, [*arguments, f"--seed={seed}", f"--out={run_directory(out, seed)}", *ctx.args], session)
            except Cancelled:
                raise Cancelled(f"stopped in seed {seed}; the same command goes on from there") from None
            results.append(session.results[seed])
        summary = summarise(results)
        document = {
            "data": data,
            "split": split,
            "k": k,
            "head": session.head,
            "rows": results[0].rows,
            "mean": summary.mean,
            "std": summary.std,
            "seeds": [
                {"seed": r.seed, "metrics": r.metrics, "digest": r.digest, **session.runs[r.seed]} for r in results
            ],
        }
        _write(out, document)
        if json_:
            print_json(document)
            return
        _show(document, summary, results)


class _FewShotSession(TrainSession):
    """A training of one seed: silent, on a backbone that all seeds use, and measured at its end."""

    is_silent = True

    def __init__(self, data: str, split: str) -> None:
        self.seed = 0
        self.head: dict[str, Any] = {}
        self.results: dict[int, SeedResult] = {}
        self.runs: dict[int, dict[str, Any]] = {}
        self._data, self._split = data, split
        self._backbone: Backbone | None = None
        self._held_out: TaskData | None = None

    def load_backbone(self, name: str, **how: Any) -> "Backbone":
        if self._backbone is None:
            self._backbone = super().load_backbone(name, **how)
        return self._backbone

    def before(self, prepared: Prepared) -> None:
        from adamix import data as datasets

        if not isinstance(prepared.rows, datasets.TaskData):
            raise InvalidConfig("few-shot measures labels, and these data are texts to generate", field="data")
        if self._held_out is None:
            self._held_out = datasets.load(self._data, split=self._split, task_type=prepared.rows.task_type)

    def after(self, prepared: Prepared, document: dict[str, Any]) -> None:
        from adamix import adapter_file
        from adamix.experiments.few_shot import ADAPTER_FILE, measure

        if self._held_out is None:
            raise RuntimeError("a training ended that was not begun")
        result = measure(prepared.out, self.seed, prepared.backbone, prepared.tokenizer, self._held_out)
        self.results[self.seed] = result
        self.runs[self.seed] = {name: document[name] for name in ("rows", "steps", "seconds")}
        self.head = adapter_file.read(prepared.out / ADAPTER_FILE).manifest.to_json()["head"]


def _train(command: Any, arguments: list[str], session: TrainSession) -> None:
    try:
        context = command.make_context("train", arguments, obj=session, default_map=dict(_DEFAULTS))
        with context:
            command.invoke(context)
    except TyperException as error:  # what the flags of `train` are told; its usage would be of another command
        raise InvalidConfig(error.format_message()) from None


def _write(out: Path, document: dict[str, Any]) -> None:
    import json

    from adamix import adapter_file

    adapter_file.write(out / "few-shot.json", json.dumps(document, indent=2).encode())


def _show(document: dict[str, Any], summary: "Summary", results: "list[SeedResult]") -> None:
    head = document["head"]
    title = (
        f"{document['data']}, {document['k']} rows, {head['type']} head, {document['rows']} {document['split']} rows"
    )
    table = Table("", *summary.mean, title=escape(title))
    for result in results:
        table.add_row(f"seed {result.seed}", *(f"{result.metrics[name]:.4f}" for name in summary.mean))
    table.add_section()
    table.add_row("mean", *(f"{value:.4f}" for value in summary.mean.values()))
    table.add_row("std", *("" if value is None else f"{value:.4f}" for value in summary.std.values()))
    Console().print(table)
