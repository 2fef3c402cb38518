"""From the parts of an imported adapter to the bytes of a file that fits its backbone.

Written once for all importers: labels, limits and scales are checked here in the same way. Does not know where the
parts came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from adamix.backbones.backbone import Backbone
from adamix.data.task import TaskType
from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import (
    MAX_NAME,
    Activation,
    BackboneRef,
    Dense,
    HeadSpec,
    HeadType,
    Kind,
    Manifest,
    Pooling,
    PromptForm,
    TrainingRecord,
    check_size,
    label_map,
)
from adamix.files.mixture_file import MixtureFile
from adamix.files.tensors import TensorData, canonical_json

DEFAULT_MAX_LENGTH = 128  # tokens: what the release, and most who publish adapters of encoders, train with

EmbeddingPooling = Literal["cls", "mean", "last"]


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the files do not say.

    Attributes:
        labels: names in the order of the head's outputs; None leaves those of the source, or `LABEL_i`.
        task_type: what the outputs mean; None takes one output for a regression and several for a classification.
        max_length: tokens; longer texts are cut. None: 128, or what the backbone can take; for a language model that.
        pooling: makes an adapter that came without a head one for embeddings.
        clip: interval that predictions of a regression are cut to.
    """

    labels: tuple[str, ...] | None = None
    task_type: TaskType | None = None
    max_length: int | None = None
    pooling: EmbeddingPooling | None = None
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            if not self.labels or any(not name or len(name) > MAX_NAME for name in self.labels):
                raise InvalidConfig("--labels: a name is empty or too long", field="labels")
            if len(set(self.labels)) != len(self.labels):
                raise InvalidConfig("--labels names a label twice", field="labels")
        if self.task_type is not None and self.task_type not in get_args(TaskType):
            raise InvalidConfig(f"--task-type must be one of {', '.join(get_args(TaskType))}", field="task_type")
        if self.max_length is not None and self.max_length < 4:
            raise InvalidConfig("--max-length must be at least 4", field="max_length")
        if self.pooling is not None and self.pooling not in get_args(EmbeddingPooling):
            raise InvalidConfig(f"--pooling must be one of {', '.join(get_args(EmbeddingPooling))}", field="pooling")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise InvalidConfig("--clip is two numbers, the lower first", field="clip")


@dataclass(frozen=True, kw_only=True)
class HeadPart:
    """A head as the source has it.

    Attributes:
        type: of the head; None lets the number of outputs and the options decide.
        tensors: `dense.weight`, `out_proj.bias`, and so on.
        labels: names that the source gives.
        clip: interval that the source's own code cuts predictions to.
    """

    pooling: Pooling
    dense: Dense = "none"
    activation: Activation | None = None
    tensors: Mapping[str, TensorData]
    type: HeadType | None = None
    labels: tuple[str, ...] | None = None
    clip: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterPart:
    """The weights at the sites. `scales` has an entry for every (layer, site) that carries weights."""

    kind: Kind
    activation: Activation
    tensors: Mapping[str, TensorData]
    scales: Mapping[tuple[int, str], float]


@dataclass(frozen=True, kw_only=True)
class PromptPart:
    """What a language model's adapter is asked with. `chat_template`: in jinja2, where the source brings its own."""

    form: PromptForm
    chat_template: str | None = None


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An adapter that came in.

    Attributes:
        data: the bytes of its file.
        matched: tensors of the source that were understood: all of them.
        notes: what the person who imports should know.
        mixture: the experts before merging, where the source has some.
        max_abs_diff: largest difference between this adapter's logits (or states) and those of the source's own
            formula in the self-test; None where there is none.
    """

    adapter: AdapterFile
    data: bytes
    matched: int
    notes: tuple[str, ...] = ()
    mixture: MixtureFile | None = None
    max_abs_diff: float | None = None


LANGUAGE_MODEL = HeadPart(pooling="none", tensors={}, type="causal_lm")
# What the library that trained an adapter gave it: ids as `AutoTokenizer` makes them of a text.
TEXT = PromptPart(form="text")


def assemble(
    backbone: Backbone,
    adapter: AdapterPart,
    head: HeadPart,
    options: ImportOptions,
    record: TrainingRecord,
    prompt: PromptPart = TEXT,
) -> tuple[bytes, AdapterFile]:
    """The adapter's file, checked against the backbone.

    Args:
        prompt: counts where the head is a language model's.

    Raises:
        InvalidAdapter: parts do not fit one another or the backbone.
        InvalidConfig: an option contradicts the head.
    """
    if not adapter.scales:
        raise InvalidAdapter("no adapter weights were found", reason="TENSOR_MISSING")
    writes = head.type == "causal_lm"
    manifest = Manifest(
        kind=adapter.kind,
        activation=adapter.activation,
        scaling=compact_scales(adapter.scales),
        backbone=_backbone_ref(backbone, head),
        head=_head_spec(head, options),
        max_length=_max_length(backbone, head, options),
        training=record,
        prompt=prompt.form if writes else None,
        chat_template=prompt.chat_template if writes else None,
    )
    manifest.check()
    check_size(canonical_json(manifest.to_json()))
    tensors = dict(adapter.tensors) | {f"head.{name}": tensor for name, tensor in head.tensors.items()}
    data = adapter_file.encode(manifest, tensors)
    result = adapter_file.decode(data)
    adapter_file.check_backbone(result, backbone.spec)
    return data, result


def without_head(backbone: Backbone, options: ImportOptions) -> HeadPart:
    """The head of an adapter that came without one.

    Raises:
        InvalidConfig: nothing says what it is for.
    """
    if options.pooling is not None:
        return HeadPart(pooling=options.pooling, tensors={}, type="embedding")
    if backbone.family.is_decoder:
        return LANGUAGE_MODEL
    raise InvalidConfig(
        "the source has no classification head; to import it for embeddings, say how tokens are pooled: "
        "--pooling mean, cls or last",
        field="pooling",
    )


def note_on_base(base: object, backbone: Backbone) -> tuple[str, ...]:
    """A note if the source names another base model than the backbone it is imported for."""
    if not isinstance(base, str) or not base or Path(base).name == Path(backbone.name).name:
        return ()
    note = (
        f"the source was trained on {base[:200]!a}, and does not say with which weights: that they are those of "
        f"{backbone.spec.label} could not be checked"
    )
    return (note,)


def compact_scales(scales: Mapping[tuple[int, str], float]) -> float | dict[str, float]:
    """The manifest's `scaling`: one number if all are equal, else one per site, else one per layer and site."""
    if len(set(scales.values())) == 1:
        return next(iter(scales.values()))
    sites: dict[str, set[float]] = {}
    for (_, site), scale in scales.items():
        sites.setdefault(site, set()).add(scale)
    result: dict[str, float] = {}
    for (layer, site), scale in sorted(scales.items()):
        result[site if len(sites[site]) == 1 else f"layers.{layer}.{site}"] = scale
    return result


