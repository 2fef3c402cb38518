"""AdaMix's changes to `transformers.Trainer`: what one step computes, and what is saved.

Both stochastic passes are one forward call over twice the rows (two calls fail under DistributedDataParallel); routes
come from a generator of their own, whose state is saved with the others; a checkpoint holds only trained tensors.
Knows nothing of files beyond its checkpoints, nor of manifests and configuration.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from adamix.config import Unrouted
from adamix.data import TaskType
from adamix.errors import FailedPrecondition
from adamix.modules.heads import LanguageModel, TaskModel
from adamix.modules.losses import consistency_loss, task_loss
from adamix.modules.mixture import Mixture, select_rows
from adamix.rows.order import EpochOrder, Rows
from adamix.rows.targets import TargetRows
from adamix.training.run_directory import checkpoint_step

_WEIGHTS_FILE = "trained.safetensors"
_ROUTES_FILE = "routes_rng.pt"


@dataclass(frozen=True)
class Progress:
    """Where a run is. `loss` is the mean since it was last read; None before the first reading."""

    step: int
    steps: int
    loss: float | None


class StepWatch(TrainerCallback):
    """Reports progress after every step, stops the run when asked to, and ends it when the loss is not finite."""

    def __init__(self, callbacks: Sequence[Callable[[Progress], None]]) -> None:
        self._callbacks = callbacks
        self.loss = math.nan
        self.stop_requested = False

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the library's signature, here and below
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        loss = None if math.isnan(self.loss) else self.loss
        for callback in self._callbacks:
            callback(Progress(state.global_step, state.max_steps, loss))
        if self.stop_requested:
            control.should_training_stop = control.should_save = True
        return control

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise FailedPrecondition(
                f"the training loss is not finite at step {state.global_step}: use a lower learning rate",
                reason="DIVERGED",
            )
        self.loss = loss


class MixtureTrainer(Trainer):
    """Trains the experts of a model, and its head if it has one of its own; the backbone's weights are frozen.

    Args:
        order: which row comes when.
        task_type: what the logits are compared with. Those of a language model are rows of a classification, one for
            each target token.
        route_seed: seed of the generator that draws the routes.
        watch: sees every step.
    """

    def __init__(
        self,
        model: TaskModel | LanguageModel,
        args: TrainingArguments,
        rows: Rows | TargetRows,
        order: EpochOrder,
        experts: Mixture,
        task_type: TaskType,
        route_seed: int,
        watch: StepWatch,
        *,
        label_smoothing: float = 0.0,
        unrouted: Unrouted = "skip",
    ) -> None:
        self._task_model = model
        self._order = order
        self._experts = experts
        self._task_type = task_type
        self._route_generator = torch.Generator().manual_seed(route_seed)
        self._label_smoothing = label_smoothing
        self._unrouted = unrouted
        self._step_rows = self._step_rows_seen = self._step_targets = 0
        self._step_routes = torch.empty(0)
        # One process drives one device: DataParallel would cut the two passes of a batch apart. The count is settled
        # when the device is first asked for.
        if args.device.type == "cuda":
            args._n_gpu = 1  # noqa: SLF001 - as the library itself does for models it must not replicate
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=rows.batch)
        # Otherwise a forward that takes **kwargs would switch off the division by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(watch)

    def run(self, checkpoint: Path | None) -> int:
        """Train to the end, or until the watch stops it, from a checkpoint or step 0. Returns the last step."""
        if checkpoint is not None and checkpoint_step(checkpoint) >= self.args.max_steps:
            # The library would train one step more before it looks at the limit.
            self.load_trained(checkpoint)
            return checkpoint_step(checkpoint)
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self.state.global_step

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """The batches of one optimiser step, whose rows are counted here. Draws nothing: when a run is resumed, the
        state of the generators is restored after this call."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_rows = sum(len(batch["input_ids"]) for batch in batches)
        self._step_targets = sum(len(batch["targets"]) for batch in batches)
        self._step_rows_seen = 0
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002
    ) -> Any:
        """The loss of one batch: the task's on pass 0 (or its mean on both), plus the weighted consistency of the two.

        It is weighted by the batch's share of the targets of its step (rows, or tokens of a language model), so that
        the gradient of a step does not depend on how many batches it was cut into; the library divides by their number.
        """
        targets, num_rows = inputs["targets"], len(inputs["input_ids"])
        features = {name: tensor for name, tensor in inputs.items() if name != "targets"}
        config = self._experts.config
        if config.passes == 2:
            features = {name: torch.cat([tensor, tensor]) for name, tensor in features.items()}
        self._experts.set_routes(self._next_routes(num_rows))
        logits = model(**features)
        first = logits[: len(targets)]
        loss = task_loss(first, targets, self._task_type, label_smoothing=self._label_smoothing)
        if config.passes == 2:
            second = logits[len(targets) :]
            if config.task_loss == "both":
                other = task_loss(second, targets, self._task_type, label_smoothing=self._label_smoothing)
                loss = 0.5 * (loss + other)
            loss = loss + config.consistency * consistency_loss(first, second, self._task_type)
        loss = loss * (len(targets) * self.current_gradient_accumulation_steps / self._step_targets)
        return (loss, first) if return_outputs else loss

    def _next_routes(self, num_rows: int) -> Tensor:
        """The routes of the step's next rows. All batches of a step share one draw, as if they were one batch."""
        start = self._step_rows_seen
        if start == 0:
            self._step_routes = self._experts.draw_routes(self._route_generator, self._step_rows)
        self._step_rows_seen = start + num_rows
        return select_rows(self._step_routes, start, self._step_rows_seen)

    def get_decay_parameter_names(self, model: nn.Module, **_: Any) -> list[str]:
        """All trained matrices. The library goes by names, and would spare an adapter that sits at a LayerNorm."""
        return [name for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1]

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """The library's, which with `momentum` also steps parameters that have a history and no gradient now."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args)
        if is_new and self._unrouted == "momentum":
            optimizer.register_step_pre_hook(_fill_gradients)
        return optimizer

    def load_trained(self, checkpoint: Path) -> None:
        """Set the trained tensors to those of a checkpoint.

        Raises:
            FailedPrecondition: the checkpoint was written for other tensors.
        """
        saved = load_file(checkpoint / _WEIGHTS_FILE)
        wanted = _trained(self._task_model)
        if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in wanted.items()}:
            raise FailedPrecondition(f"{checkpoint.name} holds other tensors than this run trains")
        with torch.no_grad():
            for name, tensor in saved.items():
                wanted[name].copy_(tensor)

    def _get_train_sampler(self, *_: Any) -> EpochOrder:
        return self._order

    def _save(
        self,
        output_dir: str | None = None,
        state_dict: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> None:
        directory = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            directory.mkdir(parents=True, exist_ok=True)
            tensors = {name: p.detach().cpu().contiguous() for name, p in _trained(self._task_model).items()}
            save_file(tensors, directory / _WEIGHTS_FILE)

    def _load_from_checkpoint(
        self,
        resume_from_checkpoint: str,
        model: nn.Module | None = None,  # noqa: ARG002
    ) -> None:
        self.load_trained(Path(resume_from_checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # One file for all processes: they draw the same routes.
        if self.args.should_save:
            torch.save(self._route_generator.get_state(), Path(output_dir) / _ROUTES_FILE)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / _ROUTES_FILE, weights_only=True)
            self._route_generator.set_state(state)


def _fill_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Gradients of zero for what was stepped before: torch before 2.0 kept them, and None for what never was."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None and parameter in optimizer.state:
                parameter.grad = torch.zeros_like(parameter)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
