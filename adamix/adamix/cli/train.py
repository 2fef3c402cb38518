"""`adamix train`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from adamix.cli.heads import cloze_head, interval
from adamix.cli.recipes import RecipeOption, explain, is_given, is_replaced
from adamix.cli.rows import few_rows, load_rows, type_of
from adamix.cli.session import Prepared, TrainSession
from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    app,
    device_name,
    exit_codes,
    format_metrics,
    print_json,
    progress_bar,
    stderr,
)
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.errors import InvalidConfig, InvalidData
from adamix.experiments import recipes

if TYPE_CHECKING:
    from adamix.data import GenerationData, TaskData

_ADAPTER, _MIXTURE, _HEAD, _TRAIN = AdapterConfig(), MixtureConfig(), HeadConfig(), TrainConfig()
# Flags that are not called as their settings are.
_FLAGS = {"kind": "method", "learning_rate": "lr", "num_experts": "experts", "dropout": "head-dropout"}


@app.command()
def train(
    ctx: typer.Context,
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, `minilm` or `smollm2`.")],
    data: Annotated[str, typer.Option(help="CSV or JSONL file, a corpus (`trec`, …), or a `datasets` name.")],
    out: Annotated[Path, typer.Option(help="Directory of the run; new or empty unless --resume.")],
    task_type: Annotated[str | None, typer.Option(help="classification, multilabel, regression or generation.")] = None,
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
    task_loss: Annotated[
        str, typer.Option(help="Passes whose mean is the task's loss: first or both.")
    ] = _MIXTURE.task_loss,
    expert_init: Annotated[
        str, typer.Option(help="Begin the experts distinct, or all the same (for TIES and DARE).")
    ] = "distinct",
    pooling: Annotated[str, typer.Option(help="Head input: mean, cls or last.")] = _HEAD.pooling,
    dense: Annotated[str, typer.Option(help="Dense layer of the head: none, own or backbone.")] = _HEAD.dense,
    head_dropout: Annotated[float, typer.Option(help="Dropout before each linear of the head.")] = _HEAD.dropout,
    clip: Annotated[str | None, typer.Option(help="LOW,HIGH: cut a regression's predictions to this interval.")] = None,
    head: Annotated[
        str, typer.Option(help="plain, or cloze: the language model's word in a template is the label.")
    ] = "plain",
    template: Annotated[
        str | None, typer.Option(help="cloze: {text}, {pair} and {mask}.  (default: `{text} It was {mask}.`)")
    ] = None,
    verbalizer: Annotated[
        str | None, typer.Option(help="cloze: the word of each label, as negative=bad,positive=good.")
    ] = None,
    recipe: RecipeOption = None,
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
    warmup_steps: Annotated[int | None, typer.Option(help="Their number, instead of --warmup-ratio.")] = None,
    max_grad_norm: Annotated[float, typer.Option(help="Clip gradients at this norm; 0: never.")] = _TRAIN.max_grad_norm,
    label_smoothing: Annotated[float, typer.Option(help="Of a classification or generation.")] = _TRAIN.label_smoothing,
    unrouted: Annotated[
        str, typer.Option(help="Experts without rows: skip them, or move them by their momentum.")
    ] = _TRAIN.unrouted,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 under autocast.")] = _TRAIN.precision,
    backbone_dropout: Annotated[
        bool, typer.Option(help="Keep the backbone's dropout while training.")
    ] = _TRAIN.backbone_dropout,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = _TRAIN.save_every,
    seed: Annotated[int, typer.Option(help="Of weights, routes, order, dropout and --few-shot.")] = _TRAIN.seed,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    validate: Annotated[bool, typer.Option(help="Measure the merged adapter on the validation split.")] = True,
    json_: JsonFlag = False,
) -> None:
    """Train a mixture of adaptations on a frozen backbone."""
    with exit_codes(), _named_as_flags():
        published = None if recipe is None else recipes.find(recipe)
        epochs = None if is_replaced(ctx, "epochs") else epochs
        warmup_steps = None if is_replaced(ctx, "warmup_steps") else warmup_steps
        if epochs is not None and max_steps is not None:
            raise InvalidConfig("give --epochs or --max-steps, not both")
        if is_given(ctx, "warmup_steps") and is_given(ctx, "warmup_ratio"):
            raise InvalidConfig("give --warmup-steps or --warmup-ratio, not both")
        adapter_config = AdapterConfig.of(
            method,  # type: ignore[arg-type]  # checked by the dataclass, as are the other choices
            **({} if sites is None else {"sites": _sites(sites)}),
            rank=rank,
            alpha=alpha,
            activation=activation,
            lora_dropout=lora_dropout,
            distinct_init=_is_distinct(expert_init),
        )
        mixture_config = MixtureConfig(
            num_experts=experts,
            share=share,  # type: ignore[arg-type]
            consistency=consistency,
            routing_granularity=routing_granularity,  # type: ignore[arg-type]
            task_loss=task_loss,  # type: ignore[arg-type]
        )
        head_config = HeadConfig(
            pooling=pooling,  # type: ignore[arg-type]
            dense=dense,  # type: ignore[arg-type]
            dropout=head_dropout,
            clip=None if clip is None else interval(clip),
        )
        if head != "plain" or template is not None or verbalizer is not None:
            head_config = cloze_head(ctx, head, template, verbalizer)
        train_config = TrainConfig(
            epochs=_TRAIN.epochs if epochs is None else epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=lr,
            weight_decay=weight_decay,
            warmup_ratio=warmup_ratio,
            warmup_steps=warmup_steps,
            max_grad_norm=max_grad_norm,
            max_length=max_length,
            label_smoothing=label_smoothing,
            unrouted=unrouted,  # type: ignore[arg-type]
            seed=seed,
            precision=precision,  # type: ignore[arg-type]
            backbone_dropout=backbone_dropout,
            gradient_checkpointing=gradient_checkpointing,
            save_every=save_every,
        )
        session = ctx.find_object(TrainSession) or TrainSession()
        if session.is_plan:
            return
        from adamix import backbone as backbones
        from adamix import data as datasets
        from adamix import trainer

        if published is not None:
            published.check_backbone(backbones.read_family(backbone).model_type)
        rows = load_rows(data, split="train", task_type=task_type)
        if few_shot is not None:
            rows = few_rows(rows, few_shot, seed)
        is_generation = isinstance(rows, datasets.GenerationData)
        validation = _validation(data, type_of(rows)) if validate else None
        loaded = session.load_backbone(
            backbone, device=device_name(device), language_model=head == "cloze" or is_generation
        )
        tokenizer = backbones.load_tokenizer(backbone)
        prepared = Prepared(out, data, rows, loaded, tokenizer, head_config)
        session.before(prepared)
        is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
        settled = None if published is None or not is_first else explain(ctx, published)
        with progress_bar() as bar:
            task = bar.add_task("training", total=None, note="")

            def show(progress: trainer.Progress) -> None:
                if not is_first:
                    return
                bar.start()
                note = "" if progress.loss is None else f"loss {progress.loss:.3f}"
                bar.update(task, completed=progress.step, total=progress.steps, note=note)

            plan = TrainingPlan(adapter=adapter_config, mixture=mixture_config, head=head_config, train=train_config)
            result = trainer.train(plan, loaded, tokenizer, rows, validation, out, callbacks=[show], resume=resume)
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
        if isinstance(rows, datasets.GenerationData):
            document["references"] = sum(len(example.references) for example in rows.examples)
            document["synthetic"] = rows.is_synthetic
        if settled is not None:
            document["recipe"] = settled
        session.after(prepared, document)
        if not session.is_silent:
            _show(document, as_json=json_)
        session.close(document, as_json=json_)


def _show(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    parameters = document["parameters"]
    kind = {None: "rows", False: "sources", True: "synthetic sources"}[document.get("synthetic")]
    print(
        f"{document['mixture']}: {document['steps']} steps on {document['rows']} {kind} in {document['seconds']:.1f} s"
    )
    print(
        f"parameters: {parameters['trained']:,} in experts, {parameters['merged']:,} when merged, "
        f"{parameters['head']:,} in the head"
    )
    if document["validation"]:
        print(f"validation (merged): {format_metrics(document['validation'])}")


def _validation(data: str, task_type: str) -> "TaskData | GenerationData | None":
    """The validation split, or None with a note: a small file may have none, and still be trained on."""
    try:
        return load_rows(data, split="validation", task_type=task_type)
    except InvalidData as error:
        if error.reason not in ("SPLIT_MISSING", "SPLIT_EMPTY"):
            raise
        stderr.print(f"not validated: {escape(error.message)}", soft_wrap=True)
        return None


def _sites(value: str | None) -> tuple[str, ...] | None:
    if value is None or value == "none":
        return None if value is None else ()
    return tuple(site.strip() for site in value.split(","))


@contextmanager
def _named_as_flags() -> Iterator[None]:
    """An error that begins with the name of a setting begins with that of its flag."""
    try:
        yield
    except InvalidConfig as error:
        name = error.field or ""
        if name and error.message.startswith(f"{name} "):
            flag = _FLAGS.get(name, name.replace("_", "-"))
            raise InvalidConfig(flag + error.message.removeprefix(name), field=name) from None
        raise


def _is_distinct(value: str) -> bool:
    if value not in ("distinct", "same"):
        raise InvalidConfig(f"--expert-init must be distinct or same, not {value!r}", field="expert_init")
    return value == "distinct"
