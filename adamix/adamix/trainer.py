"""Train a mixture of adaptations on a frozen backbone, and write it as one file.

`train` puts the parts together: experts at their sites, a head, tokenised rows, the loop of `training_loop.py`, the
mixture file of `merge.py`. Nothing here prints; progress goes to callbacks.
"""

import hashlib
import json
import math
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

from adamix import adapter_file, evaluation
from adamix.backbone import Backbone
from adamix.batches import target_tensor, tokenize
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig
from adamix.data import TaskData
from adamix.errors import Cancelled, InvalidConfig, InvalidData
from adamix.heads import Head, TaskModel, recompute_activations, shared_copy
from adamix.manifest import HeadSpec
from adamix.merge import MIXTURE_FILE, merge
from adamix.mixture import Mixture
from adamix.run_directory import CHECKPOINTS, open_run
from adamix.trained_file import (
    build_manifest,
    check_converged,
    expert_tensors,
    head_tensors,
    mixture_file,
    with_metrics,
)
from adamix.training_loop import EpochOrder, MixtureTrainer, Progress, Rows, StepWatch

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
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    data: TaskData,
    validation: TaskData | None,
    adapter: AdapterConfig,
    mixture: MixtureConfig,
    head: HeadConfig,
    train: TrainConfig,
    out: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> TrainResult:
    """Train on `data` and write `OUT/mixture.safetensors`.

    The backbone stays as it is: sites go into a second module tree over the same weights, on the same device. The
    seeds of `random`, numpy and torch are set, as transformers does. While the loop runs in the main thread, the
    first Ctrl-C (SIGINT) ends it after the current step with a checkpoint, a second one at once.

    Args:
        validation: rows on which the merged adapter is measured at the end; the numbers go into the manifest.
        callbacks: called after every optimiser step.
        resume: continue from the last checkpoint in `out`, to the same weights as an uninterrupted run; a directory
            without one is begun anew.

    Raises:
        InvalidConfig: a setting does not fit the backbone, or differs from those of the run to be resumed.
        InvalidData: no rows.
        FailedPrecondition: `out` is not empty and `resume` is off; or the loss or a weight is no longer finite
            (`DIVERGED`).
        Cancelled: stopped by Ctrl-C, with a checkpoint.
    """
    _check(backbone, data, head, train)
    manifest = build_manifest(backbone, data, adapter, mixture, head, train)
    model, experts = _build(backbone, adapter, mixture, manifest.head, head.dropout, train)
    _check_size(experts, model.head)
    checkpoint = open_run(out, _settings(backbone, data, adapter, mixture, head, train), resume=resume)
    rows, scale = _rows(tokenizer, data, train.max_length, backbone)
    watch = StepWatch(callbacks)
    trainer = MixtureTrainer(
        model=model,
        args=_arguments(train, len(rows), out, backbone.model.device),
        rows=rows,
        order=EpochOrder(rows.lengths, train.batch_size, train.seed, group_by_length=train.group_by_length),
        experts=experts,
        task_type=data.task_type,
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

    tensors = expert_tensors(experts) | head_tensors(model.head, scale)
    check_converged(manifest, tensors)
    result = mixture_file(manifest, mixture, tensors)
    metrics: dict[str, float] = {}
    if validation is not None:
        merged = adapter_file.decode(merge(result))
        metrics = evaluation.evaluate(merged, backbone, tokenizer, validation).metrics
        result = mixture_file(with_metrics(manifest, metrics), mixture, tensors)
    if trainer.is_world_process_zero():
        adapter_file.write(out / MIXTURE_FILE, result.encode())
    trained_parameters, merged_parameters = experts.num_parameters()
    return TrainResult(
        path=out / MIXTURE_FILE,
        steps=steps,
        seconds=seconds,
        loss=watch.loss,
        metrics=metrics,
        trained_parameters=trained_parameters,
        merged_parameters=merged_parameters,
        head_parameters=model.head.num_trained(),
    )


def _check(backbone: Backbone, data: TaskData, head: HeadConfig, train: TrainConfig) -> None:
    if not data.examples:
        raise InvalidData(f"{data.name} has no rows to train on")
    if train.max_length > backbone.spec.max_tokens:
        raise InvalidConfig(
            f"max_length {train.max_length} is over the backbone's {backbone.spec.max_tokens} positions",
            field="max_length",
        )
    if head.pooling == "cls" and backbone.family.is_decoder:
        raise InvalidConfig(
            f"the first token of a {backbone.spec.model_type} sees nothing of the text: use pooling `last` or `mean`",
            field="pooling",
        )
    if head.dense == "backbone" and backbone.pooler is None:
        raise InvalidConfig(f"the checkpoint of {backbone.name} has no pooler: use another dense layer", field="dense")
    if train.precision == "bf16" and backbone.model.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InvalidConfig("this CUDA device cannot compute in bf16: use precision fp32", field="precision")


def _check_size(experts: Mixture, head: Head) -> None:
    """Refuse before training what no file could hold afterwards."""
    num_bytes = 4 * (experts.num_parameters()[0] + head.num_trained())
    num_tensors = sum(len(list(projection.parameters())) for _, projection in experts.projections())
    limit = adapter_file.MAX_FILE_BYTES - adapter_file.MAX_HEADER_BYTES
    if num_bytes > limit or num_tensors + 4 > adapter_file.MAX_TENSORS:
        raise InvalidConfig(
            f"the mixture would have {num_tensors} tensors and {num_bytes >> 20} MiB; a file holds "
            f"{adapter_file.MAX_TENSORS} and {limit >> 20} MiB: use fewer experts, sites or a lower rank"
        )


def _build(
    backbone: Backbone,
    adapter: AdapterConfig,
    mixture: MixtureConfig,
    spec: HeadSpec,
    dropout: float,
    train: TrainConfig,
) -> tuple[TaskModel, Mixture]:
    """The model to train. Its initial weights depend on the seed alone."""
    generator = torch.Generator().manual_seed(train.seed)
    body = shared_copy(backbone.model)
    experts = Mixture(body, adapter, mixture, generator)
    if train.gradient_checkpointing:
        recompute_activations(body)
    pooler = None if backbone.pooler is None else shared_copy(backbone.pooler)
    head = Head(spec, backbone.spec.hidden_size, pooler, dropout)
    head.initialise(generator)
    return TaskModel(body, head, backbone.first_position), experts


def _rows(
    tokenizer: PreTrainedTokenizerFast, data: TaskData, max_length: int, backbone: Backbone
) -> tuple[Rows, tuple[float, float]]:
    """Training rows, and the (mean, deviation) by which regression targets were standardised."""
    has_types = backbone.spec.type_vocab_size > 1
    tokens = tokenize(tokenizer, data.examples, max_length=max_length, has_types=has_types)
    targets = target_tensor(data.examples, data.task_type, len(data.labels))
    mean, deviation = 0.0, 1.0
    if data.task_type == "regression":
        mean, deviation = float(targets.mean()), float(targets.std(correction=0)) or 1.0
        targets = (targets - mean) / deviation
    return Rows(tokens, targets, tokenizer.pad_token_id or 0), (mean, deviation)


def _arguments(train: TrainConfig, num_rows: int, out: Path, device: torch.device) -> TrainingArguments:
    steps = train.steps(num_rows, num_processes=int(os.environ.get("WORLD_SIZE", "1")))
    return TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        max_steps=steps,
        per_device_train_batch_size=train.batch_size // train.accumulation,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(steps * train.warmup_ratio),
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
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        # Experts without rows have no gradient, which DistributedDataParallel must be told to expect.
        ddp_find_unused_parameters=True,
    )


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


def _settings(
    backbone: Backbone,
    data: TaskData,
    adapter: AdapterConfig,
    mixture: MixtureConfig,
    head: HeadConfig,
    train: TrainConfig,
) -> dict[str, Any]:
    """Everything the result depends on."""
    rows = json.dumps([(e.text, e.pair, e.label) for e in data.examples]).encode()
    return {
        "backbone": {
            "fingerprint": backbone.spec.fingerprint,
            "tokenizer_fingerprint": backbone.spec.tokenizer_fingerprint,
        },
        "data": {"name": data.name, "task_type": data.task_type, "sha256": hashlib.sha256(rows).hexdigest()},
        "adapter": asdict(adapter),
        "mixture": asdict(mixture),
        "head": asdict(head),
        "train": asdict(train),
    }
