"""The entry point: what it refuses, what it picks, and routing in training."""

import pytest
import torch

from adamix_kernels import dispatch
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, error_ratio, tolerance


@pytest.fixture
def maker():
    return WeightMaker()


def test_an_implementation_that_does_not_exist_is_refused_by_name(maker):
    with pytest.raises(ValueError, match=r"bottleneck has no implementation 'cuda'; it has: triton, cpu, reference"):
        dispatch.bottleneck(maker.rows(1, 4), Segments.from_rows([0]), [None], implementation="cuda")
    with pytest.raises(ValueError, match="no implementation"):
        dispatch.routed_linear(maker.rows(1, 1, 4), torch.zeros(1).long(), [maker.rows(2, 4)], implementation="fast")


def test_every_listed_implementation_runs_every_op(maker):
    segments, x = Segments.from_lengths([1, 0], [2, 1]), maker.rows(3, 8)
    adapter, update, head = maker.bottleneck(2, 8), maker.lora(2, 8, 8), maker.head(8, 3)
    gain, results = maker.rows(8), {}
    for name in dispatch.implementations("cpu"):
        with torch.no_grad():
            results[name] = [
                dispatch.bottleneck(x, segments, [None, adapter], implementation=name),
                dispatch.bottleneck_norm(x, segments, [None, adapter], gain, None, 1e-5, implementation=name),
                dispatch.lora(x, x, segments, [None, update], implementation=name),
                dispatch.lora_(x.clone(), x, segments, [None, update], implementation=name),
                *dispatch.head(x, segments, [None, head], implementation=name),
                dispatch.routed_linear(
                    x[:, None], torch.tensor([1, 0, 1]), [head.out, head.out + 1], implementation=name
                ),
            ]
    assert set(results) == {"cpu", "reference"}
    for fast, plain in zip(results["cpu"], results["reference"], strict=True):
        assert error_ratio(fast, plain) < 2 * tolerance(torch.float32)


def test_devices_without_fast_forms_get_the_reference():
    assert dispatch.implementations("mps") == ("reference",)
    assert dispatch.implementations("cuda")[0] == "triton"


@pytest.mark.parametrize(
    ("rows", "slots", "message"),
    [(3, [1, 1], "does not fit"), (2, [1, 2], "slot 2 but there are weights for 2"), (2, [0, 7], "slot 7")],
)
def test_a_batch_that_does_not_fit_its_segments_is_refused(rows, slots, message, maker):
    adapter = maker.bottleneck(2, 8)
    with pytest.raises(ValueError, match=message):
        dispatch.bottleneck(maker.rows(rows, 8), Segments.from_rows(slots), [None, adapter])
    with pytest.raises(ValueError, match=message):
        dispatch.head(maker.rows(rows, 8), Segments.from_rows(slots), [None, None])
    with pytest.raises(ValueError, match="does not fit"):
        dispatch.bottleneck(maker.rows(1, rows, 8), Segments.from_rows(slots), [None] * 9)


@pytest.mark.parametrize("window", [(-1, 3), (3, 3), (0, 9), (5, 2)])
def test_a_window_outside_the_columns_is_refused(window, maker):
    with pytest.raises(ValueError, match="window"):
        dispatch.lora_(maker.rows(1, 8), maker.rows(1, 4), Segments.from_rows([0]), [None], window)


def test_lora_refuses_rows_that_do_not_match(maker):
    with pytest.raises(ValueError, match="does not fit x"):
        dispatch.lora(maker.rows(2, 8), maker.rows(1, 4), Segments.from_rows([0]), [None])


class TestRoutedLinear:
    def test_unrouted_experts_get_no_gradient_at_all(self, maker):
        weights = [maker.rows(4, 3).requires_grad_() for _ in range(4)]
        biases = [maker.rows(4).requires_grad_() for _ in range(4)]
        route = torch.tensor([3, 1, 3])
        dispatch.routed_linear(maker.rows(3, 2, 3), route, weights, biases).sum().backward()
        assert [w.grad is not None for w in weights] == [False, True, False, True]
        assert [b.grad is not None for b in biases] == [False, True, False, True]

    def test_one_weight_is_shared_by_all_groups_whatever_the_route(self, maker):
        x, weight, bias = maker.rows(3, 2, 4), maker.rows(5, 4), maker.rows(5)
        y = dispatch.routed_linear(x, torch.tensor([7, -1, 0]), [weight], [bias])
        assert_close(y, torch.nn.functional.linear(x.double(), weight.double(), bias.double()))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("route", [[], [0], [1, 0], [2, 2, 0, 1, 0, 2]])
    def test_both_implementations_agree_with_fp64(self, dtype, route, maker):
        maker.dtype = dtype
        x, weights = maker.rows(len(route), 5, 48), [maker.matrix(16, 48, 48) for _ in range(3)]
        wide = dispatch.routed_linear(
            x.double(), torch.tensor(route).long(), [w.double() for w in weights], implementation="reference"
        )
        for name in dispatch.implementations("cpu"):
            assert_close(
                dispatch.routed_linear(x, torch.tensor(route).long(), weights, implementation=name), wide, name
            )

    @pytest.mark.parametrize(
        ("x_shape", "route", "experts", "biases", "message"),
        [
            ((2, 3), [0, 0], 2, None, "groups, rows, features"),
            ((2, 1, 3), [0, 2], 2, None, "outside 0..1"),
            ((2, 1, 3), [-1, 0], 2, None, "outside 0..1"),
            ((2, 1, 3), [0], 2, None, "one entry for each of the 2 groups"),
            ((2, 1, 3), [0, 0], 0, None, "at least one weight"),
            ((2, 1, 3), [0, 0], 2, 1, "as many biases"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, x_shape, route, experts, biases, message, maker):
        weights = [maker.rows(4, 3) for _ in range(experts)]
        given = None if biases is None else [maker.rows(4) for _ in range(biases)]
        with pytest.raises(ValueError, match=message):
            dispatch.routed_linear(maker.rows(*x_shape), torch.tensor(route), weights, given)

    def test_a_route_of_another_dtype_is_refused(self, maker):
        with pytest.raises(ValueError, match="int64"):
            dispatch.routed_linear(maker.rows(1, 1, 3), torch.zeros(1), [maker.rows(4, 3)] * 2)


class TestErrorMeasure:
    def test_it_is_relative_and_sees_nan_and_shapes(self):
        ones = torch.ones(4, dtype=torch.float64)
        assert error_ratio(ones * 1.5, ones) == pytest.approx(0.5)
        assert error_ratio(ones * 0, ones * 0) == 0.0
        with pytest.raises(AssertionError, match="nan"):
            assert_close(ones * float("nan"), ones)
        with pytest.raises(AssertionError, match="inf"):
            assert_close(ones, ones * 0)
        with pytest.raises(AssertionError, match="shape"):
            error_ratio(ones, ones[:3])

    def test_a_neighbouring_slot_is_far_outside_the_tolerance(self, maker):
        x, adapters = maker.rows(4, 32), [None, maker.bottleneck(4, 32), maker.bottleneck(4, 32)]
        right = dispatch.bottleneck(x, Segments.from_rows([1] * 4), adapters)
        wrong = dispatch.bottleneck(x, Segments.from_rows([1, 1, 1, 2]), adapters)
        assert error_ratio(wrong, right) > 100 * tolerance(torch.float32)
