"""The entry point: what it refuses, what it picks, and routing in training."""

import pytest
import torch

from adamix_kernels import dispatch
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, error_ratio, on_a_copy, tolerance
from adamix_kernels.weights import RoutedProjection


@pytest.fixture
def maker():
    return WeightMaker()


def test_an_implementation_that_does_not_exist_is_refused_by_name(maker):
    with pytest.raises(ValueError, match=r"bottleneck_ has no implementation 'cuda'; it has: triton, cpu, reference"):
        dispatch.bottleneck_(maker.rows(1, 4), Segments.from_lengths([0], [1]), [None], implementation="cuda")
    with pytest.raises(ValueError, match="no implementation"):
        dispatch.head(maker.rows(1, 4), Segments.from_lengths([0], [1]), [None], implementation="fast")


def test_every_listed_implementation_runs_every_op(maker):
    segments, x = Segments.from_lengths([1, 0], [2, 1]), maker.rows(3, 8)
    adapter, update, head = maker.bottleneck(2, 8), maker.lora(2, 8, 8), maker.head(8, 3)
    gain, results = maker.rows(8), {}
    routed = [RoutedProjection([w, w + 1], None, [1, 0, 1]) for w in (maker.rows(2, 8), maker.rows(8, 2))]
    for name in dispatch.implementations("cpu"):
        with torch.no_grad():
            results[name] = [
                on_a_copy(dispatch.bottleneck_, x, segments, [None, adapter], implementation=name),
                dispatch.bottleneck_norm(x, segments, [None, adapter], gain, None, 1e-5, implementation=name),
                on_a_copy(dispatch.lora_, x, x, segments, [None, update], implementation=name),
                on_a_copy(dispatch.lora_slices_, x, x, segments, [[None, update]], [(0, 8)], implementation=name),
                *dispatch.head(x, segments, [None, head], implementation=name),
                dispatch.routed_low_rank(x[:, None], None, *routed, 0.5, "gelu", implementation=name),
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
    adapter, segments = maker.bottleneck(2, 8), Segments.from_lengths(slots, [1] * len(slots))
    with pytest.raises(ValueError, match=message):
        dispatch.bottleneck_(maker.rows(rows, 8), segments, [None, adapter])
    with pytest.raises(ValueError, match=message):
        dispatch.head(maker.rows(rows, 8), segments, [None, None])
    with pytest.raises(ValueError, match="does not fit"):
        dispatch.bottleneck_(maker.rows(1, rows, 8), segments, [None] * 9)


@pytest.mark.parametrize("window", [(-1, 3), (3, 3), (0, 9), (5, 2)])
def test_a_window_outside_the_columns_is_refused(window, maker):
    with pytest.raises(ValueError, match="window"):
        dispatch.lora_(maker.rows(1, 8), maker.rows(1, 4), Segments.from_lengths([0], [1]), [None], window)


def test_lora_refuses_rows_that_do_not_match(maker):
    with pytest.raises(ValueError, match="does not fit x"):
        dispatch.lora_(maker.rows(2, 8), maker.rows(1, 4), Segments.from_lengths([0], [1]), [None])


def projection(maker, experts, num_experts=3, shape=(4, 6), biased=True):
    """A routed projection of random experts, [out, in] each."""
    weights = [maker.matrix(*shape, fan_in=shape[1]) for _ in range(num_experts)]
    return RoutedProjection(weights, [maker.rows(shape[0]) for _ in weights] if biased else None, experts)


def as_fp64(routed):
    biases = None if routed.biases is None else [b.double() for b in routed.biases]
    return RoutedProjection([w.double() for w in routed.weights], biases, routed.experts)


class TestRoutedLowRank:
    @pytest.mark.parametrize("implementation", ["cpu", "reference"])
    def test_unrouted_experts_get_no_gradient_at_all(self, implementation, maker):
        down, up = projection(maker, [3, 1, 3], 4), projection(maker, [0, 0, 2], 3, (6, 4))
        for parameter in (*down.weights, *down.biases, *up.weights, *up.biases):
            parameter.requires_grad_()
        x = maker.rows(3, 2, 6)
        dispatch.routed_low_rank(x, x, down, up, 1.0, "gelu", implementation=implementation).sum().backward()
        for side, used in ((down, [False, True, False, True]), (up, [True, False, True])):
            assert [w.grad is not None for w in side.weights] == used
            assert [b.grad is not None for b in side.biases] == used

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("route", [[], [0], [1, 0], [2, 2, 0, 1, 0, 2]])
    def test_both_implementations_agree_with_fp64(self, dtype, route, maker):
        maker.dtype = dtype
        down, up = projection(maker, route, shape=(16, 48)), projection(maker, route[::-1], shape=(48, 16))
        x = maker.rows(len(route), 5, 48)
        wide = dispatch.routed_low_rank(
            x.double(), None, as_fp64(down), as_fp64(up), 1.0, "gelu", implementation="reference"
        )
        for name in dispatch.implementations("cpu"):
            assert_close(dispatch.routed_low_rank(x, None, down, up, 1.0, "gelu", implementation=name), wide, name)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"source": (2, 6)}, r"it must be \[groups, rows, 6\]"),
            ({"source": (2, 1, 5)}, r"it must be \[groups, rows, 6\]"),
            ({"source": (3, 1, 6)}, "each of the 3 groups needs one down and one up expert"),
            ({"down": [0]}, "each of the 2 groups needs one down and one up expert"),
            ({"rank": 5}, "down has rank 4 but up has rank 5"),
            ({"residual": (2, 1, 5)}, "the rows that come out have 6"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change, message, maker):
        down, up = (
            projection(maker, change.get("down", [0, 1])),
            projection(maker, [1, 0], 3, (6, change.get("rank", 4))),
        )
        residual = None if "residual" not in change else maker.rows(*change["residual"])
        with pytest.raises(ValueError, match=message):
            dispatch.routed_low_rank(maker.rows(*change.get("source", (2, 1, 6))), residual, down, up, 1.0, "gelu")

    @pytest.mark.parametrize(
        ("experts", "num_experts", "num_biases", "message"),
        [
            ([0, 2], 2, None, "outside 0..1"),
            ([-1, 0], 2, None, "outside 0..1"),
            ([0, 0], 0, None, "at least one weight"),
            ([0, 0], 2, 1, "as many biases"),
        ],
    )
    def test_a_route_and_its_experts_go_together(self, experts, num_experts, num_biases, message, maker):
        weights = [maker.rows(4, 3) for _ in range(num_experts)]
        biases = None if num_biases is None else [maker.rows(4) for _ in range(num_biases)]
        with pytest.raises(ValueError, match=message):
            RoutedProjection(weights, biases, experts)


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
        right = on_a_copy(dispatch.bottleneck_, x, Segments.from_lengths([1], [4]), adapters)
        wrong = on_a_copy(dispatch.bottleneck_, x, Segments.from_lengths([1, 2], [3, 1]), adapters)
        assert error_ratio(wrong, right) > 100 * tolerance(torch.float32)
