"""The loss of one training step: the task's loss on pass 0, and the consistency of two passes (AdaMix, eq. 3).

Every term is a mean over rows, computed in fp32. Rows are examples, or tokens where the logits carry a token
dimension; then `mask` says which tokens count. Nothing here knows models or routes.

Shapes: B rows, C labels, `...` an optional token dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix.data.task import TaskType


def task_loss(
    logits: Tensor,
    targets: Tensor,
    task_type: TaskType,
    mask: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The supervised loss, a scalar.

    Args:
        logits: `[B, ..., C]`; C = 1 for a regression.
        targets: class ids int64 `[B, ...]`, multi-hot floats `[B, ..., C]`, or regression targets `[B, ...]`.
        mask: bool `[B, ...]`; rows that count.
        label_smoothing: of a classification: the share of the target's probability that is spread over all classes.
    """
    logits = logits.float()
    if task_type == "classification":
        rows = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), reduction="none", label_smoothing=label_smoothing
        ).view(targets.shape)
    elif task_type == "multilabel":
        rows = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(-1)
    else:
        rows = F.mse_loss(logits.squeeze(-1), targets.float(), reduction="none")
    return _mean_rows(rows, mask)


def consistency_loss(first: Tensor, second: Tensor, task_type: TaskType, mask: Tensor | None = None) -> Tensor:
    """How far the two passes disagree, a scalar.

    Classification: `0.5 * (KL(sg(p2) || p1) + KL(sg(p1) || p2))`, where sg stops the gradient at the target side, as
    the released code does. Multi-label: the same for the Bernoulli distribution of each label, averaged over labels.
    Regression: the KL of one softmax logit is always 0 (the release's STS-B runs), so the symmetric squared
    difference with the same stops is used instead.

    Args:
        first, second: logits `[B, ..., C]` of the same rows in the two passes.
        mask: bool `[B, ...]`; rows that count.
    """
    first, second = first.float(), second.float()
    if task_type == "regression":
        rows = 0.5 * ((first - second.detach()).square() + (second - first.detach()).square()).sum(-1)
        return _mean_rows(rows, mask)
    if task_type == "multilabel":
        # Two-class log-probabilities of each label: the KL below then is that of a Bernoulli.
        log_1, log_2 = (torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], dim=-1) for z in (first, second))
    else:
        log_1, log_2 = first.log_softmax(-1), second.log_softmax(-1)
    rows = 0.5 * (_divergence(log_2.detach(), log_1) + _divergence(log_1.detach(), log_2))
    if task_type == "multilabel":
        rows = rows.mean(-1)
    return _mean_rows(rows, mask)


def _divergence(target: Tensor, log_probs: Tensor) -> Tensor:
    """`KL(exp(target) || exp(log_probs))` over the last dimension."""
    return F.kl_div(log_probs, target, reduction="none", log_target=True).sum(-1)


def _mean_rows(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows.mean()
    return torch.where(mask, rows, 0.0).sum() / mask.sum().clamp(min=1)
