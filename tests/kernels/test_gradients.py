"""Gradients of every op by finite differences in fp64, and who gets none."""

from dataclasses import replace

import pytest
import torch

from adamix_kernels import dispatch
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, on_a_copy

SEGMENTS = Segments.from_lengths([1, 0, 2, 3], [2, 1, 2, 1])


@pytest.fixture
def maker():
    return WeightMaker(seed=2, dtype=torch.float64)


def trainable(*tensors):
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "tanh", "identity"])
def test_bottleneck(name, maker):
    other = maker.bottleneck(3, 4, biases=False)
    x, down, down_bias, up, up_bias = trainable(
        maker.rows(6, 4), maker.rows(2, 4), maker.rows(2), maker.rows(2, 4), maker.rows(4)
    )

    def op(x, down, down_bias, up, up_bias):
        weights = dispatch.BottleneckWeights(down, down_bias, up, up_bias, 0.5, name)
        return on_a_copy(dispatch.bottleneck_, x, SEGMENTS, [None, weights, other, None])

    assert torch.autograd.gradcheck(op, (x, down, down_bias, up, up_bias))


def test_bottleneck_norm(maker):
    s, down, up, gain, shift = trainable(
        maker.rows(6, 4), maker.rows(2, 4), maker.rows(2, 4), maker.rows(4), maker.rows(4)
    )

    def op(s, down, up, gain, shift):
        weights = dispatch.BottleneckWeights(down, None, up, None, 1.0, "gelu")
        return dispatch.bottleneck_norm(s, SEGMENTS, [None, weights, None, weights], gain, shift, 1e-5)

    assert torch.autograd.gradcheck(op, (s, down, up, gain, shift))


@pytest.mark.parametrize("window", [None, (1, 4)])
def test_lora(window, maker):
    width = 5 if window is None else 3
    y, x, a, b = trainable(maker.rows(6, 5), maker.rows(6, 4), maker.rows(2, 4), maker.rows(2, width))

    def op(y, x, a, b):
        weights = dispatch.LoraWeights(a, b, 0.25)
        return on_a_copy(dispatch.lora_, y, x, SEGMENTS, [None, weights, weights, None], window)

    assert torch.autograd.gradcheck(op, (y, x, a, b))


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_head(implementation, maker):
    full, narrow = maker.head(4, 3), maker.head(4, 1, dense=False)
    features, dense, out, out_bias = trainable(maker.rows(6, 4), full.dense, full.out, full.out_bias)

    def op(features, dense, out, out_bias):
        weights = [None, replace(full, dense=dense, out=out, out_bias=out_bias), narrow, None]
        return tuple(dispatch.head(features, SEGMENTS, weights, implementation=implementation))

    assert torch.autograd.gradcheck(op, (features, dense, out, out_bias))


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("routes", [([2, 0], [0, 0]), ([1, 1, 1], [0, 1, 2]), ([2, 0, 2, 1, 0], [1, 2, 1, 2, 0])])
@pytest.mark.parametrize("biased", [True, False])
def test_routed_low_rank(implementation, routes, biased, maker):
    """Of rows, residual and all experts of both sides, those that no group uses included."""
    downs, ups = routes
    rows = [maker.rows(len(downs), 2, 4), maker.rows(len(downs), 2, 3)]
    down_shapes, up_shapes = [(2, 4)] * 3 + [(2,)] * 3 * biased, [(3, 2)] * 3 + [(3,)] * 3 * biased
    tensors = trainable(*rows, *(maker.rows(*shape) for shape in (*down_shapes, *up_shapes)))

    def op(source, residual, *parameters):
        sides = parameters[: len(down_shapes)], parameters[len(down_shapes) :]
        projections = (
            dispatch.RoutedProjection(side[:3], side[3:] or None, experts)
            for side, experts in zip(sides, (downs, ups), strict=True)
        )
        return dispatch.routed_low_rank(source, residual, *projections, 0.5, "tanh", implementation=implementation)

    assert torch.autograd.gradcheck(op, tuple(tensors))


def test_without_an_implementation_named_autograd_gets_one_it_can_follow(maker):
    weights = maker.bottleneck(2, 4)
    trainable(weights.down)
    x = maker.rows(6, 4)
    on_a_copy(dispatch.bottleneck_, x, SEGMENTS, [None, weights, None, None]).sum().backward()
    assert weights.down.grad is not None
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        on_a_copy(dispatch.bottleneck_, x, SEGMENTS, [None, weights, None, None], implementation="cpu")
