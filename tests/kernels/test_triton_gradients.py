"""The routed op as kernels, and every gradient, against the reference in fp64; who has none, and what is saved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adamix_kernels import dispatch, reference
from adamix_kernels.dispatch import RoutedProjection
from adamix_kernels.gpu import ops, training
from adamix_kernels.gpu.launch import numbers
from adamix_kernels.plans import Plan
from adamix_kernels.testing import WeightMaker, assert_close, error_ratio
from adamix_kernels.weights import ACTIVATIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The down and the up experts of each group, of three. The last expert is never drawn in the first three.
ROUTES = {
    "two passes": ((1, 0), (0, 0)),
    "one group": ((1,), (0,)),
    "instances, repeated": ((1, 0, 1, 1, 0), (0, 1, 1, 0, 0)),
    "instances, all experts": ((2, 0, 1, 2, 0), (0, 2, 1, 1, 2)),
}


def leaf(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """A copy that gradients are asked for."""
    return tensor.detach().to(device, dtype, copy=True).requires_grad_()


@dataclass(frozen=True)
class Case:
    """A routed op with its operands on the CPU: `residual` is "source", "given" or None."""

    source: Tensor
    other: Tensor
    dy: Tensor
    downs: Sequence[Tensor]
    ups: Sequence[Tensor]
    down_biases: Sequence[Tensor] | None
    up_biases: Sequence[Tensor] | None
    route: tuple[Sequence[int], Sequence[int]]
    residual: str | None = "source"
    scale: float = 0.5
    activation: str = "gelu"

    def run(self, implementation: str, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor | None]:
        """The result and the gradient of each operand by name; None for an operand that has none."""

        def leaves(tensors: Sequence[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [leaf(each, device, dtype) for each in tensors]

        (source, other), downs, ups = leaves([self.source, self.other]), leaves(self.downs), leaves(self.ups)
        down_biases, up_biases = leaves(self.down_biases), leaves(self.up_biases)
        y = dispatch.routed_low_rank(
            source,
            {"source": source, "given": other, None: None}[self.residual],
            RoutedProjection(downs, down_biases, self.route[0]),
            RoutedProjection(ups, up_biases, self.route[1]),
            self.scale,
            self.activation,
            implementation=implementation,
        )
        y.backward(self.dy.to(device, dtype))
        found = {"y": y, "source": source.grad, "residual": other.grad}
        for name, operands in (("down", downs), ("up", ups), ("down bias", down_biases), ("up bias", up_biases)):
            found |= {f"{name} {i}": operand.grad for i, operand in enumerate(operands or [])}
        return found


def make_case(
    dtype: torch.dtype = torch.float32,
    *,
    rows: int = 7,
    width: int = 64,
    out: int | None = None,
    rank: int = 16,
    route: tuple[Sequence[int], Sequence[int]] = ROUTES["two passes"],
    shared: str | None = None,
    biases: bool = True,
    seed: int = 0,
) -> Case:
    maker = WeightMaker(seed, dtype)
    groups, out = len(route[0]), out or width
    num_down, num_up = (1 if side == shared else 3 for side in ("down", "up"))
    return Case(
        source=maker.rows(groups, rows, width),
        other=maker.rows(groups, rows, out),
        dy=maker.rows(groups, rows, out),
        downs=[maker.matrix(rank, width, fan_in=width) for _ in range(num_down)],
        ups=[maker.matrix(out, rank, fan_in=rank) for _ in range(num_up)],
        down_biases=[maker.rows(rank) for _ in range(num_down)] if biases else None,
        up_biases=[maker.rows(out) for _ in range(num_up)] if biases else None,
        route=route,
    )


def check(case: Case, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    """Result and gradients of the kernels, once they have been found equal to those of the reference in fp64.

    The tolerance is that of `testing.tolerance`: a gradient in 16 bits is a sum in fp32 of products of numbers of which
    one was rounded before (h, dh) or, in the interpreter, cut; and is rounded itself.
    """
    actual, expected = case.run("triton", dtype, device), case.run("reference", torch.float64)
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        got = actual[name]
        assert (got is None) == (wanted is None), name
        if got is not None and wanted is not None:
            assert got.dtype == dtype, name
            assert_close(got.cpu(), wanted, name)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [5, 16, 40])
def test_a_bottleneck(rank: int, dtype: torch.dtype, device: str) -> None:
    check(make_case(dtype, rank=rank, rows=17), device, dtype)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "gelu"])
def test_every_activation(activation: str, device: str) -> None:
    check(replace(make_case(), activation=activation), device)


@pytest.mark.parametrize("residual", ["given", None])
def test_the_residual_may_be_another_tensor_or_none(residual: str | None, device: str) -> None:
    found = check(replace(make_case(), residual=residual), device)
    assert (found["residual"] is None) == (residual is None)


@pytest.mark.parametrize("route", list(ROUTES.values())[1:], ids=list(ROUTES)[1:])
def test_each_group_has_its_own_pair_of_experts(route: tuple[Sequence[int], Sequence[int]], device: str) -> None:
    check(make_case(route=route), device)


@pytest.mark.parametrize("shared", ["down", "up"])
def test_one_side_may_be_shared(shared: str, device: str) -> None:
    down, up = (0, 0, 0), (2, 0, 2)
    check(make_case(route=(down, up) if shared == "down" else (up, down), shared=shared), device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", ["given", None])
def test_a_lora_maps_between_widths_and_has_no_biases(residual: str | None, dtype: torch.dtype, device: str) -> None:
    case = make_case(dtype, width=96, out=192, rank=8, biases=False, route=((0, 2, 0), (1, 1, 0)))
    check(replace(case, residual=residual, activation="identity", scale=2.0), device, dtype)


@pytest.mark.parametrize("rank", [16, 200])
def test_widths_that_no_block_divides(rank: int, device: str) -> None:
    check(make_case(width=72, rank=rank, rows=3), device)


@pytest.mark.parametrize("biases", [True, False])
def test_rows_in_parts_have_a_plane_each(biases: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tiles of one expert and one of another, in four parts: some parts have none."""
    plans = {"low_rank": Plan("fused", 16, 32, 4, 2), "weight_gradients": Plan("grouped", 16, 16, 4, 2, 32, splits=4)}
    monkeypatch.setattr(ops, "pick", lambda op, *_, **__: plans[op])
    check(make_case(route=((0, 0, 0, 0, 0, 1), (1, 0, 0, 0, 0, 0)), rows=9, biases=biases), device)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_route(device: str, data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6))
    rows, seed = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99))
    down, up = zip(*pairs, strict=True)
    check(make_case(route=(down, up), rows=rows, seed=seed), device)


