"""The command `adamix bench quality`: parse, call one function, print. Heavy libraries are imported inside."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from adamix.cli import checks
from adamix.cli.progress import progress
from adamix.cli.terminal import DeviceOption, JsonFlag, exit_codes, stderr
from adamix.errors import InvalidConfig
from adamix_bench.quality.settings import QualitySettings
from adamix_bench.quality.trainings import METHODS

if TYPE_CHECKING:
    from adamix.training.train import Progress

_DEFAULTS = QualitySettings()
_TUNING_CELLS = ",".join(f"{task}:{rows}" for task, rows in _DEFAULTS.tuning_cells)
_N = TypeVar("_N", int, float)


def _joined(values: tuple[Any, ...]) -> str:
    return ",".join(
        "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values
    )


def quality(
    backbone: Annotated[str, typer.Option(help="A directory, a hub id or `minilm`.")] = _DEFAULTS.backbone,
    layers: Annotated[
        int | None, typer.Option(help="Only the first N layers of the backbone: less compute.  [default: all]")
    ] = _DEFAULTS.layers,
    tasks: Annotated[str, typer.Option(help="Packaged corpora, comma-separated.")] = _joined(_DEFAULTS.tasks),
    rows: Annotated[str, typer.Option(help="Sizes of the training sets; `all` for all rows.")] = _joined(
        _DEFAULTS.rows
    ),
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N-1.", min=1)] = len(_DEFAULTS.seeds),
    methods: Annotated[
        str,
        typer.Option(help=f"Of {', '.join(METHODS)}."),
    ] = _joined(_DEFAULTS.methods),
    learning_rates: Annotated[str, typer.Option(help="Grid of the tuning.")] = _joined(_DEFAULTS.learning_rates),
    steps: Annotated[
        str, typer.Option(help="Grid of the tuning, in steps of two passes; one pass takes twice as many.")
    ] = _joined(_DEFAULTS.steps),
    tune_on: Annotated[str, typer.Option(help="TASK:ROWS that the tuning trains on.")] = _TUNING_CELLS,
    batch_size: Annotated[int, typer.Option(help="Rows per optimiser step.", min=1)] = _DEFAULTS.batch_size,
    max_length: Annotated[int, typer.Option(help="Tokens per text.", min=4)] = _DEFAULTS.max_length,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 under autocast.")] = _DEFAULTS.precision,
    draws: Annotated[int, typer.Option(help="Random routes of each mixture.", min=1)] = _DEFAULTS.draws,
    threads: Annotated[int, typer.Option(help="Threads of the operators.  [0: one per core]", min=0)] = 0,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Directory of quality.jsonl and the report.")] = Path("bench-output"),
    work: Annotated[
        Path | None, typer.Option(help="Directory of trained mixtures.  [default: OUT/quality-work]")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """AdaMix against single adapters of equal compute, on real text and over seeds.

    Every result is a line of quality.jsonl. The same command goes on where it was stopped; several at once share the
    work.
    """
    with exit_codes():
        settings = QualitySettings(
            backbone=backbone,
            layers=layers,
            tasks=tuple(tasks.split(",")),
            rows=tuple(None if value == "all" else _number(int, "--rows", value) for value in rows.split(",")),
            seeds=tuple(range(seeds)),
            methods=tuple(methods.split(",")),
            learning_rates=tuple(_number(float, "--learning-rates", value) for value in learning_rates.split(",")),
            steps=tuple(_number(int, "--steps", value) for value in steps.split(",")),
            tuning_cells=tuple(_cell(value) for value in tune_on.split(",")),
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,
            draws=draws,
        )
        checks.names(backbone)
        import torch

        from adamix.backbones.backbone import device_name
        from adamix_bench.quality.outcome import write
        from adamix_bench.quality.run import run
        from adamix_bench.quality.store import RunStore

        if threads:
            torch.set_num_threads(threads)
        work = work or out / "quality-work"
        store = RunStore(out / "quality.jsonl", work / "claims")
        with progress("quality") as shown:

            def watch(name: str, number: int, total: int, now: "Progress | None") -> None:
                step = "" if now is None else f", step {now.step} of {now.steps}"
                shown.update(number, total, note=name + step)

            finished = run(settings, store, work, watch, device_name(device))
        if not finished:
            stderr.print("another process still works on some cells: this report is of what there is", soft_wrap=True)
        document = write(settings, store, out, sys.argv[1:], quiet=json_)
        if json_:
            typer.echo(json.dumps(document))


def _cell(value: str) -> tuple[str, int]:
    task, _, rows = value.partition(":")
    return task, _number(int, "--tune-on", rows)


def _number(kind: type[_N], flag: str, value: str) -> _N:
    try:
        return kind(value)
    except ValueError:
        raise InvalidConfig(f"{flag}: {value!r} is not a number") from None
