"""Train a mixture of adaptations on a frozen backbone, and write it as one file.

`train` puts the parts together: experts at their sites, a head, tokenised rows, the loop of `training/loop.py`, the
mixture file of `merge.py`. Nothing here prints; progress goes to callbacks.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, TrainingArguments

from adamix.backbones.backbone import Backbone
from adamix.config import TrainConfig, TrainingPlan
from adamix.data import GenerationData, TaskData
from adamix.errors import Cancelled, InvalidConfig, InvalidData
from adamix.files import adapter_file, disk
from adamix.files.tensors import MAX_FILE_BYTES, MAX_HEADER_BYTES, MAX_TENSORS
from adamix.merging.merge import MIXTURE_FILE, merge
from adamix.modules.heads import LanguageModel, TaskModel, recompute_activations, remove_dropout, shared_copy
from adamix.modules.mixture import Mixture
from adamix.rows.order import EpochOrder
from adamix.training.loop import MixtureTrainer, Progress, StepWatch
from adamix.training.result import (
    build_manifest,
    check_converged,
    expert_tensors,
    head_tensors,
    mixture_file,
    with_metrics,
)
from adamix.training.run_directory import CHECKPOINTS, open_run
from adamix.training.task import TrainingTask, training_task

__all__ = ["Callback", "Progress", "TrainResult", "train"]

Callback = Callable[[Progress], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Attributes:
        path: the mixture file.
        steps: optimiser steps of the whole run, resumed parts included.
        seconds: wall time of this call's training loop.
        loss: last reading of the training loss; nan where this call trained too few steps for one.
        metrics: of the merged adapter on the validation rows; empty without any.
        trained_parameters: of all experts.
        merged_parameters: of the one adapter that they become.
        head_parameters: trained as well, and in neither of the two above.
    """

    path: Path
    steps: int
    seconds: float
    loss: float
    metrics: dict[str, float]
    trained_parameters: int
    merged_parameters: int
    head_parameters: int


def train(
    plan: TrainingPlan,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    rows: TaskData | GenerationData,
    validation: TaskData | GenerationData | None,
    out: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    trackers: Sequence[str] = (),
) -> TrainResult:
    """Train on `rows` and write `OUT/mixture.safetensors`.

    The backbone stays as it is: sites go into a second module tree over the same weights, on the same device. The
    seeds of `random`, numpy and torch are set, as transformers does. While the loop runs in the main thread, the
    first Ctrl-C (SIGINT) ends it after the current step with a checkpoint, a second one at once.

    Args:
        rows: labelled texts, or sources with reference texts, for which the backbone needs its language-model head.
        validation: rows on which the merged adapter is measured at the end; the numbers go into the manifest. Texts are
            not generated there: what is measured is how well those of the references are predicted.
        callbacks: called after every optimiser step.
        resume: continue from the last checkpoint in `out`, to the same weights as an uninterrupted run; a directory
            without one is begun anew.
        trackers: integrations of transformers, by name, that the loss and the learning rate are sent to.

    Raises:
        InvalidConfig: a setting does not fit the backbone, or differs from those of the run to be resumed.
        InvalidData: no rows.
        FailedPrecondition: `out` is not empty and `resume` is off; or the loss or a weight is no longer finite
            (`DIVERGED`).
        Cancelled: stopped by Ctrl-C, with a checkpoint.
    """
    task = training_task(rows, plan.head, backbone, tokenizer)
    _check(plan, task, backbone)
    task.check(backbone, plan.head, validation)
    manifest = build_manifest(plan, task, backbone)
    model, experts = _build(plan, task, backbone)
    own_head = model.head if isinstance(model, TaskModel) else None
    num_head = 0 if own_head is None else own_head.num_trained()
    if not plan.adapter.sites and not num_head:
        raise InvalidConfig(
            "the backbone's own head is not trained: without sites there is nothing to train", field="sites"
        )
    _check_size(experts, num_head)
    checkpoint = open_run(out, _settings(plan, task, backbone), resume=resume)
    train = plan.train
    tokenized = task.rows(backbone, tokenizer, train.max_length)
    watch = StepWatch(callbacks)
    trainer = MixtureTrainer(
        model=model,
        args=_arguments(train, len(tokenized), out, backbone.model.device, trackers),
        rows=tokenized,
        order=EpochOrder(tokenized.lengths, train.batch_size, train.seed, group_by_length=train.group_by_length),
        experts=experts,
        task_type=task.loss_type,
        route_seed=train.seed,
        watch=watch,
        label_smoothing=train.label_smoothing,
        unrouted=train.unrouted,
    )
    started = time.monotonic()
    with _stop_on_interrupt(watch):
        steps = trainer.run(checkpoint)
    seconds = time.monotonic() - started
    if steps < trainer.args.max_steps:
        raise Cancelled(f"stopped after step {steps} of {trainer.args.max_steps}; continue with --resume")

    tensors = expert_tensors(experts)
    if own_head is not None:
        tensors |= head_tensors(own_head, task.scale)
    check_converged(manifest, tensors)
    result = mixture_file(manifest, plan.mixture, tensors)
    metrics: dict[str, float] = {}
    if validation is not None:
        merged = adapter_file.decode(merge(result))
        metrics = task.measure(merged, backbone, tokenizer, validation)
        result = mixture_file(with_metrics(manifest, metrics), plan.mixture, tensors)
    if trainer.is_world_process_zero():
        disk.write(out / MIXTURE_FILE, result.encode())
    trained_parameters, merged_parameters = experts.num_parameters()
    return TrainResult(
        path=out / MIXTURE_FILE,
        steps=steps,
        seconds=seconds,
        loss=watch.loss,
        metrics=metrics,
        trained_parameters=trained_parameters,
        merged_parameters=merged_parameters,
        head_parameters=num_head,
    )


