"""The commands that make and measure adapters: `adamix train | merge | evaluate | inspect`.

stdout carries results only (with `--json` one JSON document), stderr progress and errors; the exit code is 0, 1 for
a failure or 2 for wrong usage. Thin: every command parses, calls one function and prints. Heavy libraries are
imported inside the commands, so that `--help` answers at once.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig
from adamix.errors import AdamixError, InvalidConfig, InvalidData

if TYPE_CHECKING:
    from adamix.adapter_file import AdapterFile
    from adamix.data import Example, TaskData
    from adamix.evaluation import Prediction

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
stderr = Console(stderr=True, highlight=False)

_ADAPTER, _MIXTURE, _HEAD, _TRAIN = AdapterConfig(), MixtureConfig(), HeadConfig(), TrainConfig()

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error into one red line on stderr and an exit code: 2 for wrong usage, 1 for any other failure.

    Only errors whose text is meant for people are turned; a bug keeps its traceback.
    """
    try:
        yield
    except InvalidConfig as error:
        _fail(error.message, 2)
    except AdamixError as error:
        _fail(error.message, 1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 1)


@app.command()
def train(
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, `minilm` or `smollm2`.")],
    data: Annotated[str, typer.Option(help="CSV or JSONL file, a corpus (`trec`, …), or a `datasets` name.")],
    out: Annotated[Path, typer.Option(help="Directory of the run; new or empty unless --resume.")],
    task_type: Annotated[str | None, typer.Option(help="classification, multilabel or regression.")] = None,
    method: Annotated[str, typer.Option(help="bottleneck or lora.")] = _ADAPTER.kind,
    rank: Annotated[int, typer.Option(help="Bottleneck units, or rank of the LoRA.")] = _ADAPTER.rank,
    alpha: Annotated[float | None, typer.Option(help="Scale the adapter by alpha / rank.  (default: scale 1)")] = None,
    sites: Annotated[
        str | None, typer.Option(help="Comma-separated sites; `none` trains a head alone.  (default: by method)")
    ] = None,
    activation: Annotated[str, typer.Option(help="Activation of a bottleneck.")] = _ADAPTER.activation,
    lora_dropout: Annotated[float, typer.Option(help="Dropout on a LoRA's input.")] = _ADAPTER.lora_dropout,
    experts: Annotated[int, typer.Option(help="Experts per projection.")] = _MIXTURE.num_experts,
    share: Annotated[str, typer.Option(help="Projection all experts share: up, down or none.")] = _MIXTURE.share,
    consistency: Annotated[
        float, typer.Option(help="Weight of the consistency loss; 0: one pass.")
    ] = _MIXTURE.consistency,
    routing_granularity: Annotated[
        str, typer.Option(help="One route per batch or per instance.")
    ] = _MIXTURE.routing_granularity,
    pooling: Annotated[str, typer.Option(help="Head input: mean, cls or last.")] = _HEAD.pooling,
    dense: Annotated[str, typer.Option(help="Dense layer of the head: none, own or backbone.")] = _HEAD.dense,
    recipe: Annotated[str | None, typer.Option(help="Published settings by name (come later).")] = None,
    few_shot: Annotated[int | None, typer.Option(help="Use K rows in all, balanced over classes.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens per text.")] = _TRAIN.max_length,
    epochs: Annotated[float | None, typer.Option(help=f"Passes over the rows.  (default: {_TRAIN.epochs:g})")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps, instead of --epochs.")] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = _TRAIN.learning_rate,
    batch_size: Annotated[int, typer.Option(help="Rows per optimiser step.")] = _TRAIN.batch_size,
    accumulation: Annotated[
        int, typer.Option(help="Make each step of this many smaller batches.")
    ] = _TRAIN.accumulation,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = _TRAIN.weight_decay,
    warmup_ratio: Annotated[float, typer.Option(help="Share of the steps with a rising rate.")] = _TRAIN.warmup_ratio,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 under autocast.")] = _TRAIN.precision,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = _TRAIN.save_every,
    seed: Annotated[int, typer.Option(help="Of weights, routes, order, dropout and --few-shot.")] = _TRAIN.seed,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    validate: Annotated[bool, typer.Option(help="Measure the merged adapter on the validation split.")] = True,
    json_: JsonFlag = False,
) -> None:
    """Train a mixture of adaptations on a frozen backbone."""
    with exit_codes():
        if recipe is not None:
            raise InvalidConfig(
                f"--recipe {recipe} is not available in this version; give its settings one by one", field="recipe"
            )
        if epochs is not None and max_steps is not None:
            raise InvalidConfig("give --epochs or --max-steps, not both")
        adapter_config = AdapterConfig(
            kind=method,  # type: ignore[arg-type]  # checked by the dataclass, as are the other choices
            sites=_sites(sites),
            rank=rank,
            alpha=alpha,
            activation=activation,  # type: ignore[arg-type]
            lora_dropout=lora_dropout,
        )
        mixture_config = MixtureConfig(
            num_experts=experts,
            share=share,  # type: ignore[arg-type]
            consistency=consistency,
            routing_granularity=routing_granularity,  # type: ignore[arg-type]
        )
        head_config = HeadConfig(pooling=pooling, dense=dense)  # type: ignore[arg-type]
        train_config = TrainConfig(
            epochs=_TRAIN.epochs if epochs is None else epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=lr,
            weight_decay=weight_decay,
            warmup_ratio=warmup_ratio,
            max_length=max_length,
            seed=seed,
            precision=precision,  # type: ignore[arg-type]
            gradient_checkpointing=gradient_checkpointing,
            save_every=save_every,
        )
        from adamix import backbone as backbones
        from adamix import data as datasets
        from adamix import trainer

        rows = datasets.load(data, split="train", task_type=task_type)
        if few_shot is not None:
            rows = datasets.few_shot(rows, few_shot, seed)
        validation = _validation(data, rows.task_type) if validate else None
        loaded = backbones.load(backbone, device=_device(device))
        is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
        with _bar() as bar:
            task = bar.add_task("training", total=None, note="")

            def show(progress: trainer.Progress) -> None:
                if not is_first:
                    return
                bar.start()
                note = "" if progress.loss is None else f"loss {progress.loss:.3f}"
                bar.update(task, completed=progress.step, total=progress.steps, note=note)

            result = trainer.train(
                loaded,
                backbones.load_tokenizer(backbone),
                rows,
                validation,
                adapter_config,
                mixture_config,
                head_config,
                train_config,
                out,
                callbacks=[show],
                resume=resume,
            )
        if not is_first:
            return
        document: dict[str, Any] = {
            "mixture": str(result.path),
            "rows": len(rows.examples),
            "steps": result.steps,
            "seconds": round(result.seconds, 3),
            "parameters": {
                "trained": result.trained_parameters,
                "merged": result.merged_parameters,
                "head": result.head_parameters,
            },
            "validation": result.metrics,
        }
        if json_:
            _print_json(document)
            return
        print(f"{result.path}: {result.steps} steps on {len(rows.examples)} rows in {result.seconds:.1f} s")
        print(
            f"parameters: {result.trained_parameters:,} in experts, {result.merged_parameters:,} when merged, "
            f"{result.head_parameters:,} in the head"
        )
        if result.metrics:
            print(f"validation (merged): {_metrics(result.metrics)}")


@app.command()
def merge(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a finished training.")],
    out: Annotated[Path, typer.Option(help="The adapter file to write.")],
    how: Annotated[str, typer.Option(help="uniform (others come later).")] = "uniform",
    json_: JsonFlag = False,
) -> None:
    """Merge a mixture into one adapter file."""
    with exit_codes():
        from adamix import adapter_file
        from adamix.merge import merge as merge_mixture

        data = merge_mixture(directory, how)
        adapter_file.write(out, data)
        adapter = adapter_file.decode(data)
        if json_:
            _print_json({"file": str(out), **_summary(adapter)})
            return
        count, head = adapter.num_parameters()
        print(f"{out}: {adapter.num_bytes:,} bytes, {count:,} parameters and {head:,} in the head")
        print(f"sha256 {adapter.digest}")


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="Adapter file, or training directory to merge.")],
    data: Annotated[str, typer.Option(help="As for `train`.")],
    backbone: Annotated[str | None, typer.Option(help="As for `train`; default: the one the adapter names.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    routing: Annotated[str, typer.Option(help="merged (others come later).")] = "merged",
    seeds: Annotated[int | None, typer.Option(help="Draws of a random routing (comes later).")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
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
        loaded = backbones.load(name, device=_device(device))
        with _bar() as bar:
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
            _print_json({"metrics": result.metrics, "rows": result.rows, "truncated": result.truncated})
            return
        print(f"{_metrics(result.metrics)}  ({result.rows} rows, {result.truncated} truncated)")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Adapter file.")],
    json_: JsonFlag = False,
) -> None:
    """Show what an adapter file says about itself."""
    with exit_codes():
        from adamix import adapter_file

        adapter = adapter_file.read(file)
        if json_:
            _print_json({**adapter.manifest.to_json(), **_summary(adapter)})
            return
        manifest, (count, head) = adapter.manifest, adapter.num_parameters()
        sites = sorted({site for _, site in adapter.sites()})
        print(f"{manifest.kind} at {', '.join(sites) or 'no site'} for {manifest.backbone.name}")
        labels = manifest.head.labels if manifest.head.type in ("classification", "multilabel") else ()
        print(f"head: {', '.join([manifest.head.type, *labels])[:200]}")
        print(f"training: {manifest.training.method} on {manifest.training.data}, merged by {manifest.training.merge}")
        print(f"parameters: {count:,} and {head:,} in the head; {adapter.num_bytes:,} bytes")
        print(f"sha256 {adapter.digest}")


def _fail(message: str, code: int) -> None:
    stderr.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _summary(adapter: "AdapterFile") -> dict[str, Any]:
    count, head = adapter.num_parameters()
    return {"parameters": {"adapter": count, "head": head}, "bytes": adapter.num_bytes, "digest": adapter.digest}


def _prediction(data: "TaskData", example: "Example", prediction: "Prediction", logits: list[float]) -> dict[str, Any]:
    label: Any = example.label
    if isinstance(label, tuple):
        label = [data.labels[index] for index in label]
    elif data.labels:
        label = data.labels[int(label)]
    pair = {} if example.pair is None else {"text_pair": example.pair}
    return {"text": example.text, **pair, "label": label, "prediction": prediction, "logits": logits}


def _validation(data: str, task_type: str) -> "TaskData | None":
    """The validation split, or None with a note: a small file may have none, and still be trained on."""
    from adamix import data as datasets

    try:
        return datasets.load(data, split="validation", task_type=task_type)
    except InvalidData as error:
        if error.reason not in ("SPLIT_MISSING", "SPLIT_EMPTY"):
            raise
        stderr.print(f"not validated: {escape(error.message)}", soft_wrap=True)
        return None


def _sites(value: str | None) -> tuple[str, ...] | None:
    if value is None or value == "none":
        return None if value is None else ()
    return tuple(site.strip() for site in value.split(","))


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InvalidConfig(f"--device must be auto, cpu or cuda, not {name!r}", field="device")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("--device cuda: torch finds no CUDA device", field="device")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    # Under torchrun each process has a device of its own.
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar that appears with the first call of its `start`, so that an early error stands alone."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
    )
    try:
        yield bar
    finally:
        if bar.live.is_started:
            bar.stop()
