"""The arithmetic of merging: what must hold for any experts, and values worked out by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.files import adapter_file
from adamix.files.manifest import HeadSpec, TrainingRecord
from adamix.files.mixture_file import ExpertStack, Projection, expert_key, initial_key
from adamix.files.tensors import TensorData
from adamix.merging import rules
from adamix.merging.merge import MergeConfig, MixtureFile, MixtureManifest, merge
from adamix.merging.rules import Information, MergedProjection, Moments
from adamix_testing.manifests import make_manifest, make_spec

HIDDEN, RANK = 5, 2
KEY = "layers.0.mlp_out.down_proj"

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 6)
few = settings(max_examples=25)


def _mixture(
    kind: str = "bottleneck", share: str = "none", num_experts: int = 4, seed: int = 0, same: bool = False
) -> MixtureFile:
    """Random experts, with a common start from which all have moved; `same` makes every expert a copy of the first."""
    rng = np.random.default_rng(seed)
    sides = {"lora_A": (RANK, HIDDEN), "lora_B": (HIDDEN, RANK)} if kind == "lora" else {}
    sides = sides or {"down_proj": (RANK, HIDDEN), "up_proj": (HIDDEN, RANK)}
    tensors = {}
    for side, shape in sides.items():
        projection = f"layers.0.{'attn_q' if kind == 'lora' else 'mlp_out'}.{side}"
        is_down = side in ("down_proj", "lora_A")
        count = 1 if share == ("down" if is_down else "up") else num_experts
        for part, size in {"weight": shape, "bias": shape[:1]}.items():
            if kind == "lora" and part == "bias":
                continue
            first = rng.standard_normal(size)
            for expert in range(count):
                values = first if same else rng.standard_normal(size)
                tensors[expert_key(projection, expert, part)] = TensorData.from_float32(values)
            tensors[initial_key(projection, part)] = TensorData.from_float32(rng.standard_normal(size))
    tensors["head.out_proj.weight"] = TensorData.from_float32(rng.standard_normal((2, HIDDEN)))
    tensors["head.out_proj.bias"] = TensorData.from_float32(rng.standard_normal(2))
    manifest = make_manifest(
        make_spec(hidden_size=HIDDEN, num_layers=1),
        HeadSpec(type="classification", pooling="mean", num_labels=2),
        kind=kind,  # type: ignore[arg-type]
        training=TrainingRecord(method="adamix", num_experts=num_experts, metrics={"validation_accuracy": 0.5}),
    )
    mixed = MixtureManifest(
        adapter=manifest,
        num_experts=num_experts,
        share=share,  # type: ignore[arg-type]
        routing_granularity="batch",
        common_start=True,
    )
    return MixtureFile(mixed, tensors)


def _projection(num_experts: int, seed: int = 0, same: bool = False) -> Projection:
    return _mixture(num_experts=num_experts, seed=seed, same=same).projections()[KEY]


def _permuted(projection: Projection, order: list[int]) -> Projection:
    def permute(stack: ExpertStack | None) -> ExpertStack | None:
        return None if stack is None else ExpertStack(stack.copies[order], stack.initial)

    weight = permute(projection.weight)
    assert weight is not None
    return Projection(projection.key, weight, permute(projection.bias))


def _inputs(num_experts: int, seed: int, rows: int = 30) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, HIDDEN)) for _ in range(num_experts)]


def _moments(projection: Projection, inputs: list[np.ndarray[Any, Any]]) -> Moments:
    """As `regmean.py` gathers them, from given inputs."""
    extended = [np.hstack([x, np.ones((len(x), 1))]) for x in inputs]
    shifts = rules.deviations(projection)
    return Moments(
        gram=sum(x.T @ x for x in extended),  # type: ignore[arg-type]
        cross=sum(x.T @ x @ d.T for x, d in zip(extended, shifts, strict=True)),  # type: ignore[arg-type]
    )


def _information(projection: Projection, seed: int) -> Information:
    rng = np.random.default_rng(seed)
    assert projection.bias is not None
    return Information(
        rng.exponential(size=projection.weight.copies.shape), rng.exponential(size=(len(projection.bias), RANK))
    )


def _floats(merged: MergedProjection) -> tuple[Any, Any]:
    assert merged.bias is not None
    return merged.weight.astype(np.float32), merged.bias.astype(np.float32)


def _tensors(data: bytes) -> dict[str, Any]:
    return {key: tensor.to_float32() for key, tensor in adapter_file.decode(data).tensors.items()}


# Every rule, as it is asked about one projection. Those with a density keep everything: a smaller one drops changes.
RULES: dict[str, Callable[[Projection], MergedProjection]] = {
    "uniform": rules.uniform,
    "weighted": lambda p: rules.weighted(p, [0.3 + 0.4 * (i % 3) for i in range(p.num_experts)]),
    "fisher": lambda p: rules.fisher(p, _information(p, seed=1)),
    "regmean": lambda p: rules.regmean(p, _moments(p, _inputs(p.num_experts, seed=2))),
    "ties": lambda p: rules.ties(p, 1.0),
    "dare": lambda p: rules.dare(p, 1.0, np.random.default_rng(0)),
}


@pytest.mark.parametrize("rule", RULES)
@few
@given(num_experts=counts, seed=seeds)
def test_equal_experts_merge_into_themselves_bit_for_bit(rule: str, num_experts: int, seed: int) -> None:
    projection = _projection(num_experts, seed, same=True)
    weight, bias = _floats(RULES[rule](projection))
    assert projection.bias is not None
    assert np.array_equal(weight, projection.weight.copies[0])
    assert np.array_equal(bias, projection.bias.copies[0])


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("uniform", {}),
        ("weighted", {"weights": [0.25]}),
        ("ties", {}),  # at a density under 1, for there is nothing to merge
        ("dare", {}),
    ],
)
def test_one_expert_is_what_it_merges_into(how: str, arguments: dict[str, Any]) -> None:
    mixture = _mixture(num_experts=1)
    merged = _tensors(merge(mixture, how, **arguments))
    for part in ("weight", "bias"):
        expected = mixture.tensors[expert_key(KEY, 0, part)].to_float32()
        assert np.array_equal(merged[f"{KEY}.{part}"], expected)


@pytest.mark.parametrize("share", ["up", "down", "none"])
@pytest.mark.parametrize("how", ["weighted", "ties", "dare"])
def test_a_shared_projection_stays_and_the_head_is_copied(how: str, share: str) -> None:
    mixture = _mixture(share=share)
    merged = _tensors(merge(mixture, how, weights=[4, 3, 2, 1] if how == "weighted" else None))
    for side in ("down", "up"):
        first = mixture.tensors[f"layers.0.mlp_out.{side}_proj.0.bias"].to_float32()
        assert np.array_equal(merged[f"layers.0.mlp_out.{side}_proj.bias"], first) == (share == side)
    for name in ("head.out_proj.weight", "head.out_proj.bias"):
        assert np.array_equal(merged[name], mixture.tensors[name].to_float32())


@few
@given(num_experts=counts, seed=seeds, weight=st.floats(1e-3, 1e3))
def test_equal_weights_are_the_uniform_mean_bit_for_bit(num_experts: int, seed: int, weight: float) -> None:
    mixture = _mixture(num_experts=num_experts, seed=seed)
    weighted, uniform = merge(mixture, "weighted", weights=[weight] * num_experts), merge(mixture)
    assert all(np.array_equal(value, _tensors(uniform)[key]) for key, value in _tensors(weighted).items())


@few
@given(seed=seeds, weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4))
def test_weights_are_shares_of_weights_and_biases_alike(seed: int, weights: list[float]) -> None:
    mixture = _mixture(seed=seed)
    merged = _tensors(merge(mixture, "weighted", weights=weights))
    for side in ("down_proj", "up_proj"):
        for part in ("weight", "bias"):
            copies = [mixture.tensors[f"layers.0.mlp_out.{side}.{e}.{part}"].to_float32() for e in range(4)]
            expected = np.average(np.stack(copies).astype(np.float64), axis=0, weights=weights)
            np.testing.assert_allclose(merged[f"layers.0.mlp_out.{side}.{part}"], expected, rtol=1e-6, atol=1e-7)


@few
@given(seed=seeds)
def test_with_a_shared_b_the_merged_product_is_the_mean_of_the_products(seed: int) -> None:
    mixture = _mixture(kind="lora", share="up", seed=seed)
    merged = _tensors(merge(mixture, "weighted", weights=[0.4, 0.3, 0.2, 0.1]))
    b = mixture.tensors["layers.0.attn_q.lora_B.0"].to_float32()
    products = [b @ mixture.tensors[f"layers.0.attn_q.lora_A.{e}"].to_float32() for e in range(4)]
    delta = merged["layers.0.attn_q.lora_B"] @ merged["layers.0.attn_q.lora_A"]
    np.testing.assert_allclose(delta, np.average(products, axis=0, weights=[0.4, 0.3, 0.2, 0.1]), atol=1e-5)


def test_scores_merge_as_the_release_merges_them() -> None:
    """Its inference level 3, in its own terms: a sum of the experts times softmax(expert_score_weight), in fp32."""
    mixture = _mixture(share="up")
    scores = torch.tensor([0.5, -1.0, 0.0, 2.0])
    by_projection = {KEY: scores.softmax(0).tolist()}  # the shared projection may be left out
    merged = _tensors(merge(mixture, "weighted", weights=by_projection))
    for part in ("weight", "bias"):
        experts = [torch.from_numpy(mixture.tensors[expert_key(KEY, e, part)].to_float32()) for e in range(4)]
        shares = torch.softmax(scores, 0)
        expected = sum(share * expert for share, expert in zip(shares, experts, strict=True))
        np.testing.assert_allclose(merged[f"{KEY}.{part}"], expected, rtol=1e-5, atol=1e-6)
    uniform = _tensors(merge(mixture, "weighted", weights={KEY: torch.zeros(4).softmax(0).tolist()}))
    assert all(np.array_equal(value, _tensors(merge(mixture))[key]) for key, value in uniform.items())


@pytest.mark.parametrize("rule", ["uniform", "regmean", "fisher", "ties", "dare"])
@few
@given(order=st.permutations(range(4)), seed=seeds)
def test_the_order_of_the_experts_changes_nothing(rule: str, order: list[int], seed: int) -> None:
    projection = _projection(4, seed)
    inputs, information = _inputs(4, seed), _information(projection, seed)
    assert information.bias is not None
    shuffled = _permuted(projection, order)
    apply: dict[str, Callable[[Projection, list[int]], MergedProjection]] = {
        "uniform": lambda p, _: rules.uniform(p),
        "regmean": lambda p, o: rules.regmean(p, _moments(p, [inputs[i] for i in o])),
        "fisher": lambda p, o: rules.fisher(p, Information(information.weight[o], information.bias[o])),  # type: ignore[index]
        "ties": lambda p, _: rules.ties(p, 0.5),
        "dare": lambda p, _: rules.dare(p, 1.0, np.random.default_rng(0)),
    }
    first, second = apply[rule](projection, [0, 1, 2, 3]), apply[rule](shuffled, order)
    np.testing.assert_allclose(first.weight, second.weight, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(first.bias, second.bias, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


@few
@given(num_experts=counts, seed=seeds)
def test_equal_information_is_the_uniform_mean_bit_for_bit(num_experts: int, seed: int) -> None:
    projection = _projection(num_experts, seed)
    one = _information(_projection(1), seed)
    assert one.bias is not None
    equal = Information(np.repeat(one.weight, num_experts, axis=0), np.repeat(one.bias, num_experts, axis=0))
    nothing = Information(np.zeros_like(equal.weight), np.zeros_like(equal.bias))
    expected = _floats(rules.uniform(projection))
    for information in (equal, nothing):
        for found, wanted in zip(_floats(rules.fisher(projection, information)), expected, strict=True):
            assert np.array_equal(found, wanted)


def test_information_weighs_every_number_by_itself() -> None:
    projection = _projection(2)
    weight = np.zeros_like(projection.weight.copies, dtype=np.float64)
    weight[0, 0] = weight[1, 1] = 1.0  # of the first unit the first expert knows, of the second the second
    merged = rules.fisher(projection, Information(weight, np.array([[3.0, 1.0], [1.0, 1.0]])))
    # What the floor adds to both experts moves the result by a millionth of their difference at most.
    np.testing.assert_allclose(merged.weight[0], projection.weight.copies[0, 0], atol=1e-5)
    np.testing.assert_allclose(merged.weight[1], projection.weight.copies[1, 1], atol=1e-5)
    assert projection.bias is not None
    assert merged.bias is not None
    np.testing.assert_allclose(merged.bias[0], np.average(projection.bias.copies[:, 0], weights=[3, 1]), atol=1e-5)


@few
@given(seed=seeds, num_experts=st.integers(2, 4))
def test_regmean_is_nearest_to_each_expert_on_its_own_inputs(seed: int, num_experts: int) -> None:
    """Against a least-squares solution of the stacked problem, which knows no normal equations."""
    projection, inputs = _projection(num_experts, seed), _inputs(num_experts, seed + 1)
    assert projection.bias is not None
    extended = [np.hstack([x, np.ones((len(x), 1))]) for x in inputs]
    outputs = [
        x @ np.vstack([projection.weight.copies[i].T, projection.bias.copies[i]]) for i, x in enumerate(extended)
    ]
    expected = np.linalg.lstsq(np.vstack(extended), np.vstack(outputs), rcond=None)[0]
    merged = rules.regmean(projection, _moments(projection, inputs))
    assert merged.bias is not None
    # The ridge is a millionth of the inputs' mean square; these are conditioned far better than that.
    np.testing.assert_allclose(merged.weight.T, expected[:-1], atol=1e-4)
    np.testing.assert_allclose(merged.bias, expected[-1], atol=1e-4)


def test_regmean_keeps_what_the_experts_agree_on() -> None:
    projection = _projection(3)
    weight = projection.weight.copies.copy()
    weight[:, :, :2] = weight[0, :, :2]  # the experts agree on the first two inputs, and the others never occur
    assert projection.bias is not None
    bias = np.repeat(projection.bias.copies[:1], 3, axis=0)
    agreeing = Projection(KEY, ExpertStack(weight, None), ExpertStack(bias, None))
    inputs = [x * np.array([1, 1, 0, 0, 0]) for x in _inputs(3, seed=5)]
    merged = rules.regmean(agreeing, _moments(agreeing, inputs))
    assert merged.bias is not None
    for x in inputs:
        np.testing.assert_allclose(x @ merged.weight.T + merged.bias, x @ weight[0].T + bias[0], atol=1e-9)
    # In directions without inputs the uniform mean stays.
    np.testing.assert_allclose(merged.weight[:, 2:], weight[:, :, 2:].mean(axis=0), atol=1e-6)


def test_regmean_without_inputs_is_the_uniform_mean() -> None:
    projection = _projection(3)
    size = HIDDEN + 1
    merged = rules.regmean(projection, Moments(np.zeros((size, size)), np.zeros((size, RANK))))
    assert np.array_equal(merged.weight, rules.uniform(projection).weight)


def test_ties_trims_elects_and_averages() -> None:
    """Worked out by hand; half of the six changes of each expert stay."""
    start = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=np.float32)
    changes = np.array([[4, -3, 2, 0.5, 0, 0.1], [-1, -5, 0.2, 0.1, 6, -7], [2, 8, -3, 1, 0, 0]], dtype=np.float32)
    # Kept: 4 -3 2 . . . | . -5 . . 6 -7 | 2 8 -3 . . . ; sums 6 0 -1 0 6 -7; so the second number has no majority.
    expected = np.array([3.0, 0.0, -3.0, 0.0, 6.0, -7.0])
    stack = ExpertStack((start + changes)[:, None, :], start[None, :])
    merged = rules.ties(Projection("layers.0.attn_q.lora_A", stack, None), 0.5)
    np.testing.assert_allclose(merged.weight[0], 1 + expected, atol=1e-6)
    assert merged.bias is None


@few
@given(seed=seeds, num_experts=counts)
def test_with_all_changes_kept_dare_is_the_start_and_the_mean_change(seed: int, num_experts: int) -> None:
    projection = _projection(num_experts, seed)
    assert projection.weight.initial is not None
    start = projection.weight.initial.astype(np.float64)
    expected = start + (projection.weight.copies - start).mean(axis=0)
    found = rules.dare(projection, 1.0, np.random.default_rng(seed))
    np.testing.assert_allclose(found.weight, expected, atol=1e-12)
    # TIES too, where the experts agree on the sign: otherwise the outvoted ones are left out of the mean.
    agreeing = ExpertStack((start + np.abs(projection.weight.copies)).astype(np.float32), projection.weight.initial)
    found = rules.ties(Projection(KEY, agreeing, None), 1.0)
    np.testing.assert_allclose(found.weight, agreeing.copies.mean(axis=0), atol=1e-6)


def test_dare_drops_at_random_and_keeps_the_expectation() -> None:
    stack = ExpertStack(np.ones((2, 50, 40), dtype=np.float32), np.zeros((50, 40), dtype=np.float32))
    projection = Projection("layers.0.attn_q.lora_A", stack, None)
    merged = rules.dare(projection, 0.25, np.random.default_rng(0)).weight
    # Each of two experts contributes 4 with the probability 0.25: their mean is 0, 2 or 4.
    assert set(np.unique(merged)) == {0.0, 2.0, 4.0}
    # The standard error of the mean of 2,000 such numbers is sqrt(3/2 / 2000) = 0.027; four of these.
    assert merged.mean() == pytest.approx(1.0, abs=0.11)


def test_dare_follows_its_seed() -> None:
    mixture = _mixture()
    first, again, other = (merge(mixture, "dare", config=MergeConfig(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert not np.array_equal(_tensors(first)[f"{KEY}.weight"], _tensors(other)[f"{KEY}.weight"])


@pytest.mark.parametrize(
    ("how", "arguments", "record"),
    [
        ("uniform", {}, "uniform"),
        ("weighted", {"weights": [0.4, 0.3, 0.2, 0.1]}, "weighted 0.4,0.3,0.2,0.1"),
        ("weighted", {"weights": [1 / 3 + i * 1e-3 for i in range(12)]}, "weighted"),  # too long for the manifest
        ("ties", {}, "ties density=0.2"),
        ("ties", {"config": MergeConfig(density=0.5)}, "ties density=0.5"),
        ("dare", {"config": MergeConfig(seed=7)}, "dare density=0.1 seed=7"),
    ],
)
def test_the_manifest_says_how(how: str, arguments: dict[str, Any], record: str) -> None:
    mixture = _mixture(num_experts=len(arguments.get("weights", [0] * 4)))
    training = adapter_file.decode(merge(mixture, how, **arguments)).manifest.training
    assert training.merge == record
    # Training measured the uniform mean: its numbers are no other adapter's.
    assert training.metrics == ({"validation_accuracy": 0.5} if how == "uniform" else {})


def test_a_common_start_does_not_change_the_mean() -> None:
    mixture = _mixture()
    without = {key: tensor for key, tensor in mixture.tensors.items() if not key.startswith("initial.")}
    manifest = msgspec.structs.replace(mixture.manifest, common_start=False)
    assert merge(mixture) == merge(MixtureFile(manifest, without))


@pytest.mark.parametrize("how", ["ties", "dare"])
def test_without_a_common_start_there_are_no_changes(how: str) -> None:
    mixture = _mixture()
    without = {key: tensor for key, tensor in mixture.tensors.items() if not key.startswith("initial.")}
    manifest = msgspec.structs.replace(mixture.manifest, common_start=False)
    with pytest.raises(InvalidConfig, match="--expert-init same"):
        merge(MixtureFile(manifest, without), how)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"initial.{KEY}.weight": None}, "TENSOR_MISSING"),
        ({f"initial.{KEY}.weight": (RANK, HIDDEN + 1)}, "SHAPE_MISMATCH"),
        ({"initial.layers.0.attn_q.lora_A": (RANK, HIDDEN)}, "TENSOR_UNEXPECTED"),
    ],
)
def test_a_malformed_start_is_refused(change: dict[str, Any], reason: str) -> None:
    mixture = _mixture()
    ((key, shape),) = change.items()
    tensors = {name: tensor for name, tensor in mixture.tensors.items() if name != key}
    if shape is not None:
        tensors[key] = TensorData.from_float32(np.zeros(shape))
    with pytest.raises(InvalidAdapter) as caught:
        merge(dataclasses.replace(mixture, tensors=tensors), "ties")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "needs --weights"),
        ([0.5, 0.5], "4 experts, but 2 weights"),
        ([1, 1, 1, -1], "not negative"),
        ([1, 1, 1, float("nan")], "finite"),
        ([0, 0, 0, 0], "over 0"),
        ({KEY: [1, 1, 1, 1]}, "no weights for layers.0.mlp_out.up_proj"),
        ({KEY: [1, 1, 1, 1], "layers.0.attn_q.lora_A": [1]}, "does not have"),
        ({KEY: [1, 1, 1], "layers.0.mlp_out.up_proj": [1, 1, 1, 1]}, "4 experts, but 3 weights"),
    ],
)
def test_weights_that_fit_no_mixture_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        merge(_mixture(), "weighted", weights=weights)


@pytest.mark.parametrize("num_experts", [0, 3, 5, 10**15])
def test_a_mixture_of_another_number_of_experts_is_refused(num_experts: int) -> None:
    mixture = _mixture()
    manifest = msgspec.structs.replace(mixture.manifest, num_experts=num_experts)
    with pytest.raises(InvalidAdapter) as caught:
        merge(dataclasses.replace(mixture, manifest=manifest))
    assert caught.value.reason == "TENSOR_MISSING"


def test_what_a_method_does_not_read_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="weights are for --how weighted"):
        merge(_mixture(), "uniform", weights=[1, 1, 1, 1])
    with pytest.raises(InvalidConfig, match="give --data"):
        merge(_mixture(), "fisher")
