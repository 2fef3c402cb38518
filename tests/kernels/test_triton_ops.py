"""The Triton ops against the reference in fp64, on a CUDA device or in Triton's interpreter.

Beside their results: what they must leave alone, to the bit. What lies around rows that change in place is guarded.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adamix_kernels import dispatch
from adamix_kernels.gpu import ops
from adamix_kernels.plans import Plan
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, assert_close, cast, error_ratio, on_a_copy, tolerance
from adamix_kernels.weights import ACTIVATIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Blocks so small that features and their parts take several, and end amid one.
PLANS = {
    "fused": Plan("fused", block_m=16, block_h=32, num_warps=4, num_stages=2),
    "split": Plan("split", block_m=16, block_h=32, num_warps=4, num_stages=2, block_n=64, splits=2),
}


@pytest.fixture(params=PLANS)
def kernel(request, monkeypatch) -> str:
    """Makes every op run as this kernel, unless the op itself asks for one; in tall tiles where rows are many."""

    def pick(op, architecture, facts, only=None):
        return replace(PLANS[only or request.param], block_m=64 if facts.rows > 64 else 16)

    monkeypatch.setattr(ops, "pick", pick)
    return request.param


class Guarded:
    """Rows amid a larger array of which no other element may change."""

    def __init__(self, rows: Tensor, device: str) -> None:
        # More rows on both sides than a tile has.
        self.array = torch.full((len(rows) + 128, rows.shape[1] + 24), 7.0, dtype=rows.dtype, device=device)
        self.rows = self.array[64 : 64 + len(rows), 8 : 8 + rows.shape[1]]
        self.rows.copy_(rows)

    def assert_intact(self) -> None:
        around = self.array.clone()
        around[64 : 64 + len(self.rows), 8 : 8 + self.rows.shape[1]] = 7.0
        assert bool((around == 7.0).all())


def bits(x: Tensor) -> Tensor:
    """The same numbers as integers, so that -0.0 is not 0.0 and a NaN equals itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


def exact(op, x, segments, weights, *arguments):
    """The op's result in fp64, from rows and weights as they are."""
    wide = [each.double() if isinstance(each, Tensor) else each for each in arguments]
    weights = cast(weights, torch.float64, str(x.device))
    return on_a_copy(op, x.double(), segments, weights, *wide, implementation="reference")


def exact_lora(y, x, segments, weights, window=None):
    wide = cast(weights, torch.float64, str(y.device))
    return on_a_copy(dispatch.lora_, y.double(), x.double(), segments, wide, window, implementation="reference")


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [*(("fused", dtype) for dtype in DTYPES), ("split", torch.float32), ("split", torch.bfloat16)],
    ids=str,
    indirect=["kernel"],
)
def test_bottleneck(shape, dtype, kernel, make_batch, device):
    batch = make_batch(shape, dtype)
    batch.x[:, 0] = -0.0
    x, weights = batch.x.to(device), cast(batch.bottlenecks, dtype, device)
    inside = Guarded(x, device)
    assert dispatch.bottleneck_(inside.rows, batch.segments, weights, implementation="triton") is inside.rows
    assert_close(inside.rows, exact(dispatch.bottleneck_, x, batch.segments, weights))
    inside.assert_intact()
    identity = batch.identity_rows.to(device)
    assert torch.equal(bits(inside.rows[identity]), bits(x[identity]))


@pytest.mark.parametrize("kernel", ["fused"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "has_bias"), [(torch.float32, True), (torch.float16, False), (torch.bfloat16, True)], ids=str
)
def test_bottleneck_norm(shape, dtype, has_bias, kernel, make_batch, device):
    batch = make_batch(shape, dtype)
    s, weights = batch.x.to(device), cast(batch.bottlenecks, dtype, device)
    maker = WeightMaker(seed=1, dtype=dtype)
    gain, bias = maker.rows(s.shape[1]).to(device), maker.rows(s.shape[1]).to(device) if has_bias else None
    y = dispatch.bottleneck_norm(s, batch.segments, weights, gain, bias, 1e-5, implementation="triton")
    assert_close(y, exact(dispatch.bottleneck_norm, s, batch.segments, weights, gain, bias, 1e-5))
    assert torch.equal(bits(s.cpu()), bits(batch.x))


