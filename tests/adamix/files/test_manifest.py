"""What a manifest may say, and how its numbers and names are looked up."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.manifest import MAX_NEW_MANIFEST_BYTES, SITES, HeadSpec, Manifest, TrainingRecord, check_size
from adamix.files.tensors import TensorData, canonical_json

EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "kind missing": lambda m: m.pop("kind"),
    "kind unknown": lambda m: m.update(kind="prefix"),
    "activation unknown": lambda m: m.update(activation="eval"),
    "unknown key": lambda m: m.update(extra=1),
    "unknown key in the head": lambda m: m["head"].update(extra=1),
    "key with escape codes": lambda m: m.update({"\x1b[2J\ud800": 1}),
    "lora with an activation": lambda m: m.update(kind="lora"),
    "scaling is text": lambda m: m.update(scaling="1"),
    "scaling is a boolean": lambda m: m.update(scaling=True),
    "scaling is huge": lambda m: m.update(scaling=1e5),
    "scaling beyond floats": lambda m: m.update(scaling=10**400),
    "scaling of an unknown site": lambda m: m.update(scaling={"mlp": 1.0}),
    "scaling with a leading zero": lambda m: m.update(scaling={"layers.01.mlp_out": 1.0}),
    "scaling in other digits": lambda m: m.update(scaling={"layers.١.mlp_out": 1.0}),
    "scaling with a line end": lambda m: m.update(scaling={"mlp_out\n": 1.0}),
    "max_length zero": lambda m: m.update(max_length=0),
    "max_length negative": lambda m: m.update(max_length=-1),
    "max_length huge": lambda m: m.update(max_length=10**7),
    "max_length beyond 64 bits": lambda m: m.update(max_length=10**30),
    "max_length fractional": lambda m: m.update(max_length=1.5),
    "max_length boolean": lambda m: m.update(max_length=True),
    "window zero": lambda m: m.update(window=0),
    "stride zero": lambda m: m.update(stride=0),
    "fingerprint short": lambda m: m["backbone"].update(fingerprint="0" * 63),
    "fingerprint upper case": lambda m: m["backbone"].update(fingerprint="A" * 64),
    "fingerprint with a line end": lambda m: m["backbone"].update(fingerprint="0" * 64 + "\n"),
    "tokenizer fingerprint": lambda m: m["backbone"].update(tokenizer_fingerprint=""),
    "pooler fingerprint": lambda m: m["backbone"].update(pooler_fingerprint="x"),
    "hidden size zero": lambda m: m["backbone"].update(hidden_size=0),
    "layers zero": lambda m: m["backbone"].update(num_layers=0),
    "layers huge": lambda m: m["backbone"].update(num_layers=10**6),
    "backbone name empty": lambda m: m["backbone"].update(name=""),
    "backbone name long": lambda m: m["backbone"].update(name="x" * 513),
    "backbone name with escape codes": lambda m: m["backbone"].update(name="\x1b[2Jx"),
    "model type with a line end": lambda m: m["backbone"].update(model_type="bert\n"),
    "head type unknown": lambda m: m["head"].update(type="tagging"),
    "no labels": lambda m: m["head"].update(num_labels=0),
    "too many labels": lambda m: m["head"].update(num_labels=4097),
    "label id missing": lambda m: m["head"].update(id2label={"0": "a", "1": "b"}),
    "label id too many": lambda m: m["head"]["id2label"].update({"3": "d"}),
    "label id in another form": lambda m: m["head"].update(id2label={"0": "a", "1": "b", "02": "c"}),
    "label name long": lambda m: m["head"]["id2label"].update({"0": "x" * 513}),
    "label name no text": lambda m: m["head"]["id2label"].update({"0": 1}),
    "label name not Unicode": lambda m: m["head"]["id2label"].update({"0": "\ud800"}),
    "dense layer without activation": lambda m: m["head"].pop("activation"),
    "regression with three labels": lambda m: m["head"].update(type="regression"),
    "threshold over one": lambda m: m["head"].update(threshold=1.01),
    "threshold negative": lambda m: m["head"].update(threshold=-0.1),
    "clip reversed": lambda m: m["head"].update(clip=[1, 0]),
    "clip empty": lambda m: m["head"].update(clip=[1, 1]),
    "clip of three": lambda m: m["head"].update(clip=[1, 2, 3]),
    "clip beyond floats": lambda m: m["head"].update(clip=[0, 1e16]),
    "dim of a classifier": lambda m: m["head"].update(dim=3),
    "dim zero": lambda m: m.update(head={"type": "embedding", "pooling": "mean", "dim": 0}),
    "dim huge": lambda m: m.update(head={"type": "embedding", "pooling": "mean", "dim": 10**30}),
    "experts zero": lambda m: m["training"].update(num_experts=0),
    "experts beyond 64 bits": lambda m: m["training"].update(num_experts=10**30),
    "seed beyond 64 bits": lambda m: m["training"].update(seed=2**63),
    "share unknown": lambda m: m["training"].update(share="both"),
    "consistency huge": lambda m: m["training"].update(consistency=1e300),
    "method empty": lambda m: m["training"].update(method=""),
    "merge with escape codes": lambda m: m["training"].update(merge="\x1b[2J"),
    "data long": lambda m: m["training"].update(data="x" * 513),
    "data not Unicode": lambda m: m["training"].update(data="\udfff"),
    "metric is text": lambda m: m["training"].update(metrics={"accuracy": "high"}),
    "metric name not Unicode": lambda m: m["training"].update(metrics={"\ud800": 1.0}),
}


@pytest.mark.parametrize("case", EDITS)
def test_manifests_out_of_range_are_refused(with_manifest: Callable[..., bytes], case: str) -> None:
    data = with_manifest(EDITS[case])
    with pytest.raises(InvalidAdapter, match=r"^manifest: ") as caught:
        adapter_file.decode(data)
    assert caught.value.reason == "MANIFEST_INVALID"
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("path", [("scaling",), ("head", "clip"), ("training", "consistency"), ("training", "metrics")])
def test_numbers_that_overflow_to_infinity_are_refused(manifest: Manifest, path: tuple[str, ...]) -> None:
    value: Any = manifest.to_json()
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    # What json.loads makes of 1e999.
    inner[path[-1]] = {"clip": [0.0, float("inf")], "metrics": {"f1": float("-inf")}}.get(path[-1], float("inf"))
    with pytest.raises(InvalidAdapter):
        Manifest.from_json(value)


@pytest.mark.parametrize("value", [None, [], "x", 5, {}])
def test_manifests_of_another_type_are_refused(value: object) -> None:
    with pytest.raises(InvalidAdapter):
        Manifest.from_json(value)


def test_the_golden_manifest_survives_json(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def _copied(value: Any) -> Any:
    """The same value out of other objects: strings from a command line are not those of the program."""
    if isinstance(value, dict):
        return {_copied(key): _copied(item) for key, item in value.items()}
    return "".join(list(value)) if isinstance(value, str) else value


def test_equal_manifests_give_equal_bytes(manifest: Manifest, tensors: dict[str, TensorData]) -> None:
    other = Manifest.from_json(_copied(manifest.to_json()))
    assert other.training.merge is not manifest.training.merge
    assert adapter_file.encode(other, tensors) == adapter_file.encode(manifest, tensors)
    for training in (TrainingRecord(method="adamix"), TrainingRecord(method="adamix", merge=_copied("uniform"))):
        # Whole numbers in the place of floats, too, are equal.
        same = msgspec.structs.replace(manifest, scaling=2, training=training)
        assert same.to_json()["scaling"] == 2.0
        assert canonical_json(same.to_json()) == canonical_json(
            msgspec.structs.replace(manifest, scaling=2.0, training=TrainingRecord(method="adamix")).to_json()
        )


def test_everything_but_none_is_written_and_defaults_may_be_left_out(manifest: Manifest) -> None:
    written = manifest.to_json()
    assert written["training"]["merge"] == "uniform"
    assert "window" not in written
    assert "threshold" not in written["head"]
    for key in ("merge", "metrics", "share"):
        del written["training"][key]
    del written["head"]["dense"]
    short = Manifest.from_json(written)
    assert (short.training.merge, short.training.metrics, short.training.share) == ("uniform", {}, "none")
    assert short.head.dense == "none"
    assert Manifest.from_json(written | {"window": None}).window is None


def test_scale_prefers_the_layer_then_the_site_then_one(with_manifest: Callable[..., bytes]) -> None:
    scaling = {"mlp_out": 2, "layers.1.mlp_out": 0.25, "layers.12.attn_q": 8.0}
    found = adapter_file.decode(with_manifest(lambda m: m.update(scaling=scaling))).manifest
    assert [found.scale(layer, "mlp_out") for layer in (0, 1, 2)] == [2.0, 0.25, 2.0]
    assert (found.scale(12, "attn_q"), found.scale(1, "attn_q")) == (8.0, 1.0)
    everywhere = adapter_file.decode(with_manifest(lambda m: m.update(scaling=3))).manifest
    assert {everywhere.scale(layer, site) for layer in (0, 7) for site in SITES} == {3.0}


def test_labels_are_in_the_order_of_their_ids() -> None:
    names = {str(i): f"name {i}" for i in reversed(range(12))}
    named = HeadSpec(type="classification", pooling="cls", num_labels=12, id2label=names)
    assert named.labels == tuple(f"name {i}" for i in range(12))
    assert HeadSpec(type="classification", pooling="cls", num_labels=2).labels == ("LABEL_0", "LABEL_1")


def test_a_manifest_that_is_written_has_a_largest_size_and_what_is_too_large_is_named(manifest: Manifest) -> None:
    size = len(canonical_json(manifest.to_json()))
    names = {"0": "x" * 512, "1": "y", "2": "z"}
    large = msgspec.structs.replace(manifest, head=msgspec.structs.replace(manifest.head, id2label=names))
    check_size(canonical_json(large.to_json()))
    check_size(" " * MAX_NEW_MANIFEST_BYTES)
    check_size(canonical_json(large.to_json()), spare=MAX_NEW_MANIFEST_BYTES - size - 600)
    with pytest.raises(InvalidAdapter, match=r"names of the labels \(head\.id2label\)") as said:
        check_size(canonical_json(large.to_json()), spare=MAX_NEW_MANIFEST_BYTES - size)
    assert said.value.reason == "MANIFEST_TOO_LARGE"
    metrics = {f"measure_{number}": 0.1 for number in range(20_000)}
    training = msgspec.structs.replace(manifest.training, metrics=metrics)
    measured = canonical_json(msgspec.structs.replace(manifest, training=training).to_json())
    with pytest.raises(InvalidAdapter, match=r"training\.metrics"):
        check_size(measured)
