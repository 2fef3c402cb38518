"""Learned merging: one weight for each expert of each projection, found by gradient descent on the training loss.

This is what the released code prepared and left out (its `expert_score_weight`): the scores begin at zero, their
softmax is the experts' share in the merged projection, and the forward pass runs on that. Experts, head and backbone
are frozen.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamix.errors import FailedPrecondition
from adamix.files.mixture_file import MixtureFile, Projection
from adamix.merging.samples import OnProgress, Samples, expert_tensors, model_with
from adamix.merging.settings import MergeConfig
from adamix.modules.heads import LanguageModel, TaskModel
from adamix.modules.losses import task_loss
from adamix.rows.order import EpochOrder, Rows


class SoftMerged(nn.Module):
    """A projection that is the mean of its experts by learned shares, `softmax(scores)`."""

    weights: Tensor
    biases: Tensor | None

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        weights, biases = expert_tensors(projection)
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)
        self.scores = nn.Parameter(torch.zeros(projection.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        shares = self.scores.softmax(0)
        bias = None if self.biases is None else torch.tensordot(shares, self.biases, 1)
        return F.linear(x, torch.tensordot(shares, self.weights, 1), bias)


@dataclass(frozen=True)
class Learned:
    """The experts' shares by projection, the steps they took, and the loss over all rows before and after."""

    weights: dict[str, list[float]]
    steps: int
    loss_before: float
    loss_after: float


def learn(mixture: MixtureFile, samples: Samples, config: MergeConfig, on_progress: OnProgress) -> Learned:
    """Learn the shares by Adam. If the loss over all rows has not fallen by then, they stay as they began: equal.

    Raises:
        FailedPrecondition: the loss is no longer finite (`DIVERGED`).
    """
    projections = {key: p for key, p in mixture.projections().items() if p.num_experts > 1}
    soft = {key: SoftMerged(projection) for key, projection in projections.items()}
    objective = _Objective(mixture, samples, model_with(mixture, samples, soft), config.batch_size)
    before = objective.mean()
    optimiser = torch.optim.Adam([module.scores for module in soft.values()], lr=config.learning_rate)
    for step, indices in enumerate(objective.batches(config.steps, config.seed), start=1):
        with torch.enable_grad():
            loss = objective(indices)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
        optimiser.step()
        on_progress(step, config.steps)
    after = objective.mean()
    if not math.isfinite(after):
        raise FailedPrecondition("the loss of the merging is not finite: use a lower --lr", reason="DIVERGED")
    if after >= before:
        return Learned({key: [1.0] * p.num_experts for key, p in projections.items()}, 0, before, before)
    weights = {key: module.scores.detach().double().softmax(0).tolist() for key, module in soft.items()}
    return Learned(weights, config.steps, before, after)


class _Objective:
    """The task's loss of a model on the samples, as in training.

    A regression is in units of its targets' deviation, a language model's loss a mean over target tokens.
    """

    def __init__(
        self, mixture: MixtureFile, samples: Samples, model: TaskModel | LanguageModel, batch_size: int
    ) -> None:
        self._rows = samples.rows(mixture)
        self._loss_type = samples.loss_type
        self._deviation = 1.0
        if isinstance(self._rows, Rows) and self._loss_type == "regression":
            self._deviation = float(self._rows.targets.std(correction=0)) or 1.0
        self._device, self._model, self._batch_size = samples.device, model, batch_size

    def __call__(self, indices: list[int]) -> Tensor:
        return self._loss(indices)[0]

    @torch.inference_mode()
    def mean(self) -> float:
        """The loss over all rows."""
        lengths = self._rows.lengths
        total, count = 0.0, 0
        for indices in self._cut(sorted(range(len(lengths)), key=lambda index: -lengths[index])):
            loss, num_targets = self._loss(indices)
            total += float(loss) * num_targets
            count += num_targets
        return total / count

    def _loss(self, indices: list[int]) -> tuple[Tensor, int]:
        """The mean over the targets of some rows, and how many these are."""
        batch = {name: tensor.to(self._device) for name, tensor in self._rows.batch(indices).items()}
        targets = batch.pop("targets")
        logits = self._model(**batch)
        if self._loss_type == "regression":
            logits, targets = logits / self._deviation, targets / self._deviation
        return task_loss(logits, targets, self._loss_type), len(targets)

    def batches(self, steps: int, seed: int) -> Iterator[list[int]]:
        """The rows of each step, epoch after epoch in a new order."""
        order = EpochOrder(self._rows.lengths, self._batch_size, seed, group_by_length=True)

        def endless() -> Iterator[list[int]]:
            for epoch in itertools.count():
                order.set_epoch(epoch)
                yield from self._cut(list(order))

        return itertools.islice(endless(), steps)

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        return (order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size))
