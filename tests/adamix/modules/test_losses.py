"""The losses against formulas written out by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from adamix.modules.losses import consistency_loss, task_loss

_GENERATOR = torch.Generator().manual_seed(0)


def _logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_GENERATOR).requires_grad_()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of KL(p || q), of probabilities."""
    return (p * (p / q).log()).sum(-1).mean()


def test_the_task_losses_are_those_of_torch() -> None:
    z = _logits(5, 3)
    classes = torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(task_loss(z, classes, "classification"), F.cross_entropy(z, classes))
    hot = torch.randint(2, (5, 3), generator=_GENERATOR).float()
    torch.testing.assert_close(task_loss(z, hot, "multilabel"), F.binary_cross_entropy_with_logits(z, hot))
    values = torch.randn(5, generator=_GENERATOR)
    torch.testing.assert_close(task_loss(z[:, :1], values, "regression"), F.mse_loss(z[:, 0], values))


def test_consistency_is_half_the_symmetric_kl() -> None:
    first, second = _logits(4, 3), _logits(4, 3)
    p1, p2 = first.softmax(-1), second.softmax(-1)
    expected = 0.5 * (_kl(p2, p1) + _kl(p1, p2))
    torch.testing.assert_close(consistency_loss(first, second, "classification"), expected)


def test_the_gradient_stops_at_the_target_side() -> None:
    first, second = _logits(4, 3), _logits(4, 3)
    consistency_loss(first, second, "classification").backward()
    # KL(sg(p) || softmax(z)) has the gradient (softmax(z) - p) / rows, and nothing reaches the target.
    expected = 0.5 * (first.softmax(-1) - second.softmax(-1)).detach() / 4
    torch.testing.assert_close(first.grad, expected)
    torch.testing.assert_close(second.grad, -expected)


def test_equal_passes_are_consistent() -> None:
    z = _logits(4, 3)
    for task_type in ("classification", "multilabel", "regression"):
        assert consistency_loss(z, z.clone(), task_type).item() == 0.0


def test_multilabel_consistency_is_the_kl_of_each_label() -> None:
    first, second = _logits(4, 3), _logits(4, 3)
    p1, p2 = first.sigmoid(), second.sigmoid()
    rows = [torch.stack([p, 1 - p], -1) for p in (p1, p2)]
    expected = 0.5 * (
        _kl(rows[1].flatten(0, 1), rows[0].flatten(0, 1)) + _kl(rows[0].flatten(0, 1), rows[1].flatten(0, 1))
    )
    torch.testing.assert_close(consistency_loss(first, second, "multilabel"), expected)


def test_regression_consistency_is_not_the_degenerate_kl_of_one_logit() -> None:
    first, second = _logits(4, 1), _logits(4, 1)
    loss = consistency_loss(first, second, "regression")
    torch.testing.assert_close(loss, F.mse_loss(first, second))
    loss.backward()
    torch.testing.assert_close(first.grad, (first - second).detach() / 4)


def test_masked_tokens_do_not_count() -> None:
    first, second = _logits(2, 3, 5), _logits(2, 3, 5)
    targets = torch.randint(5, (2, 3), generator=_GENERATOR)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kept = [z[mask] for z in (first, second)]
    torch.testing.assert_close(
        task_loss(first, targets, "classification", mask), task_loss(kept[0], targets[mask], "classification")
    )
    torch.testing.assert_close(
        consistency_loss(first, second, "classification", mask), consistency_loss(*kept, "classification")
    )


def test_half_precision_logits_are_compared_in_fp32() -> None:
    first, second = _logits(4, 3).detach().bfloat16(), _logits(4, 3).detach().bfloat16()
    assert consistency_loss(first, second, "classification").dtype == torch.float32
    assert task_loss(first, torch.zeros(4, dtype=torch.int64), "classification").dtype == torch.float32
