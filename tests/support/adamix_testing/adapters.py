"""Adapters of random weights for a given backbone."""

from typing import Protocol, TypedDict, Unpack

import msgspec
import numpy as np
from numpy.random import Generator

from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneRef, BackboneSpec, Dense, HeadSpec, Kind, Pooling, PromptForm, TrainingRecord
from adamix.files.tensors import TensorData
from adamix_testing.manifests import make_manifest

WRITER = HeadSpec(type="causal_lm", pooling="none")
NO_MAYBE_YES = HeadSpec(
    type="classification", pooling="mean", num_labels=3, id2label={"0": "no", "1": "maybe", "2": "yes"}
)


def random_adapter(
    spec: BackboneSpec,
    seed: int,
    *,
    kind: Kind = "bottleneck",
    sites: tuple[str, ...] = ("mlp_out",),
    rank: int = 4,
    num_labels: int = 3,
    pooling: Pooling = "mean",
    dense: Dense = "none",
) -> AdapterFile:
    """An adapter at these sites of every layer; a classifier, or with one label a regression."""
    random = np.random.default_rng(seed)
    tensors: dict[str, TensorData] = {}
    for layer in range(spec.num_layers):
        for site in sites:
            tensors |= _weights_at(f"layers.{layer}.{site}.", kind, rank, spec.sites[site], random)
    if dense == "own":
        tensors["head.dense.weight"] = _normal(random, spec.hidden_size, spec.hidden_size)
        tensors["head.dense.bias"] = _normal(random, spec.hidden_size)
    tensors["head.out_proj.weight"] = _normal(random, num_labels, spec.hidden_size)
    tensors["head.out_proj.bias"] = _normal(random, num_labels)
    head = HeadSpec(
        type="classification" if num_labels > 1 else "regression",
        pooling=pooling,
        dense=dense,
        num_labels=num_labels,
        activation="tanh" if dense == "own" else None,
    )
    manifest = make_manifest(spec, head, kind=kind, scaling=0.5, training=TrainingRecord(method="random"))
    return adapter_file.decode(adapter_file.encode(manifest, tensors))


def text_adapter(
    spec: BackboneSpec,
    seed: int,
    *,
    kind: Kind = "lora",
    sites: tuple[str, ...] = ("attn_q", "attn_v"),
    rank: int = 4,
    spread: float = 0.3,
) -> AdapterFile:
    """An adapter at these sites of every layer of a decoder, under the language-model head."""
    random = np.random.default_rng(seed)
    tensors: dict[str, TensorData] = {}
    for layer in range(spec.num_layers):
        for site in sites:
            tensors |= _weights_at(f"layers.{layer}.{site}.", kind, rank, spec.sites[site], random, spread)
    head = HeadSpec(type="causal_lm", pooling="none")
    manifest = make_manifest(spec, head, kind=kind, scaling=0.5, training=TrainingRecord(method="random"))
    return adapter_file.decode(adapter_file.encode(manifest, tensors))


def embedding_adapter(spec: BackboneSpec) -> AdapterFile:
    """A LoRA whose head gives the mean state as it is."""
    tensors = _weights_at("layers.0.attn_v.", "lora", 4, spec.sites["attn_v"], np.random.default_rng(0))
    head = HeadSpec(type="embedding", pooling="mean")
    manifest = make_manifest(spec, head, kind="lora", scaling=0.5, training=TrainingRecord(method="random"))
    return adapter_file.decode(adapter_file.encode(manifest, tensors))


def adapter_bytes(
    spec: BackboneRef,
    head: HeadSpec = NO_MAYBE_YES,
    *,
    seed: int = 0,
    max_length: int = 16,
    bad: float | None = None,
    fingerprint: str | None = None,
    prompt: PromptForm | None = None,
    chat_template: str | None = None,
) -> bytes:
    """The file of an adapter at one site of the first layer.

    `bad` takes the place of its first weight, `fingerprint` that of the backbone's own.
    """
    width = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "layers.0.mlp_out.down_proj.weight": (2, width),
        "layers.0.mlp_out.down_proj.bias": (2,),
        "layers.0.mlp_out.up_proj.weight": (width, 2),
        "layers.0.mlp_out.up_proj.bias": (width,),
    }
    if head.type in ("classification", "multilabel", "regression"):
        shapes |= {"head.out_proj.weight": (head.num_labels, width), "head.out_proj.bias": (head.num_labels,)}
    random = np.random.default_rng(seed)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if bad is not None:
        arrays["layers.0.mlp_out.down_proj.weight"][0, 0] = bad
    training = TrainingRecord(method="adamix", seed=seed)
    if fingerprint is not None:
        spec = msgspec.structs.replace(spec, fingerprint=fingerprint)
    manifest = make_manifest(
        spec, head, max_length=max_length, training=training, prompt=prompt, chat_template=chat_template
    )
    return adapter_file.encode(manifest, {name: TensorData("F32", array) for name, array in arrays.items()})


class MakeAdapter(Protocol):
    """The fixture `make_adapter` of the front end's tests: `adapter_bytes` for the backbone that is played."""

    def __call__(
        self,
        head: HeadSpec = ...,
        *,
        seed: int = 0,
        max_length: int = 16,
        bad: float | None = None,
        fingerprint: str | None = None,
    ) -> bytes: ...


class AdapterShape(TypedDict, total=False):
    """What `random_adapter` makes, each part optional."""

    kind: Kind
    sites: tuple[str, ...]
    rank: int
    num_labels: int
    pooling: Pooling
    dense: Dense


class MakeRandomAdapter(Protocol):
    """The fixture `make_adapter` of all other tests: `random_adapter`, for a tiny BERT if no `spec` is given."""

    def __call__(self, seed: int, *, spec: BackboneSpec = ..., **shape: Unpack[AdapterShape]) -> AdapterFile: ...


def _weights_at(
    name: str, kind: Kind, rank: int, widths: tuple[int, int], random: Generator, spread: float = 0.3
) -> dict[str, TensorData]:
    width_in, width_out = widths
    if kind == "lora":
        return {
            name + "lora_A": _normal(random, rank, width_in, spread=spread),
            name + "lora_B": _normal(random, width_out, rank, spread=spread),
        }
    return {
        name + "down_proj.weight": _normal(random, rank, width_out, spread=spread),
        name + "down_proj.bias": _normal(random, rank, spread=spread),
        name + "up_proj.weight": _normal(random, width_out, rank, spread=spread),
        name + "up_proj.bias": _normal(random, width_out, spread=spread),
    }


def _normal(random: Generator, *shape: int, spread: float = 0.3) -> TensorData:
    return TensorData.from_float32(random.normal(0, spread, shape))
