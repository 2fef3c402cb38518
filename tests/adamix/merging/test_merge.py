"""Merging: the invariants, and what is refused."""

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.files import adapter_file
from adamix.files.manifest import HeadSpec, TrainingRecord
from adamix.files.tensors import MIXTURE_FORMAT, TensorData, encode_tensors
from adamix.merging import fisher
from adamix.merging.merge import MIXTURE_FILE, MergeConfig, MixtureFile, MixtureManifest, merge, read_mixture
from adamix_testing.manifests import make_manifest, make_spec

HIDDEN, RANK = 6, 2


def _mixture(kind: str = "bottleneck", share: str = "up", num_experts: int = 3, seed: int = 0) -> MixtureFile:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> TensorData:
        return TensorData.from_float32(rng.standard_normal(shape))

    counts = {"down": 1 if share == "down" else num_experts, "up": 1 if share == "up" else num_experts}
    tensors = {"head.out_proj.weight": draw(2, HIDDEN), "head.out_proj.bias": draw(2)}
    site = "layers.1.attn_q" if kind == "lora" else "layers.1.mlp_out"
    for expert in range(counts["down"]):
        if kind == "lora":
            tensors[f"{site}.lora_A.{expert}"] = draw(RANK, HIDDEN)
        else:
            tensors[f"{site}.down_proj.{expert}.weight"] = draw(RANK, HIDDEN)
            tensors[f"{site}.down_proj.{expert}.bias"] = draw(RANK)
    for expert in range(counts["up"]):
        if kind == "lora":
            tensors[f"{site}.lora_B.{expert}"] = draw(HIDDEN, RANK)
        else:
            tensors[f"{site}.up_proj.{expert}.weight"] = draw(HIDDEN, RANK)
            tensors[f"{site}.up_proj.{expert}.bias"] = draw(HIDDEN)
    manifest = make_manifest(
        make_spec(hidden_size=HIDDEN),
        HeadSpec(type="classification", pooling="mean", num_labels=2),
        kind=kind,
        training=TrainingRecord(method="adamix", num_experts=num_experts, share=share, seed=seed),
    )
    mixed = MixtureManifest(adapter=manifest, num_experts=num_experts, share=share, routing_granularity="batch")
    return MixtureFile(mixed, tensors)


def _values(data: bytes) -> dict[str, Any]:
    return {key: tensor.to_float32() for key, tensor in adapter_file.decode(data).tensors.items()}


@pytest.mark.parametrize("share", ["up", "down", "none"])
def test_weights_and_biases_are_the_uniform_mean(share: str) -> None:
    mixture = _mixture(share=share)
    merged = _values(merge(mixture))
    for name in ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias"):
        side, part = name.split(".")
        copies = [t.to_float32() for key, t in mixture.tensors.items() if f".{side}." in key and key.endswith(part)]
        assert len(copies) == (1 if share == side.removesuffix("_proj") else 3)
        np.testing.assert_allclose(merged[f"layers.1.mlp_out.{name}"], np.mean(copies, axis=0), rtol=1e-6)


@pytest.mark.parametrize("num_experts", [1, 3, 4, 7])
def test_equal_experts_merge_into_themselves_bit_for_bit(num_experts: int) -> None:
    mixture = _mixture(share="none", num_experts=num_experts)
    firsts = {key: mixture.tensors[re.sub(r"_proj\.\d\.", "_proj.0.", key)] for key in mixture.tensors}
    same = dataclasses.replace(mixture, tensors=firsts)
    merged = _values(merge(same))
    for name in ("down_proj.weight", "up_proj.bias"):
        side, part = name.split(".")
        expected = mixture.tensors[f"layers.1.mlp_out.{side}.0.{part}"].to_float32()
        assert np.array_equal(merged[f"layers.1.mlp_out.{name}"], expected)


def test_with_a_shared_b_the_merged_lora_is_the_mean_of_the_products() -> None:
    mixture = _mixture(kind="lora", num_experts=4)
    merged = _values(merge(mixture))
    b = mixture.tensors["layers.1.attn_q.lora_B.0"].to_float32()
    products = [b @ mixture.tensors[f"layers.1.attn_q.lora_A.{expert}"].to_float32() for expert in range(4)]
    delta = merged["layers.1.attn_q.lora_B"] @ merged["layers.1.attn_q.lora_A"]
    np.testing.assert_allclose(delta, np.mean(products, axis=0), atol=1e-6)


def test_the_head_and_the_manifest_go_through() -> None:
    mixture = _mixture()
    merged = adapter_file.decode(merge(mixture))
    for name in ("out_proj.weight", "out_proj.bias"):
        assert np.array_equal(merged.head()[name].array, mixture.tensors[f"head.{name}"].array)
    assert merged.manifest == mixture.manifest.adapter
    assert merged.manifest.training.merge == "uniform"


def test_merging_is_deterministic_to_the_byte() -> None:
    assert merge(_mixture()) == merge(_mixture())
    assert merge(_mixture()) != merge(_mixture(seed=1))
    assert merge(_mixture(), "".join(["uni", "form"])) == merge(_mixture())


def test_a_mixture_survives_the_disk(tmp_path: Path) -> None:
    mixture = _mixture()
    (tmp_path / MIXTURE_FILE).write_bytes(mixture.encode())
    found = read_mixture(tmp_path)
    assert found.manifest == mixture.manifest
    assert found.encode() == mixture.encode()
    assert merge(tmp_path) == merge(mixture)
    with pytest.raises(InvalidAdapter) as caught:
        adapter_file.read(tmp_path / MIXTURE_FILE)
    assert caught.value.reason == "UNMERGED_MIXTURE"


