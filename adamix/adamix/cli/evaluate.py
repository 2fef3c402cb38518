"""`adamix evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamix.cli import routes, texts
from adamix.cli.progress import progress
from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    exit_codes,
    format_metrics,
    print_json,
)
from adamix.errors import InvalidConfig, InvalidData
from adamix.generation.decoding import Decoding

if TYPE_CHECKING:
    from adamix.data import Example, TaskData
    from adamix.evaluation.labelled import Prediction
    from adamix.routing.report import DrawsReport, EnsembleReport


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
        from adamix import data as datasets
        from adamix.backbones import backbone as backbones
        from adamix.evaluation import labelled
        from adamix.files import disk
        from adamix.routing.probe import MixtureProbe
        from adamix.routing.report import measure, num_passes
        from adamix.routing.routing import parse_routing
        from adamix.routing.source import read_source

        chosen = parse_routing(routing)
        num_seeds = routes.check_flags(chosen, seeds, plot)
        if save_predictions is not None and save_predictions.is_dir():
            raise InvalidConfig(
                f"--save-predictions {save_predictions} is a directory: name the file to write in it",
                field="save_predictions",
            )
        adapter, mixture = read_source(source, chosen)
        head = adapter.manifest.head
        writing = texts.Writing(decoding, scoring, subset)
        if head.type == "causal_lm":
            run = texts.Run(data, split, writing, backbone, batch_size, device, save_predictions, json_)
            if mixture is None:
                texts.evaluate_adapter(adapter, run)
            else:
                texts.evaluate_routes(mixture, run, chosen, num_seeds, plot)
            return
        writing.refuse(head.type)
        if head.type not in (*datasets.TASK_TYPES, "cloze"):
            raise InvalidData(
                f"this adapter's head is {head.type}, which has no labels to compare with; "
                f"evaluated are {', '.join(datasets.TASK_TYPES)}"
            )
        if plot is not None and chosen.mode == "ensemble" and head.type == "regression":
            raise InvalidConfig("--plot: a regression has no probabilities whose calibration to draw", field="plot")
        rows = datasets.load(data, split=split, task_type=labelled.label_type(head))
        name = backbone or adapter.manifest.backbone.name
        loaded = backbones.load(name, device=backbones.device_name(device), language_model=head.type == "cloze")
        tokenizer = backbones.load_tokenizer(name)
        report: DrawsReport[labelled.Evaluation] | EnsembleReport[labelled.Evaluation] | None = None
        with progress("evaluating", total=len(rows.examples)) as shown:
            if mixture is None:
                result = labelled.evaluate(
                    adapter, loaded, tokenizer, rows, batch_size=batch_size, on_rows=shown.advance
                )
            else:
                probe = MixtureProbe(mixture, loaded, tokenizer, rows, batch_size=batch_size, on_rows=shown.advance)
                shown.total = len(rows.examples) * num_passes(probe, chosen, num_seeds)
                result, report = measure(probe, chosen, num_seeds)
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
