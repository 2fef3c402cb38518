"""The fast forms against the reference in fp64, on awkward batches, whichever form the rule would pick."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix_kernels import cpu, dispatch, reference
from adamix_kernels.segments import Segments
from adamix_kernels.testing import ODD_SHAPES, BatchShape, WeightMaker, assert_close, cast, on_a_copy

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FORMS = ["loop_on_one_thread", "loop", "tiles"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setattr(cpu, "pick_form", lambda **_: request.param)
    return request.param


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", DTYPES)
def test_bottleneck_equals_the_reference(shape, dtype, form, make_batch):
    batch = make_batch(shape, dtype)
    wide = cast(batch.bottlenecks, torch.float64)
    expected = on_a_copy(reference.bottleneck_, batch.x.double(), batch.segments, wide)
    for implementation in ("cpu", "reference"):
        rows = batch.x.clone()
        assert dispatch.bottleneck_(rows, batch.segments, batch.bottlenecks, implementation=implementation) is rows
        assert_close(rows, expected)
        assert torch.equal(rows[batch.identity_rows], batch.x[batch.identity_rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_bottleneck_norm_equals_the_reference(shape, dtype, form, make_batch):
    batch, maker = make_batch(shape, dtype), WeightMaker(seed=9, dtype=dtype)
    gain, shift = maker.rows(batch.x.shape[1]), maker.rows(batch.x.shape[1])
    y = dispatch.bottleneck_norm(batch.x, batch.segments, batch.bottlenecks, gain, shift, 1e-5, implementation="cpu")
    wide = cast(batch.bottlenecks, torch.float64)
    expected = reference.bottleneck_norm(batch.x.double(), batch.segments, wide, gain.double(), shift.double(), 1e-5)
    assert_close(y, expected)
    plain = torch.nn.functional.layer_norm(batch.x, gain.shape, gain, shift, 1e-5)
    assert torch.equal(y[batch.identity_rows], plain[batch.identity_rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, (16, 96)])
def test_lora_equals_the_reference_and_leaves_the_rest_alone(shape, dtype, window, form, make_batch):
    batch = make_batch(shape, dtype)
    wide_y = WeightMaker(seed=5, dtype=dtype).rows(len(batch.y), 112)
    y = batch.y if window is None else wide_y
    expected = on_a_copy(
        reference.lora_, y.double(), batch.x.double(), batch.segments, cast(batch.loras, torch.float64), window
    )
    before = y.clone()
    assert dispatch.lora_(y, batch.x, batch.segments, batch.loras, window, implementation="cpu") is y
    assert_close(y, expected)
    assert torch.equal(y[batch.identity_rows], before[batch.identity_rows])
    if window is not None:
        assert torch.equal(y[:, :16], before[:, :16])
        assert torch.equal(y[:, 96:], before[:, 96:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_different_widths_share_a_batch(dtype):
    maker = WeightMaker(dtype=dtype)
    weights = [None, maker.head(32, 2), maker.head(32, 7, dense=False), maker.head(32, 1), None]
    features = maker.rows(9, 32)
    segments = Segments.from_lengths([3, 1, 2, 4, 1], [1, 4, 2, 1, 1])
    outputs = dispatch.head(features, segments, weights, implementation="cpu")
    expected = reference.head(features.double(), segments, cast(weights, torch.float64))
    assert [tuple(o.shape) for o in outputs] == [(1, 1), (4, 2), (2, 7), (1, 32), (1, 2)]
    for position, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(output, wanted, f"segment {position}")


def test_views_with_gaps_between_their_rows_are_fine(form):
    maker = WeightMaker()
    weights = [None, maker.bottleneck(4, 24), maker.bottleneck(4, 24)]
    array = maker.rows(10, 64)
    before, x = array.clone(), array[:, 8:32]
    segments = Segments.from_lengths([1, 2], [4, 6])
    expected = on_a_copy(reference.bottleneck_, x.double(), segments, cast(weights, torch.float64))
    assert_close(dispatch.bottleneck_(x, segments, weights, implementation="cpu"), expected)
    assert torch.equal(array[:, :8], before[:, :8])
    assert torch.equal(array[:, 32:], before[:, 32:])


def test_negative_zero_and_nan_pass_an_identity_row_unchanged(form):
    maker = WeightMaker()
    x = maker.rows(4, 16)
    x[0, 0], x[0, 1] = -0.0, float("nan")
    segments, weights = Segments.from_lengths([0, 1], [1, 3]), [None, maker.bottleneck(2, 16)]
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="cpu")
    assert y[0].view(torch.int32).tolist() == x[0].view(torch.int32).tolist()
    assert bool(y[1:].isfinite().all())


def test_one_row_that_is_not_finite_stays_alone(form):
    maker = WeightMaker()
    weights = [None, maker.bottleneck(4, 16), maker.bottleneck(4, 16)]
    x = maker.rows(7, 16)
    segments = Segments.from_lengths([1, 2], [3, 4])
    clean = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="cpu")
    x[2, 5] = float("inf")
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="cpu")
    others = [0, 1, 3, 4, 5, 6]
    assert_close(y[others], clean[others].double())
    assert not bool(y[2].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_that_lies_above_its_projection_makes_no_difference(dtype, form):
    """Packed adapters lie so, and the loop then adds both in one product."""
    maker = WeightMaker(dtype=dtype)
    weights = [None]
    for rank in (4, 4, 9):
        apart = maker.bottleneck(rank, 16)
        joined = torch.cat([apart.up_bias[None], apart.up])
        weights.append(replace(apart, up=joined[1:], up_bias=joined[0]))
    assert all(w.low_rank.bias_and_up is not None for w in weights[1:])
    x, segments = maker.rows(12, 16), Segments.from_lengths([1, 0, 2, 3], [3, 1, 4, 4])
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="cpu")
    assert_close(y, on_a_copy(reference.bottleneck_, x.double(), segments, cast(weights, torch.float64)))


def test_overwritten_weights_take_effect_in_the_next_call(form):
    maker = WeightMaker()
    weights = [None, maker.bottleneck(4, 16), maker.bottleneck(4, 16)]
    x, segments = maker.rows(7, 16), Segments.from_lengths([1, 2], [3, 4])
    on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="cpu")
    weights[1].up.copy_(maker.rows(4, 16))
    y = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="cpu")
    assert_close(y, on_a_copy(reference.bottleneck_, x.double(), segments, cast(weights, torch.float64)))


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 20)), max_size=14),
    ranks=st.tuples(*[st.sampled_from([0, 1, 4, 4, 9])] * 6),
    threads=st.sampled_from([1, 2, 64]),
)
def test_any_mixture_equals_the_reference_under_the_rule(runs, ranks, threads, make_batch_of):
    shape = BatchShape(tuple(s for s, _ in runs), tuple(n for _, n in runs), (0, *ranks))
    batch = make_batch_of(shape)
    rule, before = cpu.pick_form, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "pick_form", lambda **facts: rule(**{**facts, "threads": threads}))
        with torch.no_grad():
            y = on_a_copy(dispatch.bottleneck_, batch.x, batch.segments, batch.bottlenecks)
    wide = cast(batch.bottlenecks, torch.float64)
    assert_close(y, on_a_copy(reference.bottleneck_, batch.x.double(), batch.segments, wide))
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def make_batch_of():
    def make(shape):
        maker = WeightMaker(seed=1)
        slots = [maker.bottleneck(rank, 24) if rank else None for rank in shape.ranks]
        rows = shape.segments.num_rows

        class Made:
            x = maker.rows(rows, 24)
            segments = shape.segments
            bottlenecks = slots

        return Made

    return make


def facts(**changes):
    usual = {"num_rows": 1024, "num_segments": 24, "rank": 16, "features": 384, "dtype": torch.float32}
    return {**usual, "device_type": "cpu", "threads": 2, **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_rows": 32, "num_segments": 16}, "loop_on_one_thread"),
        ({"num_rows": 256, "num_segments": 32}, "loop_on_one_thread"),
        ({"num_segments": 1, "rank": 64, "features": 1024}, "loop"),
        ({"dtype": torch.bfloat16}, "tiles"),
        ({"dtype": torch.bfloat16, "num_rows": 128, "num_segments": 4}, "loop_on_one_thread"),
        ({"threads": 16, "num_segments": 48}, "tiles"),
        ({"device_type": "cuda", "num_segments": 3}, "loop"),
        ({"device_type": "cuda", "num_segments": 4}, "tiles"),
    ],
)
def test_the_rule_picks_what_was_measured_to_be_fastest(changes, expected):
    assert cpu.pick_form(**facts(**changes)) == expected


def test_the_number_of_threads_is_restored_when_a_product_fails(monkeypatch):
    monkeypatch.setattr(cpu, "pick_form", lambda **_: "loop_on_one_thread")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wrong, segments = WeightMaker().bottleneck(2, 8), Segments.from_lengths([1], [3])
        with pytest.raises(RuntimeError):
            dispatch.bottleneck_(torch.ones(3, 9), segments, [None, wrong], implementation="cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["mixed ranks, an empty slot", "one long among short"])
def test_the_same_forms_run_on_cuda_without_waiting_for_the_device(name, form, make_batch):
    batch = make_batch(ODD_SHAPES[name], torch.float32)
    x, on_device = batch.x.cuda(), cast(batch.bottlenecks, torch.float32, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = on_a_copy(dispatch.bottleneck_, x, batch.segments, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wide = cast(batch.bottlenecks, torch.float64)
    assert_close(y.cpu(), on_a_copy(reference.bottleneck_, batch.x.double(), batch.segments, wide))