def _check(plan: TrainingPlan, task: TrainingTask, backbone: Backbone) -> None:
    train = plan.train
    if not task.num_rows:
        raise InvalidData(f"{task.data.name} has no rows to train on")
    if train.max_length > backbone.spec.max_tokens:
        raise InvalidConfig(
            f"max_length {train.max_length} is over the backbone's {backbone.spec.max_tokens} positions",
            field="max_length",
        )
    train.warmup(_num_steps(train, task.num_rows))
    if train.precision == "bf16" and backbone.model.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InvalidConfig("this CUDA device cannot compute in bf16: use precision fp32", field="precision")


def _check_size(experts: Mixture, num_head: int) -> None:
    """Refuse before training what no file could hold afterwards."""
    starts = experts.initial.values()
    num_bytes = 4 * (experts.num_parameters()[0] + sum(start.numel() for start in starts) + num_head)
    num_tensors = len(starts) + sum(len(list(projection.parameters())) for _, projection in experts.projections())
    limit = MAX_FILE_BYTES - MAX_HEADER_BYTES
    if num_bytes > limit or num_tensors + 4 > MAX_TENSORS:
        raise InvalidConfig(
            f"the mixture would have {num_tensors} tensors and {num_bytes >> 20} MiB; a file holds "
            f"{MAX_TENSORS} and {limit >> 20} MiB: use fewer experts, sites or a lower rank"
        )


def _build(plan: TrainingPlan, task: TrainingTask, backbone: Backbone) -> tuple[TaskModel | LanguageModel, Mixture]:
    """The model to train. Its initial weights depend on the seed alone."""
    generator = torch.Generator().manual_seed(plan.train.seed)
    body = shared_copy(backbone.model)
    if not plan.train.backbone_dropout:
        remove_dropout(body)
    experts = Mixture(body, plan.adapter, plan.mixture, generator)
    if plan.train.gradient_checkpointing:
        recompute_activations(body)
    return task.model(body, backbone, plan.head, generator), experts


def _num_steps(train: TrainConfig, num_rows: int) -> int:
    return train.steps(num_rows, num_processes=int(os.environ.get("WORLD_SIZE", "1")))


def _arguments(
    train: TrainConfig, num_rows: int, out: Path, device: torch.device, trackers: Sequence[str]
) -> TrainingArguments:
    steps = _num_steps(train, num_rows)
    found = TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        max_steps=steps,
        per_device_train_batch_size=train.batch_size // train.accumulation,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=train.warmup(steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        bf16=train.precision == "bf16",
        use_cpu=device.type == "cpu",
        logging_strategy="steps",
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.save_every,
        save_total_limit=2,
        report_to=list(trackers) or "none",
        run_name=out.name or None,
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        # Experts without rows have no gradient, which DistributedDataParallel must be told to expect.
        ddp_find_unused_parameters=True,
    )
    # The library adds one of its own accord where the environment names a Kubeflow server.
    found.report_to = list(trackers)
    return found


@contextmanager
def _stop_on_interrupt(watch: StepWatch) -> Iterator[None]:
    """Turn the first SIGINT into a request to stop; the handler that was there before gets the second one."""
    previous = signal.getsignal(signal.SIGINT)
    # Only the main thread may set a handler; and a job that was started to ignore the signal goes on ignoring it.
    if threading.current_thread() is not threading.main_thread() or previous in (signal.SIG_IGN, None):
        yield
        return

    def request_stop(*_: Any) -> None:
        watch.stop_requested = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, request_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _settings(plan: TrainingPlan, task: TrainingTask, backbone: Backbone) -> dict[str, Any]:
    """Everything the result depends on."""
    return {
        "backbone": {
            "fingerprint": backbone.spec.fingerprint,
            "tokenizer_fingerprint": backbone.spec.tokenizer_fingerprint,
        },
        "data": {"name": task.data.name, "task_type": task.type_name, "sha256": task.digest()},
        "adapter": asdict(plan.adapter),
        "mixture": asdict(plan.mixture),
        "head": asdict(plan.head),
        "train": asdict(plan.train),
    }
