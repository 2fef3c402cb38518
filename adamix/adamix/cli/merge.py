"""`adamix merge`."""

from pathlib import Path
from typing import Annotated

import typer

from adamix.cli import checks
from adamix.cli.progress import progress
from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    exit_codes,
    print_json,
    summary,
)
from adamix.errors import InvalidConfig
from adamix.experiments.merges import check, merge_directory
from adamix.merging.settings import DATA_METHODS, DEFAULT_DENSITY, METHODS, MergeConfig

_CONFIG = MergeConfig()
_DENSITIES = ", ".join(f"{method} {density:g}" for method, density in DEFAULT_DENSITY.items())


def merge(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a finished training.")],
    out: Annotated[Path, typer.Option(help="The adapter file to write.")],
    how: Annotated[str, typer.Option(help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}.")] = "uniform",
    weights: Annotated[str | None, typer.Option(help="weighted: one per expert, as 0.4,0.3,0.2,0.1.")] = None,
    density: Annotated[
        float | None,
        typer.Option(help=f"ties, dare: share of the changes that stay.  (default: {_DENSITIES})"),
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{', '.join(DATA_METHODS)}: text, as for `train`.")] = None,
    backbone: Annotated[str | None, typer.Option(help="As for `train`; default: the one the mixture names.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train or validation.  (default: train, and validation for greedy)")
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(help="Only the K rows that `train` takes with this --few-shot and the same --seed.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help=f"Rows of the split to use, drawn by the seed.  (default: {_CONFIG.max_rows})")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"Rows per forward pass.  (default: {_CONFIG.batch_size})")
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"learned: optimiser steps.  (default: {_CONFIG.steps})")] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"learned: Adam's rate.  (default: {_CONFIG.learning_rate:g})")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of every random choice.  (default: {_CONFIG.seed})")] = None,
    device: DeviceOption = "auto",
    card: Annotated[
        bool, typer.Option("--card", help="Write a model card, README.md, beside the file as well.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Merge a mixture into one adapter file."""
    with exit_codes():
        given = {
            "weights": weights,
            "density": density,
            "data": data,
            "backbone": backbone,
            "split": split,
            "few_shot": few_shot,
            "max_rows": max_rows,
            "batch_size": batch_size,
            "steps": steps,
            "lr": lr,
            "seed": seed,
        }
        shares = None if weights is None else _numbers(weights)
        config = check(how, given)
        checks.existing(directory)
        checks.device(device)
        checks.names(backbone, data, split=split)
        if card:
            from adamix.reports.card import check_card

            check_card(out)
        with progress(f"merging by {how}") as shown:
            adapter = merge_directory(
                directory,
                out,
                how,
                config,
                weights=shares,
                data=data,
                split=split,
                few_shot=few_shot,
                backbone=backbone,
                device=device,
                on_progress=shown.update,
            )
        if card:
            from adamix.reports.card import write_card

            write_card(out, adapter)
        if json_:
            print_json({"file": str(out), "merge": adapter.manifest.training.merge, **summary(adapter)})
            return
        count, head = adapter.num_parameters()
        print(f"{out}: {adapter.num_bytes:,} bytes, {count:,} parameters and {head:,} in the head")
        print(f"merged by {adapter.manifest.training.merge}; sha256 {adapter.digest}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidConfig(
            f"--weights takes one number per expert, as 0.4,0.3,0.2,0.1, not {text[:40]!r}", field="weights"
        ) from None
