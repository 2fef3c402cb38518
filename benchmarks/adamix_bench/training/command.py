"""The command `adamix bench training`: parse, call one function, print. Heavy libraries are imported inside."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adamix.cli.terminal import DeviceOption, JsonFlag, exit_codes
from adamix_bench.training.settings import Settings

_DEFAULTS = Settings()


def training(
    backbone: Annotated[
        str, typer.Option(help="A directory, a hub id, `minilm`, or `random:SHAPE` such as random:bert-base.")
    ] = _DEFAULTS.backbone,
    method: Annotated[str, typer.Option(help="bottleneck or lora.")] = _DEFAULTS.method,
    rank: Annotated[int, typer.Option(help="Bottleneck units, or rank of the LoRA.")] = _DEFAULTS.rank,
    experts: Annotated[int, typer.Option(help="Experts of the mixture.")] = _DEFAULTS.experts,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.")] = _DEFAULTS.batch_size,
    max_length: Annotated[int, typer.Option(help="Tokens of every row.")] = _DEFAULTS.max_length,
    steps: Annotated[int, typer.Option(help="Timed steps of each way in a round.")] = _DEFAULTS.steps,
    rounds: Annotated[int, typer.Option(help="Rounds that count.")] = _DEFAULTS.rounds,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 under autocast.")] = _DEFAULTS.precision,
    threads: Annotated[int, typer.Option(help="Threads of the operators.  [0: one per core]")] = _DEFAULTS.threads,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, routes and rows.")] = _DEFAULTS.seed,
    out: Annotated[Path, typer.Option(help="Directory of the JSON and the plot.")] = Path("bench-output"),
    json_: JsonFlag = False,
) -> None:
    """Time and memory of a step of a mixture, against two passes of a single adapter on the same rows."""
    with exit_codes():
        settings = Settings(
            backbone=backbone,
            method=method,  # type: ignore[arg-type]  # checked by the dataclass
            rank=rank,
            experts=experts,
            batch_size=batch_size,
            max_length=max_length,
            steps=steps,
            rounds=rounds,
            precision=precision,
            threads=threads,
            seed=seed,
        )
        from adamix.backbones.backbone import device_name
        from adamix_bench.training.run import run

        document = run(settings, device_name(device), out, sys.argv[1:], quiet=json_)
        if json_:
            typer.echo(json.dumps(document))
        if not document["complete"]:
            raise typer.Exit(1)
