"""The reference ops against the formulas, worked out element by element in Python floats."""

import math

import pytest
import torch
import torch.nn.functional as F

from adamix_kernels import reference
from adamix_kernels.dispatch import BottleneckWeights, HeadWeights, LoraWeights, activation
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, error_ratio, on_a_copy

ACTIVATIONS = {
    "gelu": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
    "gelu_tanh": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "relu": lambda v: max(v, 0.0),
    "silu": lambda v: v / (1 + math.exp(-v)),
    "tanh": math.tanh,
    "identity": lambda v: v,
}


def times(matrix, vector, bias=None):
    """matrix @ vector + bias, in lists."""
    products = [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]
    return [p + b for p, b in zip(products, bias or [0.0] * len(products), strict=True)]


def adapted(row, weights):
    """`scale * (act(down row + down_bias) up^T + up_bias)` of one row."""
    down_bias = None if weights.down_bias is None else weights.down_bias.tolist()
    up_bias = None if weights.up_bias is None else weights.up_bias.tolist()
    hidden = [ACTIVATIONS[weights.activation](v) for v in times(weights.down.tolist(), row, down_bias)]
    return [weights.scale * v for v in times(weights.up.T.tolist(), hidden, up_bias)]


def normed(row, weight, bias, eps):
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + eps)
    return [(v - mean) / deviation * w + b for v, w, b in zip(row, weight, bias, strict=True)]


def assert_equal_fp64(actual, expected_rows):
    assert error_ratio(actual, torch.tensor(expected_rows, dtype=torch.float64)) < 1e-14