def test_an_expert_without_rows_has_no_gradient(device: str) -> None:
    found = check(make_case(route=((1, 1), (0, 2))), device)
    without = {name for name, gradient in found.items() if gradient is None}
    assert without == {"residual", "down 0", "down 2", "down bias 0", "down bias 2", "up 1", "up bias 1"}


def test_values_that_are_not_finite_stay_with_their_experts(device: str) -> None:
    case = make_case(route=((0, 1, 2), (0, 1, 2)))
    case.source[1, 3] = torch.nan
    found = case.run("triton", torch.float32, device)
    for name in ("down 0", "down bias 2", "up 0", "up bias 2"):
        assert bool(found[name].isfinite().all()), name
    assert not bool(found["down 1"].isfinite().any())


def test_two_runs_are_equal_to_the_bit(device: str) -> None:
    case = make_case(route=ROUTES["instances, all experts"], rows=8)
    first, second = (case.run("triton", torch.float32, device) for _ in range(2))
    for name, value in first.items():
        assert value is None or torch.equal(value, second[name]), name


def test_a_gradient_that_is_a_broadcast_and_rows_that_are_a_window(device: str) -> None:
    case, (down, up) = make_case(), ROUTES["two passes"]

    def loss(implementation: str, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        wide = torch.cat([case.other, case.source, case.other], -1).to(device, dtype).requires_grad_()
        downs = [leaf(each, device, dtype) for each in case.downs]
        projections = (
            RoutedProjection(downs, None, down),
            RoutedProjection([each.to(device, dtype) for each in case.ups], None, up),
        )
        window = wide[..., 64:128]
        y = dispatch.routed_low_rank(window, None, *projections, 1.0, "tanh", implementation=implementation)
        return torch.autograd.grad(y.sum(), (wide, *downs[:2]))

    for got, wanted in zip(loss("triton", torch.float32, device), loss("reference", torch.float64, "cpu"), strict=True):
        assert_close(got.cpu(), wanted)


def test_the_adapter_computes_in_the_dtype_of_its_weights(device: str) -> None:
    """Rows of a 16-bit backbone, experts in fp32: the result has the rows' dtype, gradients of weights are fp32."""
    case = make_case(torch.bfloat16)
    source = leaf(case.source, device, torch.bfloat16)
    downs, ups = ([leaf(each, device, torch.float32) for each in side] for side in (case.downs, case.ups))
    projections = [
        RoutedProjection(side, None, experts) for side, experts in zip((downs, ups), case.route, strict=True)
    ]
    y = dispatch.routed_low_rank(source, source, *projections, 1.0, "gelu", implementation="triton")
    y.backward(case.dy.to(device))
    exact = replace(case, scale=1.0, down_biases=None, up_biases=None).run("reference", torch.float64)
    assert_close(y.cpu(), exact["y"])
    assert_close(source.grad.cpu(), exact["source"])
    assert_close(downs[1].grad.cpu(), exact["down 1"])
    assert_close(ups[0].grad.cpu(), exact["up 0"])


def test_autocast_decides_the_dtype_where_it_is_on(device: str) -> None:
    """Weights and rows are rounded to bf16, as torch's products round them; results keep the dtypes of operands."""
    case = make_case(rows=9)
    found = {}
    for implementation in ("triton", "cpu"):
        with torch.autocast(device, torch.bfloat16):
            found[implementation] = case.run(implementation, torch.float32, device)
    plain = case.run("reference", torch.float64)
    for name, wanted in plain.items():
        if wanted is not None:
            got = found["triton"][name]
            assert got.dtype == torch.float32, name
            # The plain form rounds no less often: what the kernels give is as near to the exact value, up to a factor.
            assert 1e-6 < error_ratio(got.cpu(), wanted) <= 2 * error_ratio(found["cpu"][name].cpu(), wanted), name


def test_frozen_rows_and_frozen_weights(device: str) -> None:
    case = make_case()
    expected = case.run("reference", torch.float64)
    sides = zip((case.downs, case.ups), (case.down_biases, case.up_biases), case.route, strict=True)
    projections = [RoutedProjection(*([t.to(device) for t in each] for each in side[:2]), side[2]) for side in sides]
    source = case.source.to(device)
    for trained in (source, projections[0].weights[1]):
        trained.requires_grad_()
        y = dispatch.routed_low_rank(source, source, *projections, 0.5, "gelu", implementation="triton")
        y.backward(case.dy.to(device))
        assert_close(trained.grad.cpu(), expected["source" if trained is source else "down 1"])
        trained.requires_grad_(False)


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_is_saved_where_no_backward_follows(frozen: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, launch = [], training.fused

    def spy(*args: object, hidden: Tensor | None, **options: object) -> None:
        saved.append(hidden)
        launch(*args, hidden=hidden, **options)

    monkeypatch.setattr(training, "fused", spy)
    case = make_case()
    source = case.source.to(device)
    downs, ups = ([each.to(device).requires_grad_(not frozen) for each in side] for side in (case.downs, case.ups))
    projections = [
        RoutedProjection(side, None, experts) for side, experts in zip((downs, ups), case.route, strict=True)
    ]
    with torch.set_grad_enabled(frozen):
        y = dispatch.routed_low_rank(source, None, *projections, 1.0, "gelu", implementation="triton")
    assert saved == [None]
    assert not y.requires_grad
    exact = [RoutedProjection([w.detach().cpu().double() for w in p.weights], None, p.experts) for p in projections]
    assert_close(y.cpu(), reference.routed_low_rank(case.source.double(), None, *exact, 1.0, "gelu"))


def test_what_the_kernels_do_not_take_goes_to_the_plain_forms(device: str) -> None:
    wide = make_case(rank=300, rows=2)
    assert_close(wide.run("triton", torch.float32, device)["up 0"].cpu(), wide.run("reference", torch.float64)["up 0"])
    exact = make_case(rows=2)
    assert_close(exact.run("triton", torch.float64, device)["y"].cpu(), exact.run("reference", torch.float64)["y"])
    assert make_case(rows=0).run("triton", torch.float32, device)["y"].shape == (2, 0, 64)


# A residual is the forward pass's and parts of sums are the backward's: the other pairs repeat what these say of each.
@pytest.mark.parametrize(
    ("residual", "splits"),
    [
        ("source", 1),
        ("given", 2),
        (None, 2),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in (("source", 2), ("given", 1), (None, 1))),
    ],
)
def test_the_ops_keep_the_promises_of_torch_ops(residual: str | None, splits: int, device: str) -> None:
    maker = WeightMaker()
    source, other, dy, arena = (maker.rows(*shape).to(device) for shape in ((6, 64), (6, 64), (6, 64), (2 * 16 * 64,)))
    shapes = (((16, 64), None),)
    records = training._records(shapes, shapes, 1.0, "gelu", source.device)
    tables = list(training._tables((0,), (0,), 6, 16, 16, source.device))
    plans = [numbers(Plan("fused", 16, 32, 4, 2)), numbers(Plan("grouped", 16, 16, 4, 2, 32, splits))]
    adds, added = residual == "source", other.requires_grad_() if residual == "given" else None
    leaves = (source.requires_grad_(), added, arena.requires_grad_(), records, tables)
    torch.library.opcheck(training.low_rank, (*leaves, 64, adds, True, "gelu", 16, *plans))
    _, hidden = training.low_rank(*leaves, 64, adds, True, "gelu", 16, *plans)
    operands = (dy, source.detach(), hidden.detach(), arena.detach(), records, tables)
    torch.library.opcheck(training.low_rank_gradients, (*operands, adds, "gelu", *plans))


@pytest.mark.parametrize("splits", [1, 2])
def test_what_lies_between_the_pieces_of_an_arena_has_gradient_zero(splits: int, device: str) -> None:
    """The down bias has five elements in the room of eight. Torch is told to put NaN into memory it has not written."""
    maker = WeightMaker()
    source, dy, hidden = (maker.rows(6, width).to(device) for width in (64, 64, 16))
    downs, ups = (((5, 64), (5,)),), (((5, 64), (64,)),)
    arena = maker.rows(5 * 64 + 8 + 5 * 64 + 64).to(device)
    records = training._records(downs, ups, 1.0, "gelu", source.device)
    tables = training._tables((0,), (0,), 6, 16, 16, source.device)
    plans = [numbers(Plan("fused", 16, 32, 4, 2)), numbers(Plan("grouped", 16, 16, 4, 2, 32, splits))]
    torch.use_deterministic_algorithms(True)
    try:
        _, d_arena = training.low_rank_gradients(dy, source, hidden, arena, records, tables, False, "gelu", *plans)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not d_arena[5 * 64 + 5 : 5 * 64 + 8].any()
    assert bool(d_arena.isfinite().all())


def test_operands_that_do_not_fit_are_refused(device: str) -> None:
    case = make_case()
    projections = [RoutedProjection(side, None, case.route[0]) for side in (case.downs, case.ups)]

    def attempt(source: Tensor, residual: Tensor | None, down: RoutedProjection, up: RoutedProjection) -> None:
        dispatch.routed_low_rank(source.to(device), residual, down, up, 1.0, "gelu", implementation="reference")

    attempt(case.source, None, *projections)
    with pytest.raises(ValueError, match="must be"):
        attempt(case.source[..., :8], None, *projections)
    with pytest.raises(ValueError, match="needs one down and one up expert"):
        attempt(case.source[:1], None, *projections)
    with pytest.raises(ValueError, match="rank 64"):
        attempt(case.source, None, projections[0], replace(projections[1], weights=[torch.zeros(64, 64)] * 3))
    with pytest.raises(ValueError, match="residual has shape"):
        attempt(case.source, case.other[..., :8], *projections)
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        replace(projections[0], experts=(0, 3))
    with pytest.raises(ValueError, match="as many biases"):
        replace(projections[0], biases=[torch.zeros(16)])