def _backbone_ref(backbone: Backbone, head: HeadPart) -> BackboneRef:
    spec = backbone.spec
    if head.dense == "backbone" and backbone.pooler is None:
        raise InvalidAdapter(
            f"the head reads the pooler of its backbone, and the checkpoint of {spec.label} has none",
            reason="POOLER_MISMATCH",
        )
    return BackboneRef(
        model_type=spec.model_type,
        fingerprint=spec.fingerprint,
        tokenizer_fingerprint=spec.tokenizer_fingerprint,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        name=backbone.name,
        pooler_fingerprint=spec.pooler_fingerprint if head.dense == "backbone" else None,
    )


def _head_spec(head: HeadPart, options: ImportOptions) -> HeadSpec:
    if head.type in ("causal_lm", "embedding"):
        if options.labels is not None or options.task_type is not None or options.clip is not None:
            raise InvalidConfig("the source has no head with outputs: --labels, --task-type and --clip do not apply")
        return HeadSpec(type=head.type, pooling=head.pooling)
    if options.pooling is not None:
        raise InvalidConfig("the source has a head of its own: --pooling does not apply", field="pooling")
    weight = head.tensors["out_proj.weight"]
    if len(weight.shape) != 2:
        raise InvalidAdapter("the head's output layer is no matrix", reason="SHAPE_MISMATCH")
    count = weight.shape[0]
    layers: dict[str, Any] = {"pooling": head.pooling, "dense": head.dense, "activation": head.activation}
    kind = options.task_type or head.type or ("regression" if count == 1 else "classification")
    if kind == "regression":
        if count != 1:
            raise InvalidConfig(f"a regression has one output, this head has {count}", field="task_type")
        if options.labels is not None:
            raise InvalidConfig("a regression has no labels: --labels does not apply", field="labels")
        return HeadSpec(type=kind, clip=options.clip or head.clip, **layers)
    if options.clip is not None:
        raise InvalidConfig("--clip is for regressions", field="clip")
    if options.labels is not None and len(options.labels) != count:
        raise InvalidConfig(f"--labels: {len(options.labels)} names for a head with {count} outputs", field="labels")
    labels = options.labels or head.labels
    if labels is not None and len(labels) != count:
        raise InvalidAdapter(f"the source names {len(labels)} labels, its head has {count} outputs; give --labels",
                             reason="SHAPE_MISMATCH")  # fmt: skip
    names = None if labels is None else label_map(list(labels))
    threshold = 0.5 if kind == "multilabel" else None
    return HeadSpec(type=kind, num_labels=count, id2label=names, threshold=threshold, **layers)


def _max_length(backbone: Backbone, head: HeadPart, options: ImportOptions) -> int:
    limit = backbone.spec.max_tokens
    if options.max_length is not None and options.max_length > limit:
        raise InvalidConfig(f"--max-length: {backbone.spec.label} takes at most {limit} tokens", field="max_length")
    if options.max_length is not None:
        return options.max_length
    # A prompt is as long as it is: what a row of training had says nothing of it.
    return limit if head.type == "causal_lm" else min(DEFAULT_MAX_LENGTH, limit)