def test_the_norm_of_rows_far_from_zero_keeps_its_digits(device):
    maker = WeightMaker()
    s, gain = maker.rows(5, 96).to(device) + 300, torch.ones(96, device=device)
    weights = cast([None, maker.bottleneck(5, 96)], torch.float32, device)
    segments = Segments.from_lengths([1, 0], [3, 2])
    y = dispatch.bottleneck_norm(s, segments, weights, gain, None, 1e-5, implementation="triton")
    # fp32 gives a row near 300 only eight digits behind a deviation of one, which is what the limit allows for.
    assert error_ratio(y, exact(dispatch.bottleneck_norm, s, segments, weights, gain, None, 1e-5)) < 300 * 2**-22


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("fused", torch.bfloat16), ("split", torch.float16)], ids=str, indirect=["kernel"]
)
def test_lora(shape, dtype, kernel, make_batch, device):
    batch = make_batch(shape, dtype)
    batch.y[:, 0] = -0.0
    x, y, weights = batch.x.to(device), batch.y.to(device), cast(batch.loras, dtype, device)
    inside = Guarded(y, device)
    assert dispatch.lora_(inside.rows, x, batch.segments, weights, implementation="triton") is inside.rows
    assert_close(inside.rows, exact_lora(y, x, batch.segments, weights))
    inside.assert_intact()
    identity = batch.identity_rows.to(device)
    assert torch.equal(bits(inside.rows[identity]), bits(y[identity]))
    assert torch.equal(bits(x.cpu()), bits(batch.x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_unequal_widths_and_ranks_update_their_windows_only(dtype, kernel, device):
    maker = WeightMaker(dtype=dtype)
    windows = [(0, 48), (56, 72), (72, 80)]
    slices = [
        [None, maker.lora(3, 96, 48), maker.lora(20, 96, 48, scale=0.5)],
        [None, maker.lora(16, 96, 16), None],
        [None, None, None],
    ]
    slices = [cast(each, dtype, device) for each in slices]
    segments = Segments.from_lengths([2, 1, 0, 1], [18, 1, 3, 5])
    x, y = maker.rows(27, 96).to(device), maker.rows(27, 96)
    inside = Guarded(y, device)
    dispatch.lora_slices_(inside.rows, x, segments, slices, windows, implementation="triton")
    expected = y.to(device).double()
    for of_slice, window in zip(slices, windows, strict=True):
        expected = exact_lora(expected, x, segments, of_slice, window)
        assert_close(inside.rows[:, slice(*window)], expected[:, slice(*window)], f"columns {window}")
    for columns in (slice(48, 56), slice(72, 96)):
        assert torch.equal(bits(inside.rows[:, columns]), bits(y[:, columns].to(device)))
    inside.assert_intact()


@pytest.mark.parametrize("window", [(3, 14), (8, 13), (1, 9)])
def test_windows_may_begin_and_end_anywhere(window, kernel, device):
    maker = WeightMaker()
    weights = cast([None, maker.lora(5, 48, window[1] - window[0])], torch.float32, device)
    x, y, segments = maker.rows(4, 48).to(device), maker.rows(4, 20), Segments.from_lengths([1, 0], [3, 1])
    inside = Guarded(y, device)
    dispatch.lora_(inside.rows, x, segments, weights, window, implementation="triton")
    assert_close(inside.rows, exact_lora(y.to(device), x, segments, weights, window))
    outside = [column for column in range(20) if not window[0] <= column < window[1]]
    assert torch.equal(inside.rows[:, outside].cpu(), y[:, outside])
    inside.assert_intact()


@pytest.mark.parametrize(
    ("features", "dtype"),
    [(8, torch.bfloat16), (20, torch.float16), (48, torch.float32), (64, torch.float16), (96, torch.bfloat16)],
    ids=str,
)
def test_ranks_of_all_classes_mix_in_one_launch(features, dtype, kernel, device):
    maker = WeightMaker(dtype=dtype)
    ranks = (1, 5, 16, 17, 40, 100, 200, 256)
    weights = cast([None, *(maker.bottleneck(rank, features) for rank in ranks)], dtype, device)
    segments = Segments.from_lengths([8, 1, 4, 0, 2, 7, 3, 6, 5], [2, 1, 1, 2, 3, 1, 1, 2, 1])
    x = maker.rows(14, features).to(device)
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    wide = exact(dispatch.bottleneck_, x, segments, weights)
    for slot, start, end in segments:
        assert_close(y[start:end], wide[start:end], f"slot {slot}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_the_width_of_a_backbone_as_the_tables_say(dtype, device):
    maker = WeightMaker(dtype=dtype)
    weights = cast([None, maker.bottleneck(64, 768, scale=0.5), maker.bottleneck(24, 768)], dtype, device)
    segments, x = Segments.from_lengths([2, 0, 1], [3, 1, 5]), maker.rows(9, 768).to(device)
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    assert_close(y, exact(dispatch.bottleneck_, x, segments, weights))


def test_long_segments_take_tall_tiles_as_the_tables_say(device):
    maker = WeightMaker(dtype=torch.bfloat16)
    weights = cast([None, maker.bottleneck(40, 64), maker.bottleneck(3, 64)], torch.bfloat16, device)
    segments, x = Segments.from_lengths([1, 2], [67, 65]), maker.rows(132, 64).to(device)
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    assert_close(y, exact(dispatch.bottleneck_, x, segments, weights))


# The interpreter says so when numbers overflow, which is what the test is about.
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, kernel, device):
    maker = WeightMaker()
    # Beside an adapter with another one, since a launch may mix them; far from zero, where exponentials overflow.
    weights = cast(
        [None, maker.bottleneck(5, 64, activation=activation), maker.bottleneck(5, 64)], torch.float32, device
    )
    segments, x = Segments.from_lengths([1, 2], [4, 2]), 4 * maker.rows(6, 64).to(device)
    x[0] *= 100
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    wide = exact(dispatch.bottleneck_, x, segments, weights)
    for row in range(6):
        assert_close(y[row], wide[row], f"{activation}, row {row}")


def test_down_and_up_projections_of_different_slots(kernel, device):
    maker = WeightMaker()
    adapters = [
        None,
        maker.bottleneck(5, 64),
        maker.bottleneck(5, 64, scale=0.5, activation="relu", biases=False),
        None,
    ]
    adapters += [maker.bottleneck(17, 64, scale=2.0), maker.bottleneck(17, 64, biases=False)]
    weights = cast(adapters, torch.float32, device)
    segments = Segments.from_lengths([1, 2, 0, 4, 1, 5], [3, 1, 2, 17, 2, 1], up_slots=[2, 1, 0, 5, 1, 4])
    x = maker.rows(26, 64).to(device)
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    wide = exact(dispatch.bottleneck_, x, segments, weights)
    for position, (_, start, end) in enumerate(segments):
        assert_close(y[start:end], wide[start:end], f"segment {position}")
    loras = cast([None, *(maker.lora(3, 64, 48, scale=scale) for scale in (1.0, 0.5))], torch.float32, device)
    segments, base = Segments.from_lengths([2, 1], [20, 6], up_slots=[1, 2]), maker.rows(26, 48).to(device)
    updated = on_a_copy(dispatch.lora_, base, x, segments, loras, implementation="triton")
    assert_close(updated, exact_lora(base, x, segments, loras))


def test_fp32_rows_with_weights_of_half_the_width_stay_fp32(kernel, device):
    maker = WeightMaker()
    weights = cast([None, maker.bottleneck(5, 64)], torch.bfloat16, device)
    x, segments = maker.rows(5, 64).to(device), Segments.from_lengths([1, 0], [3, 2])
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    assert y.dtype == torch.float32
    assert error_ratio(y, exact(dispatch.bottleneck_, x, segments, weights)) < tolerance(torch.bfloat16)
    assert torch.equal(y[3:], x[3:])


def test_rows_may_have_gaps_or_lie_in_columns(kernel, device):
    maker = WeightMaker()
    weights = cast([None, maker.bottleneck(5, 48), maker.bottleneck(16, 48)], torch.float32, device)
    segments, packed = Segments.from_lengths([1, 0, 2], [3, 2, 18]), maker.rows(23, 48).to(device)
    expected = on_a_copy(dispatch.bottleneck_, packed, segments, weights, implementation="triton")
    inside, transposed = Guarded(packed, device), packed.t().contiguous().t()
    assert torch.equal(dispatch.bottleneck_(inside.rows, segments, weights, implementation="triton"), expected)
    inside.assert_intact()
    # What is only read may even lie upon itself.
    loras = cast([None, maker.lora(5, 48, 48), maker.lora(3, 48, 48)], torch.float32, device)
    for x in (Guarded(packed, device).rows, transposed, packed[:1].expand(23, -1)):
        y = on_a_copy(dispatch.lora_, packed, x, segments, loras, implementation="triton")
        assert_close(y, exact_lora(packed, x, segments, loras))
    # Rows that lie in columns are no rows to the kernels: the plain forms take them, in place too.
    assert dispatch.bottleneck_(transposed, segments, weights, implementation="triton") is transposed
    assert_close(transposed, exact(dispatch.bottleneck_, packed, segments, weights))


def test_what_the_kernels_do_not_take_runs_in_plain_forms(device):
    maker = WeightMaker()
    segments, x = Segments.from_lengths([1, 0], [3, 1]), maker.rows(4, 48).to(device)
    tall = cast([None, maker.bottleneck(257, 48)], torch.float32, device)
    assert_close(
        on_a_copy(dispatch.bottleneck_, x, segments, tall, implementation="triton"),
        exact(dispatch.bottleneck_, x, segments, tall),
    )
    wide = cast([None, maker.bottleneck(5, 48)], torch.float64, device)
    y = on_a_copy(dispatch.bottleneck_, x.double(), segments, wide, implementation="triton")
    assert_close(y, exact(dispatch.bottleneck_, x, segments, wide))


def test_a_row_depends_on_no_other_row(kernel, device):
    maker = WeightMaker()
    weights = cast([None, maker.bottleneck(5, 96), maker.bottleneck(40, 96)], torch.float32, device)
    x = maker.rows(40, 96).to(device)
    together, again = (
        on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
        for segments in (Segments.from_lengths([2, 1, 0], [20, 19, 1]) for _ in range(2))
    )
    assert torch.equal(bits(together), bits(again))
    for first, last, slot in ((7, 20, 2), (25, 26, 1)):
        others = maker.rows(40, 96).to(device)
        others[first:last] = x[first:last]
        segments = Segments.from_lengths([3 - slot, slot, 0], [first, last - first, 40 - last])
        among = on_a_copy(dispatch.bottleneck_, others, segments, weights, implementation="triton")
        assert torch.equal(bits(among[first:last]), bits(together[first:last]))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_in_their_segment(bad, kernel, device):
    maker = WeightMaker()
    clean = [None, *(maker.bottleneck(rank, 64) for rank in (5, 16, 5))]
    segments = Segments.from_lengths([1, 2, 3, 0], [5, 4, 17, 2])
    x = maker.rows(28, 64).to(device)
    before = on_a_copy(dispatch.bottleneck_, x, segments, cast(clean, torch.float32, device), implementation="triton")
    poisoned = [*clean[:2], replace(clean[2], down=clean[2].down.clone()), *clean[3:]]
    poisoned[2].down[3] = bad
    x[1, 7] = bad
    after = on_a_copy(dispatch.bottleneck_, x, segments, cast(poisoned, torch.float32, device), implementation="triton")
    untouched = [0, 2, 3, 4, *range(9, 28)]
    assert torch.equal(bits(after[untouched]), bits(before[untouched]))
    assert not bool(after[1].isfinite().any())
    assert not bool(after[5:9].isfinite().all(1).any())


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout_of_segments(kernel, device, data):
    maker = WeightMaker(seed=data.draw(st.integers(0, 99)), dtype=data.draw(st.sampled_from(DTYPES)))
    # Slots 1 and 2 have one rank, so that they can lend one another their up projections; slot 4 is empty.
    ranks = (0, 5, 5, data.draw(st.sampled_from([1, 16, 33])), 0)
    adapters = [maker.bottleneck(rank, 40, biases=rank != 16) if rank else None for rank in ranks]
    loras = [maker.lora(rank, 40, 24) if rank else None for rank in ranks]
    pairs = [(0, 0), (1, 1), (1, 2), (2, 1), (3, 3), (4, 4)]
    runs = data.draw(st.lists(st.tuples(st.sampled_from(pairs), st.integers(1, 18)), max_size=4))
    downs, ups = [down for (down, _), _ in runs], [up for (_, up), _ in runs]
    segments = Segments.from_lengths(downs, [length for _, length in runs], ups)
    x, base = maker.rows(segments.num_rows, 40).to(device), maker.rows(segments.num_rows, 32)
    weights = cast(adapters, maker.dtype, device)
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="triton")
    assert_close(y, exact(dispatch.bottleneck_, x, segments, weights))
    inside, weights = Guarded(base, device), cast(loras, maker.dtype, device)
    dispatch.lora_(inside.rows, x, segments, weights, (8, 32), implementation="triton")
    assert_close(inside.rows, exact_lora(base.to(device), x, segments, weights, (8, 32)))
    inside.assert_intact()


def test_on_a_cpu_the_kernels_run_in_the_interpreter_or_not_at_all(monkeypatch):
    monkeypatch.setattr(ops, "INTERPRETED", False)
    maker = WeightMaker()
    with pytest.raises(ValueError, match="need a CUDA device"):
        dispatch.bottleneck_(
            maker.rows(1, 8), Segments.from_lengths([1], [1]), [None, maker.bottleneck(2, 8)], implementation="triton"
        )


def test_weights_that_do_not_fit_are_refused_rather_than_read(device):
    maker = WeightMaker()
    segments, x = Segments.from_lengths([1], [3], up_slots=[2]), maker.rows(3, 64).to(device)
    narrow = cast([None, maker.bottleneck(5, 48), maker.bottleneck(5, 48)], torch.float32, device)
    with pytest.raises(ValueError, match=r"features \(48, 48\) do not fit rows of 64"):
        dispatch.bottleneck_(x, segments, narrow, implementation="triton")
    loras = cast([None, maker.lora(5, 64, 16), maker.lora(5, 64, 16)], torch.float32, device)
    with pytest.raises(ValueError, match="24 columns"):
        dispatch.lora_(x.clone(), x, segments, loras, (8, 32), implementation="triton")
    for other in (maker.bottleneck(16, 64), None):
        weights = cast([None, maker.bottleneck(5, 64), other], torch.float32, device)
        with pytest.raises(ValueError, match="different ranks"):
            dispatch.bottleneck_(x, segments, weights, implementation="triton")
