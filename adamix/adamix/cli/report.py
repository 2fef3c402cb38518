"""`adamix report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from adamix.cli import checks
from adamix.cli.progress import progress
from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    exit_codes,
    format_metrics,
    print_json,
    stderr,
)
from adamix.routing.seeds import DEFAULT_SEEDS


def report(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Training directory, or adapter file.")],
    out: Annotated[Path, typer.Option(help="The page to write, .html.")],
    data: Annotated[
        str | None, typer.Option(help="As for `train`; default: the corpus that was trained on, if it was one.")
    ] = None,
    split: Annotated[str, typer.Option(help="Rows to measure on: train, validation or test.")] = "test",
    backbone: Annotated[str | None, typer.Option(help="As for `train`; default: the one the adapter names.")] = None,
    seeds: Annotated[int, typer.Option(help="Random routes through a mixture; 0 for none.")] = DEFAULT_SEEDS,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.")] = 32,
    device: DeviceOption = "auto",
    card: Annotated[
        bool, typer.Option(help="Write a model card, README.md, beside the adapter; somebody else's stays.")
    ] = True,
    json_: JsonFlag = False,
) -> None:
    """Write one self-contained page on a training or an adapter, and a model card."""
    with exit_codes():
        checks.existing(source)
        checks.device(device)
        from adamix.reports.write import Asked, write_report

        asked = Asked(source, out, data, split, backbone, seeds, batch_size, device, card)
        asked.check()
        checks.names(backbone, data)
        with progress("measuring") as shown:
            written = write_report(asked, on_progress=shown.update)
        if written.unmeasured:
            stderr.print(f"not measured: {escape(written.unmeasured)}", soft_wrap=True)
        if written.foreign_card:
            stderr.print(
                "README.md beside the adapter is no model card of adamix: it was left as it is", soft_wrap=True
            )
        if json_:
            print_json(
                {
                    "report": str(written.page),
                    "card": None if written.card is None else str(written.card),
                    "metrics": written.metrics,
                    "rows": written.rows,
                }
            )
            return
        print(f"{written.page}: {format_metrics(written.metrics) or 'nothing measured'}")
        if written.card is not None:
            print(f"{written.card}: model card")
