# ruff: noqa: ARG001 - most arguments are declared here and read off what was given, by the names of their settings.
"""`adamix.fit`: a training by arguments, which are the settings of `experiments.settings`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adamix.api.bars import progress_bar
from adamix.api.fitted import Fitted
from adamix.api.given import Given, as_settings, telling_given
from adamix.api.sources import Data, source_of
from adamix.api.surroundings import left_as_found
from adamix.api.words import named_as_arguments
from adamix.backbones import names
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig
from adamix.data import sources
from adamix.data.named import check_task_type
from adamix.experiments.plan import Plan

if TYPE_CHECKING:
    from adamix.training.train import Callback, Progress

_ADAPTER, _MIXTURE, _HEAD, _TRAIN = AdapterConfig(), MixtureConfig(), HeadConfig(), TrainConfig()


@telling_given
def fit(
    given: Given,
    /,
    backbone: str | os.PathLike[str],
    data: Data,
    *,
    out: str | os.PathLike[str],
    task_type: str | None = None,
    method: str = _ADAPTER.kind,
    rank: int = _ADAPTER.rank,
    alpha: float | None = None,
    sites: str | Sequence[str] | None = None,
    activation: str = _ADAPTER.activation,
    lora_dropout: float = _ADAPTER.lora_dropout,
    experts: int = _MIXTURE.num_experts,
    share: str = _MIXTURE.share,
    consistency: float = _MIXTURE.consistency,
    routing_granularity: str = _MIXTURE.routing_granularity,
    task_loss: str = _MIXTURE.task_loss,
    expert_init: str = "distinct",
    pooling: str = _HEAD.pooling,
    dense: str = _HEAD.dense,
    head_dropout: float = _HEAD.dropout,
    clip: str | Sequence[float] | None = None,
    head: str = "plain",
    template: str | None = None,
    verbalizer: str | Mapping[str, str] | None = None,
    recipe: str | None = None,
    few_shot: int | None = None,
    max_length: int = _TRAIN.max_length,
    epochs: float | None = None,
    max_steps: int | None = None,
    lr: float = _TRAIN.learning_rate,
    batch_size: int = _TRAIN.batch_size,
    accumulation: int = _TRAIN.accumulation,
    weight_decay: float = _TRAIN.weight_decay,
    warmup_ratio: float = _TRAIN.warmup_ratio,
    warmup_steps: int | None = None,
    max_grad_norm: float = _TRAIN.max_grad_norm,
    label_smoothing: float = _TRAIN.label_smoothing,
    unrouted: str = _TRAIN.unrouted,
    precision: str = _TRAIN.precision,
    backbone_dropout: bool = _TRAIN.backbone_dropout,
    gradient_checkpointing: bool = _TRAIN.gradient_checkpointing,
    save_every: int = _TRAIN.save_every,
    seed: int = _TRAIN.seed,
    device: str = Plan.device,
    validate: bool = Plan.validate,
    report_to: str | Sequence[str] = "none",
    resume: bool = False,
    progress: bool = True,
    callbacks: "Sequence[Callback]" = (),
) -> Fitted:
    """Train a mixture of adaptations on a frozen backbone.

    Ctrl-C ends the training after the current step with a checkpoint; `resume=True` goes on from there. What an
    argument leaves at its default a recipe may set; what is given wins over it. The generators of `random`, numpy and
    torch are afterwards as they were before.

    Args:
        backbone: a directory, a hub id, `minilm` or `smollm2`.
        data: a CSV or JSONL file, a directory with one per split, a corpus (`trec`, …) or a `datasets` name; or rows in
            memory: dicts with `text` and `label` (`text_pair`; `source` and `target`), tuples of text and label, a dict
            of columns, a data frame, a `datasets.Dataset`, or a dict of these by train, validation and test.
        out: directory of the run; new or empty unless `resume`.
        task_type: classification, multilabel, regression or generation; None lets the data say it.
        method: bottleneck or lora.
        rank: bottleneck units, or rank of the LoRA.
        alpha: scale the adapter by alpha / rank; None scales by 1.
        sites: names of sites; empty trains a head alone, None takes those of the method.
        activation: of a bottleneck.
        lora_dropout: on a LoRA's input.
        experts: per projection.
        share: the projection that all experts share: up, down or none.
        consistency: weight of the consistency loss; 0 makes one pass.
        routing_granularity: one route per batch or per instance.
        task_loss: the passes whose mean is the task's loss: first or both.
        expert_init: begin the experts distinct, or all the same (for TIES and DARE).
        pooling: the head's input: mean, cls or last.
        dense: the dense layer of the head: none, own or backbone.
        head_dropout: before each linear of the head.
        clip: low and high: cut a regression's predictions to this interval.
        head: plain, or cloze: the language model's word in a template is the label.
        template: of a cloze: {text}, {pair} and {mask}.
        verbalizer: of a cloze: the word of each label.
        recipe: published settings by name.
        few_shot: use so many rows in all, balanced over classes.
        max_length: tokens per text.
        epochs: passes over the rows; 10 if None.
        max_steps: optimiser steps, instead of epochs.
        lr: peak learning rate.
        batch_size: rows per optimiser step.
        accumulation: make each step of this many smaller batches.
        weight_decay: AdamW's.
        warmup_ratio: share of the steps with a rising rate.
        warmup_steps: their number, instead of the ratio.
        max_grad_norm: clip gradients at this norm; 0 never.
        label_smoothing: of a classification or generation.
        unrouted: experts without rows: skip them, or move them by their momentum.
        precision: fp32, or bf16 under autocast.
        backbone_dropout: keep the backbone's dropout while training.
        gradient_checkpointing: less memory, more time.
        save_every: steps between checkpoints.
        seed: of weights, routes, order, dropout and `few_shot`.
        device: auto, cpu or cuda.
        validate: measure the merged adapter on the validation split.
        report_to: send curves to tensorboard, wandb, mlflow or trackio.
        resume: continue the run in `out`.
        progress: show a bar.
        callbacks: called after every optimiser step with a `Progress`.

    Raises:
        InvalidConfig: a setting is wrong, or does not go with another one; nothing was loaded then.
        InvalidData: the rows cannot be read.
        FailedPrecondition: `out` is not empty and `resume` is off; or the training diverged.
        Cancelled: stopped by Ctrl-C, with a checkpoint.
    """
    with named_as_arguments():
        source = source_of(data)
        named = source if isinstance(source, str) else source.name
        plan = replace(Plan.of(as_settings({**given, "data": named})), data=source)
        # Without torch, and without waiting for a network that is not there.
        check_task_type(plan.task_type)
        names.check(plan.backbone)
        if isinstance(source, str):
            sources.check(source)
        from adamix.experiments import run as experiment

        backbones = experiment.Backbones()
        prepared = experiment.prepare(plan, backbones)
        with left_as_found(), progress_bar("training", shown=progress) as advance:

            def show(state: "Progress") -> None:
                advance(state.step, state.steps, "" if state.loss is None else f"loss {state.loss:.3f}")

            finished = experiment.run(prepared, Path(out), callbacks=[show, *callbacks], resume=resume)
        return Fitted(finished, backbones)
