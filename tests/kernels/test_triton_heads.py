"""The head kernel against the reference in fp64: every kind of head, odd widths and lengths, what it must not touch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adamix_kernels import reference
from adamix_kernels.gpu import head_launch, heads
from adamix_kernels.gpu.launch import INTERPRETED
from adamix_kernels.gpu.records import ABSENT, CODES
from adamix_kernels.segments import Segments
from adamix_kernels.testing import WeightMaker, cast
from adamix_kernels.weights import ACTIVATIONS, HeadWeights

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = ("linear", "dense", "dense without biases", "ends with dense", "embedding")


def make_head(maker: WeightMaker, features: int, kind: str, width: int, activation: str = "tanh") -> HeadWeights:
    plain = maker.head(features, width, dense=kind != "linear", activation=activation)
    match kind:
        case "dense without biases":
            return replace(plain, dense_bias=None, out_bias=None)
        case "ends with dense":
            return replace(plain, out=None, out_bias=None)
        case "embedding":
            return HeadWeights(None, None, None, None, None)
    return plain


def assert_outputs(
    actual: Sequence[Tensor], features: Tensor, segments: Segments, weights: Sequence[HeadWeights | None]
) -> None:
    """Every output of every segment is that of the reference in fp64, computed from the same weights.

    Outputs are of the order of one. A result in 16 bits is rounded once, and so are its hidden units, which adds about
    as much; the interpreter cuts instead of rounding, for twice that. In fp32 sums of up to 768 terms lose a few bits.
    """
    expected = reference.head(features.cpu().double(), segments, cast(weights, torch.float64))
    assert len(actual) == len(expected)
    limit = (32 if features.dtype == torch.float32 else 4) * torch.finfo(features.dtype).eps
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == features.dtype
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=limit, atol=limit)


def check(features: Tensor, segments: Segments, weights: Sequence[HeadWeights | None], device: str) -> list[Tensor]:
    """The kernel's outputs, once they have been found equal to the reference's."""
    dtype = features.dtype
    actual = head_launch.head(features.to(device), segments, cast(weights, dtype, device))
    assert_outputs(actual, features, segments, weights)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [64, 96, 192])
def test_one_batch_mixes_all_kinds_of_heads_and_widths(features: int, dtype: torch.dtype, device: str) -> None:
    maker = WeightMaker(dtype=dtype)
    weights = [
        None,
        make_head(maker, features, "dense", 2),
        make_head(maker, features, "linear", 3),
        make_head(maker, features, "embedding", 0),
        make_head(maker, features, "ends with dense", 0, "gelu"),
        make_head(maker, features, "dense without biases", 17, "relu"),
        make_head(maker, features, "linear", 130),
        make_head(maker, features, "dense", 1, "silu"),
    ]
    segments = Segments.from_lengths([2, 0, 1, 3, 6, 4, 7, 5, 2], [1, 2, 20, 3, 17, 5, 1, 4, 16])
    check(maker.rows(segments.num_rows, features), segments, weights, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_the_width_of_a_backbone(dtype: torch.dtype, device: str) -> None:
    maker = WeightMaker(dtype=dtype)
    weights = [None, make_head(maker, 768, "dense", 2), make_head(maker, 768, "linear", 5)]
    check(maker.rows(4, 768), Segments.from_lengths([1, 2], [3, 1]), weights, device)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
@pytest.mark.parametrize("kind", ["dense", "ends with dense"])
def test_every_activation(activation: str | None, kind: str, device: str) -> None:
    maker = WeightMaker()
    weights = [None, replace(make_head(maker, 64, kind, 3), activation=activation)]
    check(3 * maker.rows(5, 64), Segments.from_lengths([1], [5]), weights, device)


def test_without_a_dense_layer_there_is_no_activation(device: str) -> None:
    maker = WeightMaker()
    weights = [None, replace(make_head(maker, 64, "linear", 3), activation="relu")]
    (output,) = check(maker.rows(5, 64), Segments.from_lengths([1], [5]), weights, device)
    assert bool((output < 0).any())


def test_heads_may_share_a_dense_layer_that_lies_elsewhere(device: str) -> None:
    maker = WeightMaker()
    pooler = make_head(maker, 64, "dense", 1)
    weights = [None, *(replace(make_head(maker, 64, "linear", width), activation="tanh") for width in (2, 5))]
    on_device = cast(weights, torch.float32, device)
    dense, dense_bias = pooler.dense.to(device), pooler.dense_bias.to(device)
    shared = [None, *(replace(each, dense=dense, dense_bias=dense_bias) for each in on_device[1:])]
    features, segments = maker.rows(9, 64), Segments.from_lengths([2, 1], [5, 4])
    assert_outputs(
        head_launch.head(features.to(device), segments, shared), features, segments, cast(shared, torch.float32)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_segments_run_in_blocks_of_more_rows(dtype: torch.dtype, device: str) -> None:
    maker = WeightMaker(dtype=dtype)
    weights = [None, make_head(maker, 96, "linear", 70), make_head(maker, 96, "dense", 3)]
    segments = Segments.from_lengths([1, 2], [65, 66])
    check(maker.rows(segments.num_rows, 96), segments, weights, device)


def test_features_may_have_gaps_between_their_rows(device: str) -> None:
    maker = WeightMaker()
    hidden = maker.rows(7, 3, 64)
    segments, weights = Segments.from_lengths([1], [7]), [None, make_head(maker, 64, "dense", 3)]
    actual = head_launch.head(hidden.to(device)[:, 1], segments, cast(weights, torch.float32, device))
    assert_outputs(actual, hidden[:, 1].contiguous(), segments, weights)


def in_one_array(head: HeadWeights, device: str) -> HeadWeights:
    """The head as views of one array, in another order than its fields, as an arena holds it."""
    names = ("out", "dense", "out_bias", "dense_bias")
    array, views, end = torch.zeros(sum(getattr(head, name).numel() + 32 for name in names), device=device), {}, 32
    for name in names:
        tensor = getattr(head, name)
        views[name] = array[end : end + tensor.numel()].view(tensor.shape).copy_(tensor)
        end += -(-tensor.numel() // 32) * 32
    return replace(head, **views)


def test_weights_may_be_views_of_one_array(device: str) -> None:
    maker = WeightMaker()
    weights = [None, make_head(maker, 64, "dense", 3)]
    features, segments = maker.rows(3, 64), Segments.from_lengths([1], [3])
    actual = head_launch.head(features.to(device), segments, [None, in_one_array(weights[1], device)])
    assert_outputs(actual, features, segments, weights)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout_of_segments(device: str, data: st.DataObject) -> None:
    maker = WeightMaker(seed=data.draw(st.integers(0, 99)))
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    widths = [data.draw(st.sampled_from([1, 2, 15, 16, 17, 65])) for _ in kinds]
    weights = [None, *(make_head(maker, 64, kind, width) for kind, width in zip(kinds, widths, strict=True))]
    runs = data.draw(st.lists(st.tuples(st.integers(0, len(kinds)), st.integers(1, 20)), max_size=5))
    segments = Segments.from_lengths([slot for slot, _ in runs], [length for _, length in runs])
    check(maker.rows(segments.num_rows, 64), segments, weights, device)


def refuse_to_launch(*_: object) -> None:
    raise AssertionError("launched")


def test_where_all_features_pass_through_nothing_is_launched(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_launch, "_heads", refuse_to_launch)
    maker = WeightMaker()
    features = maker.rows(5, 64).to(device)
    first, second = head_launch.head(
        features, Segments.from_lengths([0, 1], [2, 3]), [None, make_head(maker, 64, "embedding", 0)]
    )
    assert torch.equal(first, features[:2])
    assert torch.equal(second, features[2:])
    assert head_launch.head(features[:0], Segments.from_lengths([], []), [None]) == []


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_values_that_are_not_finite_stay_in_their_segment(device: str) -> None:
    maker = WeightMaker()
    weights = [
        None,
        make_head(maker, 64, "dense", 3),
        make_head(maker, 64, "dense", 3),
        make_head(maker, 64, "linear", 20),
    ]
    features = maker.rows(9, 64)
    features[4] = torch.nan
    weights[2].out[1] = torch.inf
    segments = Segments.from_lengths([1, 2, 3], [4, 3, 2])
    first, second, third = head_launch.head(features.to(device), segments, cast(weights, torch.float32, device))
    assert_outputs([first, third], features[[0, 1, 2, 3, 7, 8]], Segments.from_lengths([1, 3], [4, 2]), weights)
    assert bool(second[1:, [0, 2]].isfinite().all())
    assert not bool(second[0].isfinite().any())


def test_a_row_does_not_depend_on_the_rows_beside_it(device: str) -> None:
    maker = WeightMaker()
    weights = cast([None, make_head(maker, 96, "dense", 5), make_head(maker, 96, "linear", 7)], torch.float32, device)
    features = maker.rows(12, 96).to(device)
    together = head_launch.head(features, Segments.from_lengths([1, 2], [7, 5]), weights)
    (alone,) = head_launch.head(features[6:7], Segments.from_lengths([1], [1]), weights)
    assert torch.equal(together[0][6:], alone)


def test_a_head_that_takes_a_slot_over_is_seen_by_segments_that_were_used_before(device: str) -> None:
    maker = WeightMaker()
    features, segments = maker.rows(4, 64), Segments.from_lengths([1], [4])
    weights = [None, make_head(maker, 64, "dense", 2)]
    check(features, segments, weights, device)
    weights[1] = make_head(maker, 64, "linear", 5)
    check(features, segments, weights, device)
    check(maker.rows(4, 64), segments, weights, device)
    half = WeightMaker(dtype=torch.bfloat16)
    check(half.rows(4, 64), segments, cast(weights, torch.bfloat16), device)


def test_items_without_a_head_leave_the_results_alone(device: str) -> None:
    features, matrix = torch.ones(4, 64, device=device), torch.ones(2, 64, device=device)
    records = torch.tensor([ABSENT, ABSENT, 0, ABSENT, 2, CODES["identity"], 0, 0], device=device)
    # head, first row, end row, first column, place: one to leave out, one beyond the table, and rows 1 and 2 of four.
    items = torch.tensor([[-1, 0, 4, 0, 0], [1, 0, 4, 0, 0], [0, 1, 3, 0, 2]], device=device)
    out = torch.full((8,), -5.0, device=device)
    plan = heads.pick_plan(4, rows_per_segment=2, widest=2)
    heads.heads[(3,)](
        out, features, matrix, records, items, 1, H=64, **plan.constexprs, PRECISION="ieee",
        INTERPRETED=INTERPRETED, num_warps=plan.num_warps,
    )  # fmt: skip
    assert out.tolist() == [-5.0, -5.0, 64.0, 64.0, 64.0, 64.0, -5.0, -5.0]


def test_the_op_keeps_the_promises_of_a_torch_op(device: str) -> None:
    maker = WeightMaker()
    features, segments = maker.rows(3, 64).to(device), Segments.from_lengths([1], [3])
    # In one array: the checks run the op on copies of its arguments.
    weights = [None, in_one_array(make_head(maker, 64, "dense", 2), device)]
    batch = head_launch._batch(features, segments, weights[1:])
    arguments = (features, batch.base, batch.table, batch.num_heads, batch.num_outputs, batch.plan)
    torch.library.opcheck(head_launch._heads, arguments, test_utils=("test_schema", "test_faketensor"))
    with torch.inference_mode():
        assert_outputs(
            head_launch.head(features, segments, weights), features.cpu(), segments, cast(weights, torch.float32)
        )


def test_features_that_are_not_the_heads_own_are_refused(device: str) -> None:
    maker = WeightMaker()
    segments, weights = (
        Segments.from_lengths([1], [2]),
        cast([None, make_head(maker, 64, "dense", 3)], torch.float32, device),
    )
    head_launch.head(maker.rows(2, 64).to(device), segments, weights)
    with pytest.raises(ValueError, match="a head takes 64 features"):
        head_launch.head(maker.rows(2, 72).to(device), segments, weights)
    with pytest.raises(ValueError, match=r"64 features in torch\.float32 .* these are 64 features in torch\.float16"):
        head_launch.head(maker.rows(2, 64).half().to(device), segments, weights)


def not_on_16_bytes(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.new_zeros(1), tensor.ravel()])[1:].view(tensor.shape)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda head: cast([head], torch.float64)[0], id="fp64"),
        pytest.param(lambda head: replace(head, out=head.out.T.contiguous().T), id="not contiguous"),
        pytest.param(lambda head: replace(head, out_bias=not_on_16_bytes(head.out_bias)), id="not on 16 bytes"),
        pytest.param(
            lambda head: replace(head, dense=None, dense_bias=None, out=head.out[:, :60].contiguous()),
            id="width not a multiple of 8",
        ),
        pytest.param(lambda head: replace(head, dense=torch.cat([head.dense] * 2, 1)), id="dense not square"),
    ],
)
def test_what_the_kernel_does_not_take_is_computed_without_it(
    change: Callable[[HeadWeights], HeadWeights], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = WeightMaker()
    head = change(cast([make_head(maker, 64, "dense", 3)], torch.float32, device)[0])
    first_layer = head.out if head.dense is None else head.dense
    features = maker.rows(2, first_layer.shape[1]).to(first_layer)
    monkeypatch.setattr(head_launch, "_heads", refuse_to_launch)
    segments = Segments.from_lengths([1], [2])
    outputs = head_launch.head(features, segments, [None, head])
    assert_outputs(outputs, features, segments, [None, head])


def test_a_plan_follows_the_rows_and_the_widest_head() -> None:
    assert heads.pick_plan(2, rows_per_segment=1, widest=16).name == "few rows, narrow"
    assert heads.pick_plan(2, rows_per_segment=1, widest=17).name == "few rows, wide"
    assert heads.pick_plan(4, rows_per_segment=32, widest=2).name == "many rows"