@pytest.fixture
def maker():
    return WeightMaker(seed=3, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_what_their_names_say(name, maker):
    values = maker.rows(50)
    assert_equal_fp64(activation(name)(values), [ACTIVATIONS[name](v) for v in values.tolist()])


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_bottleneck_is_the_formula(name, biases, maker):
    weights = [None, maker.bottleneck(3, 5, scale=0.7, activation=name, biases=biases), maker.bottleneck(2, 5)]
    x = maker.rows(6, 5)
    y = on_a_copy(reference.bottleneck_, x, Segments.from_lengths([1, 0, 2], [3, 1, 2]), weights)
    slot_of_row = [1, 1, 1, 0, 2, 2]
    expected = [
        row if slot == 0 else [v + a for v, a in zip(row, adapted(row, weights[slot]), strict=True)]
        for row, slot in zip(x.tolist(), slot_of_row, strict=True)
    ]
    assert_equal_fp64(y, expected)


def test_bottleneck_norm_is_the_formula(maker):
    weights = [None, maker.bottleneck(3, 5, scale=2.0)]
    s, gain, shift = maker.rows(4, 5), maker.rows(5), maker.rows(5)
    y = reference.bottleneck_norm(s, Segments.from_lengths([1, 0], [3, 1]), weights, gain, shift, 1e-5)
    norm = (gain.tolist(), shift.tolist(), 1e-5)
    expected = []
    for position, row in enumerate(s.tolist()):
        change = adapted(normed(row, *norm), weights[1]) if position < 3 else [0.0] * 5
        expected.append(normed([v + a for v, a in zip(row, change, strict=True)], *norm))
    assert_equal_fp64(y, expected)


@pytest.mark.parametrize("window", [None, (2, 5)])
def test_lora_is_the_formula_on_its_window(window, maker):
    first, last = window or (0, 7)
    weights = [None, maker.lora(2, 4, last - first, scale=0.3)]
    x, y = maker.rows(3, 4), maker.rows(3, 7)
    expected = y.tolist()
    for row in range(2):
        update = times(weights[1].b.T.tolist(), times(weights[1].a.tolist(), x[row].tolist()))
        for column, value in enumerate(update):
            expected[row][first + column] += 0.3 * value
    segments = Segments.from_lengths([1, 0], [2, 1])
    assert reference.lora_(y, x, segments, weights, window) is y
    assert_equal_fp64(y, expected)


def test_head_applies_the_parts_it_has(maker):
    full = maker.head(4, 3)
    no_dense = maker.head(4, 2, dense=False)
    embedding = HeadWeights(None, None, "tanh", None, None)
    dense_only = HeadWeights(full.dense, full.dense_bias, None, None, None)
    features = maker.rows(7, 4)
    segments = Segments.from_lengths([1, 2, 3, 4, 0], [2, 1, 1, 2, 1])
    outputs = reference.head(features, segments, [None, full, no_dense, embedding, dense_only])
    assert [tuple(o.shape) for o in outputs] == [(2, 3), (1, 2), (1, 4), (2, 4), (1, 4)]
    rows = features.tolist()
    hidden = [[math.tanh(v) for v in times(full.dense.tolist(), row, full.dense_bias.tolist())] for row in rows[:2]]
    assert_equal_fp64(outputs[0], [times(full.out.tolist(), row, full.out_bias.tolist()) for row in hidden])
    assert_equal_fp64(outputs[1], [times(no_dense.out.tolist(), rows[2], no_dense.out_bias.tolist())])
    assert torch.equal(outputs[2], features[3:4])
    expected = [times(full.dense.tolist(), row, full.dense_bias.tolist()) for row in rows[4:6]]
    assert_equal_fp64(outputs[3], expected)
    assert torch.equal(outputs[4], features[6:])


def test_routed_linear_gives_each_group_its_expert(maker):
    x, weights, biases = maker.rows(3, 2, 4), [maker.rows(5, 4) for _ in range(3)], [maker.rows(5) for _ in range(3)]
    y = reference.routed_linear(x, [2, 0, 2], weights, biases)
    expected = [
        [times(weights[e].tolist(), row, biases[e].tolist()) for row in x[g].tolist()] for g, e in enumerate([2, 0, 2])
    ]
    assert_equal_fp64(y, expected)
    assert reference.routed_linear(x[:0], [], weights).shape == (0, 2, 5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: BottleneckWeights(torch.ones(2), None, torch.ones(2, 3), None, 1.0, "gelu"),
        lambda: BottleneckWeights(torch.ones(2, 3), None, torch.ones(3, 2), None, 1.0, "gelu"),
        lambda: BottleneckWeights(torch.ones(2, 3), torch.ones(3), torch.ones(2, 3), None, 1.0, "gelu"),
        lambda: BottleneckWeights(torch.ones(2, 3), None, torch.ones(2, 3), torch.ones(2), 1.0, "gelu"),
        lambda: BottleneckWeights(torch.ones(2, 3), None, torch.ones(2, 3), None, 1.0, "softmax"),
        lambda: LoraWeights(torch.ones(2, 3), torch.ones(3, 4), 1.0),
        lambda: LoraWeights(torch.ones(2), torch.ones(2, 4), 1.0),
        lambda: HeadWeights(torch.ones(3, 3), torch.ones(2), None, None, None),
        lambda: HeadWeights(torch.ones(3, 3), None, None, torch.ones(2, 4), None),
        lambda: HeadWeights(None, None, "swish", torch.ones(2, 4), None),
        lambda: HeadWeights(None, None, None, torch.ones(2, 4), torch.ones(4)),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(build):
    with pytest.raises(ValueError, match=r"shape|rank|activation|features"):
        build()


def test_identity_activation_makes_a_bottleneck_a_lora(maker):
    weights = maker.bottleneck(2, 4, activation="identity", biases=False)
    x = maker.rows(3, 4)
    segments = Segments.from_lengths([1], [3])
    as_lora = on_a_copy(reference.lora_, x, x, segments, [None, LoraWeights(weights.down, weights.up, weights.scale)])
    assert error_ratio(on_a_copy(reference.bottleneck_, x, segments, [None, weights]), as_lora) < 1e-15


def test_layer_norm_without_bias_is_allowed(maker):
    s, gain = maker.rows(2, 4), maker.rows(4)
    y = reference.bottleneck_norm(s, Segments.from_lengths([0], [2]), [None], gain, None, 1e-5)
    assert torch.equal(y, F.layer_norm(s, (4,), gain, None, 1e-5))
