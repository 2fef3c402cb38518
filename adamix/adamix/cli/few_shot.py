"""`adamix few-shot`: `adamix train` for several seeds of few rows, each merged and measured, and the table of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.exceptions import TyperException

from adamix.cli import checks, sources
from adamix.cli import train as training
from adamix.cli.lazy import Command
from adamix.cli.terminal import JsonFlag, Screen, exit_codes, print_json, stderr
from adamix.errors import Cancelled, InvalidConfig
from adamix.experiments.plan import Plan
from adamix.experiments.settings import Value

if TYPE_CHECKING:
    from adamix.data import TaskData
    from adamix.experiments.few_shot import SeedResult, Summary

# What the protocol itself decides: a fixed length, the last step, no validation rows.
_DECIDED = ("--few-shot", "--seed", "--resume", "--validate", "--no-validate")
_PUSHED = ("--push", "--task", "--gate", "--push-split")
# Ours, where neither a flag nor a recipe says otherwise: 200 steps on 30 rows.
_DEFAULTS: dict[str, Value] = {"epochs": 50.0, "batch_size": 8}


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
        decided: dict[str, Value] = {"backbone": backbone, "data": data, "few_shot": k, "validate": False}
        settings = _settings(ctx) | decided
        plans = [Plan.of(settings | {"seed": seed}, _DEFAULTS) for seed in range(seeds)]
        checks.plan(plans[0])
        checks.names(split=split)
        from adamix.experiments.few_shot import summarise

        results, runs = _train(plans, out, split)
        summary = summarise(results)
        document = {
            "data": data,
            "split": split,
            "k": k,
            "head": _head(out),
            "rows": results[0].rows,
            "mean": summary.mean,
            "std": summary.std,
            "seeds": [
                {"seed": result.seed, "metrics": result.metrics, "digest": result.digest, **run}
                for result, run in zip(results, runs, strict=True)
            ],
        }
        _write(out, document)
        if json_:
            print_json(document)
            return
        _show(document, summary, results)


def _train(plans: Sequence[Plan], out: Path, split: str) -> "tuple[list[SeedResult], list[dict[str, Any]]]":
    """Train and measure every seed, on one backbone and the same held-out rows: its result, and what its run says."""
    from adamix import data as datasets
    from adamix.experiments.few_shot import measure, run_directory
    from adamix.experiments.run import Backbones

    backbones = Backbones()
    held_out: TaskData | None = None
    results, runs = [], []
    for seed, plan in enumerate(plans):
        stderr.print(f"seed {seed}, {seed + 1}/{len(plans)}", highlight=False)
        prepared = training.prepare(plan, backbones)
        rows, directory = prepared.rows, run_directory(out, seed)
        if not isinstance(rows, datasets.TaskData):
            raise InvalidConfig("few-shot measures labels, and these data are texts to generate", field="data")
        held_out = held_out or datasets.load(str(plan.data), split=split, task_type=rows.task_type)
        try:
            run = training.run(prepared, directory, resume=True).to_json()
        except Cancelled:
            raise Cancelled(f"stopped in seed {seed}; the same command goes on from there") from None
        results.append(measure(directory, seed, prepared.backbone, prepared.tokenizer, held_out))
        runs.append({name: run[name] for name in ("rows", "steps", "seconds")})
    return results, runs


def _head(out: Path) -> dict[str, Any]:
    """What the adapters say of their heads, which are all alike."""
    from adamix.experiments.few_shot import ADAPTER_FILE, run_directory
    from adamix.files import adapter_file

    return dict(adapter_file.read(run_directory(out, 0) / ADAPTER_FILE).manifest.to_json()["head"])


def _settings(ctx: typer.Context) -> dict[str, Value]:
    """The settings among the flags that are not this command's own: those of `train`."""
    for argument in ctx.args:
        name = argument.partition("=")[0]
        if name in _DECIDED:
            raise InvalidConfig(f"{name} is not for few-shot, which decides it itself")
        if name in _PUSHED:
            raise InvalidConfig(f"{name} is not for few-shot, which registers nothing")
    from_file = ctx.default_map or {}
    for name in (*_DECIDED, *_PUSHED):
        if name.removeprefix("--").replace("-", "_") in from_file:
            raise InvalidConfig(f"{name.removeprefix('--')} is not for few-shot, in a file neither")
    train = sources.declare(Command("train", "adamix.cli.train:train", "").load(), (ctx.info_name or "few-shot",))
    try:
        # What `train` cannot do without is here already.
        context = train.make_context("train", list(ctx.args), default_map={**from_file, **ctx.params})
    except TyperException as error:  # its usage would be of another command
        raise InvalidConfig(error.format_message()) from None
    return training.given_settings(context)


def _write(out: Path, document: dict[str, Any]) -> None:
    import json

    from adamix.files import disk

    disk.write(out / "few-shot.json", json.dumps(document, indent=2).encode())


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
    Screen().print(table)