def test_an_unknown_method_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfig, match=r"must be one of uniform, .* not 'slerp'"):
        merge(_mixture(), "slerp")


def test_an_unfinished_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="train"):
        merge(tmp_path)


def test_a_merged_file_is_not_merged_again(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(merge(_mixture()))
    with pytest.raises(InvalidAdapter) as caught:
        merge(path)
    assert caught.value.reason == "ALREADY_MERGED"


def _without(key: str, mixture: MixtureFile) -> MixtureFile:
    return dataclasses.replace(mixture, tensors={k: v for k, v in mixture.tensors.items() if k != key})


@pytest.mark.parametrize(
    ("mixture", "reason"),
    [
        (_without("layers.1.mlp_out.down_proj.1.weight", _mixture()), "TENSOR_MISSING"),
        (_without("layers.1.mlp_out.down_proj.2.bias", _mixture()), "TENSOR_MISSING"),
        (_without("layers.1.mlp_out.up_proj.0.weight", _mixture()), "TENSOR_MISSING"),
        (_without("head.out_proj.bias", _mixture()), "TENSOR_MISSING"),
    ],
)
def test_a_mixture_that_lacks_a_tensor_is_refused(mixture: MixtureFile, reason: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        merge(mixture)
    assert caught.value.reason == reason


def test_experts_of_different_shapes_are_refused() -> None:
    mixture = _mixture()
    odd = TensorData.from_float32(np.zeros((RANK + 1, HIDDEN)))
    tensors = {**mixture.tensors, "layers.1.mlp_out.down_proj.1.weight": odd}
    with pytest.raises(InvalidAdapter) as caught:
        merge(dataclasses.replace(mixture, tensors=tensors))
    assert caught.value.reason == "SHAPE_MISMATCH"


@pytest.mark.parametrize(
    "key",
    [
        "layers.1.mlp_out.gate.0.weight",
        "layers.1.mlp_out.down_proj.0",
        "layers.1.attn_q.lora_A.0.weight",
        "initial.layers.1.mlp_out.down_proj.weight",  # which the manifest does not announce
    ],
)
def test_a_surplus_tensor_is_refused(key: str) -> None:
    mixture = _mixture(num_experts=1)
    tensors = {**mixture.tensors, key: TensorData.from_float32(np.zeros((RANK, HIDDEN)))}
    with pytest.raises(InvalidAdapter) as caught:
        merge(dataclasses.replace(mixture, tensors=tensors))
    assert caught.value.reason == "TENSOR_UNEXPECTED"


@pytest.mark.parametrize("change", [{"num_experts": "four"}, {"share": "both"}, {"surplus": 1}])
def test_a_malformed_mixture_manifest_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    mixture = _mixture()
    manifest = {**msgspec.to_builtins(mixture.manifest), **change}
    data = encode_tensors(MIXTURE_FORMAT, manifest, mixture.tensors)
    path = tmp_path / "mixture.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidAdapter) as caught:
        merge(path)
    assert caught.value.reason == "MANIFEST_INVALID"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("density", 0.0),
        ("density", 1.1),
        ("density", float("nan")),
        ("max_rows", 0),
        ("batch_size", 0),
        ("steps", -1),
        ("learning_rate", float("inf")),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(InvalidConfig) as caught:
        MergeConfig(**{setting: value})  # type: ignore[arg-type]
    assert caught.value.field == setting


def test_labels_are_drawn_as_the_expert_predicts_them() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]]).expand(3000, 3).clone().requires_grad_()
    quantiles = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))
    fisher.log_likelihood(logits, quantiles, "classification").backward()
    assert logits.grad is not None
    shares = torch.softmax(logits[0].detach(), 0)
    # The gradient of a log-softmax is 1 at the label less the distribution: it tells which label was drawn.
    drawn = Counter((logits.grad + shares).argmax(1).tolist())
    # Four standard errors of a share of 3,000 draws are below 0.037.
    assert [drawn[c] / 3000 for c in range(3)] == pytest.approx(shares.tolist(), abs=0.037)
    logits.grad = None
    fisher.log_likelihood(logits, quantiles, "multilabel").backward()
    assert logits.grad is not None
    drawn_labels = (logits.grad > 0).float().mean(0)
    assert drawn_labels.tolist() == pytest.approx(logits[0].detach().sigmoid().tolist(), abs=0.037)
    edge = torch.zeros(1, 2).requires_grad_()
    fisher.log_likelihood(edge, torch.full((1, 2), 1.0), "classification").backward()
    assert edge.grad is not None
    assert edge.grad.tolist() == [[-0.5, 0.5]]  # rounding up to 1 is still the last class


def test_a_mixture_whose_manifest_is_too_large_is_not_merged() -> None:
    mixture = _mixture()
    head = msgspec.structs.replace(
        mixture.manifest.adapter.head, num_labels=600, id2label={str(i): "x" * 500 for i in range(600)}
    )
    adapter = msgspec.structs.replace(mixture.manifest.adapter, head=head)
    large = dataclasses.replace(mixture, manifest=msgspec.structs.replace(mixture.manifest, adapter=adapter))
    with pytest.raises(InvalidAdapter, match="names of the labels") as said:
        merge(large)
    assert said.value.reason == "MANIFEST_TOO_LARGE"
