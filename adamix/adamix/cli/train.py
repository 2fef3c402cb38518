# ruff: noqa: ARG001 - most flags are declared here and read off the context, by the names of their settings.
"""`adamix train`, and what the commands that train many share with it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from adamix.cli import checks
from adamix.cli.progress import progress
from adamix.cli.push import PushOption, check_push, release_to
from adamix.cli.recipes import explain
from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    exit_codes,
    format_metrics,
    print_json,
    stderr,
)
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig
from adamix.experiments.plan import Plan
from adamix.experiments.settings import SETTINGS, Value

if TYPE_CHECKING:
    from adamix.experiments.run import Backbones, Finished, Prepared
    from adamix.training.train import Progress

_ADAPTER, _MIXTURE, _HEAD, _TRAIN = AdapterConfig(), MixtureConfig(), HeadConfig(), TrainConfig()


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
    recipe: Annotated[str | None, typer.Option(help="Published settings by name, see `adamix recipes`.")] = None,
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
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Less memory, more time.")
    ] = _TRAIN.gradient_checkpointing,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = _TRAIN.save_every,
    seed: Annotated[int, typer.Option(help="Of weights, routes, order, dropout and --few-shot.")] = _TRAIN.seed,
    device: DeviceOption = Plan.device,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    validate: Annotated[bool, typer.Option(help="Measure the merged adapter on the validation split.")] = Plan.validate,
    report_to: Annotated[
        str, typer.Option(help="Send curves to tensorboard, wandb, mlflow or trackio; several with commas.")
    ] = "none",
    json_: JsonFlag = False,
    push: PushOption = None,
    task: Annotated[str | None, typer.Option(help="--push: the id that clients will call.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="--push: register only if `METRIC>=X`, `METRIC<=X`, `no-worse:METRIC` or `baseline`. May be repeated."
            "  (default: baseline)"
        ),
    ] = None,
    push_split: Annotated[
        str | None, typer.Option(help="--push: the rows to judge by, validation or test.  (default: validation)")
    ] = None,
) -> None:
    """Train a mixture of adaptations on a frozen backbone."""
    with exit_codes():
        plan = Plan.of(given_settings(ctx))
        check_push(push, task, gate, push_split)
        checks.plan(plan)
        release = release_to(push, task, gate, push_split)
        from adamix.experiments.run import Backbones

        prepared = prepare(plan, Backbones())
        if release is not None:
            release.prepare(prepared)
        finished = run(prepared, out, resume=resume)
        if not _is_first():
            return
        document = finished.to_json()
        if release is None:
            _show(document, as_json=json_)
            return
        released = release.finish(finished)
        document["push"] = released.to_json()
        _show(document, as_json=json_)
        if released.failure is not None:
            raise released.failure
        if released.published is not None and not json_:
            note = " (was there already)" if released.published.already_exists else ""
            print(f"registered {released.published.version}{note}")


def given_settings(ctx: typer.Context) -> dict[str, Value]:
    """The settings that the user gave, as a flag, in the environment or in a file, by name."""
    sources = {name: ctx.get_parameter_source(name) for name in SETTINGS if name in ctx.params}
    given = [name for name, source in sources.items() if source and source.name != "DEFAULT"]
    return {name: ctx.params[name] for name in given}


def prepare(plan: Plan, backbones: "Backbones") -> "Prepared":
    """As `experiments.run.prepare`; stderr tells where there is no validation split."""
    from adamix.experiments import run as experiment

    prepared = experiment.prepare(plan, backbones)
    if prepared.unvalidated is not None:
        stderr.print(f"not validated: {escape(prepared.unvalidated)}", soft_wrap=True)
    return prepared


def run(prepared: "Prepared", out: Path, *, resume: bool) -> "Finished":
    """As `experiments.run.run`, with a progress bar; what a recipe set is told before."""
    from adamix.experiments import run as experiment

    recipe = prepared.plan.recipe
    if recipe is not None and _is_first():
        explain(recipe)
    with progress("training") as shown:

        def show(now: "Progress") -> None:
            if _is_first():
                note = "" if now.loss is None else f"loss {now.loss:.3f}"
                shown.update(now.step, now.steps, note=note)

        return experiment.run(prepared, out, callbacks=[show], resume=resume)


def _is_first() -> bool:
    """Of the processes that torchrun started: the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


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
