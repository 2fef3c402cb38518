"""What an op keeps from a call in inference mode serves a training step later: autograd saves ordinary tensors only."""

import torch

from adamix_kernels import dispatch
from adamix_kernels.gpu import training
from adamix_kernels.testing import WeightMaker

D, RANK = 48, 4


def test_a_training_step_may_follow_a_call_in_inference_mode(device):
    training._records.cache_clear()
    training._tables.cache_clear()
    maker = WeightMaker()
    weights = [maker.rows(RANK, D).to(device).requires_grad_(), maker.rows(D, RANK).to(device).requires_grad_()]
    down, up = (dispatch.RoutedProjection([weight], None, [0, 0]) for weight in weights)
    x = maker.rows(6, D).to(device).view(2, 3, D)

    def step() -> torch.Tensor:
        return dispatch.routed_low_rank(x, None, down, up, 1.0, "gelu", implementation="triton")

    with torch.inference_mode():
        before = step()
    after = step()
    after.sum().backward()
    assert torch.equal(before, after)
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in weights)
