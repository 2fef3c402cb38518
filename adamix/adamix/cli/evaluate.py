"""`adamix evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamix.cli import checks, routes, texts
from adamix.cli.progress import progress
from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    exit_codes,
    format_metrics,
    print_json,
)
from adamix.errors import InvalidConfig
from adamix.generation.decoding import Decoding
from adamix.routing.choice import parse_routing

if TYPE_CHECKING:
    from adamix.data import Example, TaskData
    from adamix.evaluation.labelled import Prediction


def evaluate(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="Adapter file, or training directory.")],
    data: Annotated[str, typer.Option(help="As for `train`.")],
    backbone: Annotated[str | None, typer.Option(help="As for `train`; default: the one the adapter names.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    routing: Annotated[
        str, typer.Option(help="merged, random[:sentence|token], fixed:I or ensemble[:probabilities][:all].")
    ] = "merged",
    seeds: Annotated[
        int | None,
        typer.Option(help=f"Random routes, of random and ensemble (default {routes.DEFAULT_SEEDS}).", min=1, max=1000),
    ] = None,
    decoding: Annotated[
        str | None,
        typer.Option(help=f"Of generated texts, as NAME=VALUE,… to change these: {Decoding()}"),
    ] = None,
    scoring: Annotated[
        str | None, typer.Option(help="Of generated texts: e2e, or webnlg (for DART too).  (default: e2e)")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Categories of WebNLG: all, seen or unseen.  (default: all)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.", min=1)] = 32,
    device: DeviceOption = "auto",
    save_predictions: Annotated[Path | None, typer.Option(help="Write one JSON line per row.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw random routes (a violin), or an ensemble's calibration.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Measure an adapter on labelled text, or a trained mixture by other routes through its experts."""
    with exit_codes():
        checks.existing(source)
        checks.device(device)
        checks.names(backbone, data, split=split)
        chosen = parse_routing(routing)
        num_seeds = routes.check_flags(chosen, seeds, plot)
        if save_predictions is not None and save_predictions.is_dir():
            raise InvalidConfig(
                f"--save-predictions {save_predictions} is a directory: name the file to write in it",
                field="save_predictions",
            )
        from adamix.experiments.measuring import Asked, check_labels, measure_labels
        from adamix.experiments.run import Backbones
        from adamix.files import disk
        from adamix.routing.source import read_source

        adapter, mixture = read_source(source, chosen)
        head = adapter.manifest.head
        flags = texts.TextFlags(decoding, scoring, subset)
        if head.type == "causal_lm":
            run = texts.Run(data, split, flags, backbone, batch_size, device, save_predictions, json_)
            if mixture is None:
                texts.evaluate_adapter(adapter, run)
            else:
                texts.evaluate_routes(adapter, mixture, run, chosen, num_seeds, plot)
            return
        flags.refuse(head.type)
        check_labels(head)
        if plot is not None and chosen.mode == "ensemble" and head.type == "regression":
            raise InvalidConfig("--plot: a regression has no probabilities whose calibration to draw", field="plot")
        asked = Asked(data, split, backbone, chosen, num_seeds, batch_size, device)
        with progress("evaluating") as shown:
            result, report, rows = measure_labels(adapter, mixture, asked, Backbones(), shown.update)
        if save_predictions is not None:
            lines = [
                json.dumps(_prediction(rows, example, prediction, logits), ensure_ascii=False)
                for example, prediction, logits in zip(rows.examples, result.predictions, result.logits, strict=True)
            ]
            disk.write(save_predictions, "".join(line + "\n" for line in lines).encode())
        if plot is not None and report is not None:
            disk.write(plot, routes.draw(report, f"{rows.name}, {result.rows} rows", plot))
        if report is not None:
            routes.show(report, json_=json_)
            return
        if json_:
            document = {"metrics": result.metrics, "rows": result.rows, "truncated": result.truncated}
            print_json(document if mixture is None else document | {"routing": str(chosen)})
            return
        print(f"{format_metrics(result.metrics)}  ({result.rows} rows, {result.truncated} truncated)")


def _prediction(data: "TaskData", example: "Example", prediction: "Prediction", logits: list[float]) -> dict[str, Any]:
    label: Any = example.label
    if isinstance(label, tuple):
        label = [data.labels[index] for index in label]
    elif data.labels:
        label = data.labels[int(label)]
    pair = {} if example.pair is None else {"text_pair": example.pair}
    return {"text": example.text, **pair, "label": label, "prediction": prediction, "logits": logits}
