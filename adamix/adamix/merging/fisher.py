"""The diagonal Fisher information of every expert, for merging by it (Matena and Raffel, arXiv 2111.09832).

`F_i = E_x E_{y ~ p_i(y|x)} [(d log p_i(y|x) / d theta_i)^2]`, where p_i is the adapter of all experts of number i. That
is the paper's setting, in which M whole models are merged; random routes would tell about each expert with one row in
M only, and differently for every draw. Labels are not read: y is drawn from what the expert itself predicts, one draw
a row, the same quantile for every expert.

Of a language model y are the target tokens of a row, each drawn from what the expert predicts after the source and the
reference's tokens before it. The gradient's parts for one token each then have expectation zero and do not correlate,
so the expected square of their sum is the sum of the information about every token.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix.data import TaskType
from adamix.files.mixture_file import MixtureFile, Projection
from adamix.merging.rules import Information
from adamix.merging.samples import ExpertSweep, OnProgress, Samples
from adamix.merging.settings import MergeConfig
from adamix.rows.order import Rows
from adamix.rows.targets import TargetRows

# Distributions in fp64 at a time: over a vocabulary they are large.
_AT_ONCE = 64


def information(
    mixture: MixtureFile, samples: Samples, config: MergeConfig, on_progress: OnProgress
) -> dict[str, Information]:
    """The information of every projection that is a mixture of several, by its key: means over the rows."""
    squares = {key: _Squares(p, samples.device) for key, p in mixture.projections().items() if p.num_experts > 1}
    sweep = ExpertSweep(mixture, samples, squares)
    quantiles = _draw_quantiles(sweep.rows, mixture.manifest.adapter.head.num_labels, config.seed)
    with torch.enable_grad():
        for indices, logits in sweep.logits(config.batch_size, on_progress):
            drawn = quantiles(indices).to(logits.device)
            log_likelihood(logits.float(), drawn, samples.loss_type).backward()  # type: ignore[no-untyped-call]  # of torch
    return {key: each.mean(len(sweep.rows)) for key, each in squares.items()}


def log_likelihood(logits: Tensor, quantiles: Tensor, task_type: TaskType) -> Tensor:
    """The log-likelihood, summed over rows, of labels drawn from the logits' own distribution.

    Of a regression, whose distribution is a Gaussian of fixed width, a function with the same expected square of the
    gradient: the output itself.

    Args:
        logits: `[N, C]`.
        quantiles: `[N, C]` in [0, 1): where in its distribution each label is drawn; a class reads the first one.
    """
    if task_type == "regression":
        return logits.sum()
    if task_type == "multilabel":
        labels = (quantiles < logits.detach().sigmoid()).float()
        return -F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    parts = (slice(start, start + _AT_ONCE) for start in range(0, len(logits), _AT_ONCE))
    classes = torch.cat([_draw_classes(logits[part].detach(), quantiles[part, :1]) for part in parts])
    return -F.cross_entropy(logits, classes, reduction="sum")


def _draw_classes(logits: Tensor, quantiles: Tensor) -> Tensor:
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return (cumulative <= quantiles).sum(-1).clamp(max=logits.shape[-1] - 1)


def _draw_quantiles(rows: Rows | TargetRows, num_labels: int, seed: int) -> Callable[[list[int]], Tensor]:
    """Those of some rows, `[N, C]`, or `[T, 1]` at T target tokens: the same in whatever batches the rows come."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(rows, Rows):
        drawn = torch.rand(len(rows), num_labels, generator=generator)
        return lambda indices: drawn[indices]
    ends = list(accumulate((len(row.targets) for row in rows.rows), initial=0))
    of_tokens = torch.rand(ends[-1], 1, generator=generator)
    return lambda indices: torch.cat([of_tokens[ends[index] : ends[index + 1]] for index in indices])


class _Squares:
    """Sums the squared gradient of each row, for every expert of one projection."""

    def __init__(self, projection: Projection, device: torch.device) -> None:
        shape = projection.weight.copies.shape
        self._weight = torch.zeros(shape, dtype=torch.float64, device=device)
        self._bias = None if projection.bias is None else self._weight.new_zeros(shape[:2])

    def see(self, expert: int, x: Tensor, y: Tensor, mask: Tensor) -> None:  # noqa: ARG002 - no gradient at padding
        # The rows of a batch do not meet, so the gradient at y holds that of each row apart from the others.
        inputs = x.detach().float()
        if not y.requires_grad:  # in front of it everything is frozen
            y.requires_grad_()
        y.register_hook(lambda gradient: self._add(expert, inputs, gradient))  # type: ignore[no-untyped-call]  # of torch

    def mean(self, num_rows: int) -> Information:
        bias = None if self._bias is None else (self._bias / num_rows).cpu().numpy()
        return Information((self._weight / num_rows).cpu().numpy(), bias)

    def _add(self, expert: int, inputs: Tensor, gradient: Tensor) -> None:
        rows = torch.einsum("nlo,nli->noi", gradient.float(), inputs)
        self._weight[expert] += rows.double().square().sum(0)
        if self._bias is not None:
            self._bias[expert] += gradient.double().sum(1).square().sum(0)
