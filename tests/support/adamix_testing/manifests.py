"""Specs and manifests of backbones and adapters that exist on paper only: no weights, no torch."""

from typing import TypedDict, Unpack

import msgspec

from adamix.files.manifest import (
    Activation,
    BackboneRef,
    BackboneSpec,
    HeadSpec,
    Kind,
    Manifest,
    PromptForm,
    TrainingRecord,
)

THREE_CLASSES = HeadSpec(type="classification", pooling="mean", num_labels=3)


class SpecChanges(TypedDict, total=False):
    """Fields of a `BackboneSpec`, each optional."""

    model_type: str
    fingerprint: str
    tokenizer_fingerprint: str
    pooler_fingerprint: str | None
    hidden_size: int
    num_layers: int
    name: str
    sites: dict[str, tuple[int, int]]
    vocab_size: int
    max_tokens: int
    type_vocab_size: int


class ManifestChanges(TypedDict, total=False):
    """Fields of a `Manifest` beside backbone and head, each optional."""

    kind: Kind
    activation: Activation
    scaling: float | dict[str, float]
    max_length: int
    training: TrainingRecord
    window: int | None
    stride: int | None
    prompt: PromptForm | None
    chat_template: str | None


def make_spec(**changes: Unpack[SpecChanges]) -> BackboneSpec:
    """A BERT of two layers, eight wide, with one site; `changes` take the place of any field."""
    tiny = BackboneSpec(
        model_type="bert",
        fingerprint="a" * 64,
        tokenizer_fingerprint="b" * 64,
        hidden_size=8,
        num_layers=2,
        name="tiny",
        sites={"mlp_out": (16, 8)},
        vocab_size=64,
        max_tokens=64,
    )
    return msgspec.structs.replace(tiny, **changes)


def no_model_spec(max_tokens: int) -> BackboneSpec:
    """The spec of a backbone that computes nothing, for tests in which only lengths matter."""
    return make_spec(hidden_size=1, num_layers=1, name="none", sites={}, vocab_size=8, max_tokens=max_tokens)


def backbone_ref(spec: BackboneRef) -> BackboneRef:
    """What an adapter's manifest says of this backbone."""
    return BackboneRef(**{name: getattr(spec, name) for name in BackboneRef.__struct_fields__})


def make_manifest(spec: BackboneRef, head: HeadSpec = THREE_CLASSES, **changes: Unpack[ManifestChanges]) -> Manifest:
    """A valid manifest of an adapter on this backbone: a bottleneck, unless `changes` say otherwise.

    A LoRA has no activation, so `kind="lora"` alone makes it the identity.
    """
    plain = Manifest(
        kind="bottleneck",
        activation="identity" if changes.get("kind") == "lora" else "gelu",
        scaling=1.0,
        backbone=backbone_ref(spec),
        head=head,
        max_length=32,
        training=TrainingRecord(method="adamix"),
    )
    return msgspec.structs.replace(plain, **changes)
