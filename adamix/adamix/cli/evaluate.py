"""`adamix evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    app,
    device_name,
    exit_codes,
    format_metrics,
    print_json,
    progress_bar,
)
from adamix.errors import InvalidConfig, InvalidData

if TYPE_CHECKING:
    from adamix.data import Example, TaskData
    from adamix.evaluation import Prediction


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="Adapter file, or training directory to merge.")],
    data: Annotated[str, typer.Option(help="As for `train`.")],
    backbone: Annotated[str | None, typer.Option(help="As for `train`; default: the one the adapter names.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    routing: Annotated[str, typer.Option(help="merged (others come later).")] = "merged",
    seeds: Annotated[int | None, typer.Option(help="Draws of a random routing (comes later).")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.", min=1)] = 32,
    device: DeviceOption = "auto",
    save_predictions: Annotated[Path | None, typer.Option(help="Write one JSON line per row.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Measure an adapter on labelled text."""
    with exit_codes():
        if routing != "merged":
            raise InvalidConfig(f"--routing {routing} is not available in this version; use merged", field="routing")
        if seeds is not None:
            raise InvalidConfig(
                "--seeds is for random routing, which is not available in this version; a merged adapter has no draws",
                field="seeds",
            )
        from adamix import adapter_file, evaluation
        from adamix import backbone as backbones
        from adamix import data as datasets
        from adamix.merge import merge as merge_mixture

        adapter = adapter_file.decode(merge_mixture(source)) if source.is_dir() else adapter_file.read(source)
        head = adapter.manifest.head
        if head.type not in datasets.TASK_TYPES:
            raise InvalidData(
                f"this adapter's head is {head.type}, which has no labels to compare with; "
                f"evaluated are {', '.join(datasets.TASK_TYPES)}"
            )
        rows = datasets.load(data, split=split, task_type=head.type)
        name = backbone or adapter.manifest.backbone.name
        loaded = backbones.load(name, device=device_name(device))
        with progress_bar() as bar:
            task = bar.add_task("evaluating", total=len(rows.examples), note="")

            def advance(count: int) -> None:
                bar.start()
                bar.advance(task, count)

            tokenizer = backbones.load_tokenizer(name)
            result = evaluation.evaluate(adapter, loaded, tokenizer, rows, batch_size=batch_size, on_rows=advance)
        if save_predictions is not None:
            lines = [
                json.dumps(_prediction(rows, example, prediction, logits), ensure_ascii=False)
                for example, prediction, logits in zip(rows.examples, result.predictions, result.logits, strict=True)
            ]
            adapter_file.write(save_predictions, "".join(line + "\n" for line in lines).encode())
        if json_:
            print_json({"metrics": result.metrics, "rows": result.rows, "truncated": result.truncated})
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
