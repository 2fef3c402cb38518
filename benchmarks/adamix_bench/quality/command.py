"""`adamix bench quality`: thin, as all commands."""

from pathlib import Path
from typing import Annotated

import typer

from adamix.cli import JsonFlag, exit_codes, stderr
from adamix.cli.terminal import progress_bar
from adamix.errors import InvalidConfig

_LIST = "comma-separated"


def quality(
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, `minilm` or `smollm2`.")] = "minilm",
    tasks: Annotated[str, typer.Option(help=f"Packaged corpora, {_LIST}.")] = "trec,movie,spam,bbc,tweets",
    rows: Annotated[str, typer.Option(help=f"Training rows, {_LIST}; `all` for all of them.")] = "100,300",
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N-1.", min=1)] = 5,
    methods: Annotated[
        str,
        typer.Option(
            help="Of head, single, single-compute, lora, merged, random, fixed, ensemble, no-consistency, no-sharing, "
            f"m2, m8; {_LIST}."
        ),
    ] = "merged,single-compute",
    batch_size: Annotated[int, typer.Option(help="Rows per optimiser step.", min=1)] = 8,
    max_length: Annotated[int, typer.Option(help="Tokens per text.", min=4)] = 32,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 under autocast.")] = "fp32",
    draws: Annotated[int, typer.Option(help="Random routes each mixture is measured with.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="Directory of quality.jsonl and of the report.")] = Path("bench-output"),
    work: Annotated[
        Path | None, typer.Option(help="Directory of the trained mixtures.  [default: OUT/quality-work]")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """AdaMix against single adapters of equal compute, on real text, over seeds; continues where it was stopped."""
    with exit_codes():
        from adamix_bench.quality.run import run
        from adamix_bench.quality.settings import QualitySettings
        from adamix_bench.quality.store import RunStore

        settings = QualitySettings(
            backbone=backbone,
            tasks=tuple(tasks.split(",")),
            rows=tuple(_rows(value) for value in rows.split(",")),
            seeds=tuple(range(seeds)),
            methods=tuple(methods.split(",")),
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,
            draws=draws,
        )
        store = RunStore(out / "quality.jsonl")
        with progress_bar() as bar:
            task = bar.add_task("quality", total=None, note="")

            def watch(name: str, number: int, total: int, progress: object) -> None:
                bar.start()
                step = "" if progress is None else f"step {progress.step}/{progress.steps}"  # type: ignore[attr-defined]
                bar.update(task, completed=number, total=total, note=f"{name} {step}")

            finished = run(settings, store, work or out / "quality-work", watch)
        if not finished:
            stderr.print("another process still works on some cells: the report is of what there is")


def _rows(value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdecimal():
        raise InvalidConfig(f"--rows are numbers or `all`, not {value!r}", field="rows")
    return int(value)
