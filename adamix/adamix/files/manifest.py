"""What an adapter file says about itself, and what a backbone says about itself.

Everything here is plain data: no torch, no numpy, no disk. The manifest travels as canonical JSON in the header of
the adapter file (`adapter_file.py`) and as a row in the server's catalog.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, ClassVar, Literal

import msgspec

from adamix.errors import InvalidAdapter

Kind = Literal["bottleneck", "lora"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"]
HeadType = Literal["classification", "multilabel", "regression", "embedding", "causal_lm", "cloze"]
Pooling = Literal["cls", "mean", "last", "none"]
Dense = Literal["none", "own", "backbone"]
Share = Literal["up", "down", "none"]
RoutingGranularity = Literal["batch", "instance"]
# What text the head of a language model was trained to go on with: a source and a separator, a text as it is, or a chat
# through a template.
PromptForm = Literal["source", "text", "chat"]

LINEAR_SITES = ("attn_q", "attn_k", "attn_v", "attn_out", "mlp_gate", "mlp_in", "mlp_out")
NORM_SITES = ("attn_norm", "mlp_norm")
SITES = LINEAR_SITES + NORM_SITES

# Of a manifest that is written or registered, as canonical JSON. Larger ones of before this limit are still read
# (`tensors.MAX_MANIFEST_BYTES`).
MAX_NEW_MANIFEST_BYTES = 256 << 10
MAX_EXPERTS = 64
MAX_LABELS = 4096
MAX_NAME = 512
MAX_TEMPLATE = 2_000
MAX_CLIP = 1e15
MAX_CHAT_TEMPLATE_BYTES = 64 << 10
# Those that may grow large, for people.
_PARTS = {
    "head.id2label": "the names of the labels (head.id2label)",
    "head.verbalizer": "the tokens of the labels (head.verbalizer)",
    "training.data": "the name of the training data (training.data)",
    "training.metrics": "the metrics (training.metrics)",
}
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCALING_KEY = re.compile(rf"(layers\.(0|[1-9][0-9]{{0,3}})\.)?({'|'.join(SITES)})")


class BackboneRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The backbone an adapter was trained on. Two backbones are the same when their fingerprints are."""

    model_type: str
    fingerprint: str
    tokenizer_fingerprint: str
    hidden_size: int
    num_layers: int
    name: str
    pooler_fingerprint: str | None = None

    @property
    def label(self) -> str:
        """The name without the folders of the machine it was loaded on."""
        is_path = self.name.startswith(("/", ".", "~")) or "\\" in self.name
        return PurePath(self.name).name if is_path else self.name


class BackboneSpec(BackboneRef, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A loaded backbone as the rest of the system sees it: its identity and its shape.

    `sites` maps each site name this family has to its (in_features, out_features); norm points have both equal to
    the hidden size. `max_tokens` is the longest sequence its position embeddings allow.
    """

    sites: dict[str, tuple[int, int]]
    vocab_size: int
    max_tokens: int
    type_vocab_size: int = 0


class HeadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, weakref=True):
    """The layers on top of the pooled hidden state, and how to read their output.

    A `cloze` head has none: it is the backbone's own language-model head. `template` is the text that a row becomes,
    with `{text}`, `{pair}` of a pair, and `{mask}` where the head reads (of a decoder, at the end); `verbalizer` is
    the id of the token that stands for each label.
    """

    DEFAULT_THRESHOLD: ClassVar[float] = 0.5

    type: HeadType
    pooling: Pooling
    dense: Dense = "none"
    num_labels: int = 1
    id2label: dict[str, str] | None = None
    activation: Activation | None = None
    threshold: float | None = None
    dim: int | None = None
    normalize: bool | None = None
    clip: tuple[float, float] | None = None
    template: str | None = None
    verbalizer: tuple[int, ...] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of their ids; `LABEL_i` where the manifest gives none."""
        return tuple(map(self.label, range(self.num_labels)))

    @property
    def effective_threshold(self) -> float:
        """Score from which on a label of a `multilabel` head counts as given."""
        return self.DEFAULT_THRESHOLD if self.threshold is None else self.threshold

    def label(self, index: int) -> str:
        """One of `labels`, without making all of them."""
        named = None if self.id2label is None else self.id2label.get(str(index))
        return f"LABEL_{index}" if named is None else named


class TrainingRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the adapter came to be. For people and reports; nothing at serving time depends on it."""

    method: str
    num_experts: int = 1
    share: Share = "none"
    consistency: float = 0.0
    merge: str = "uniform"
    seed: int = 0
    data: str = ""
    metrics: dict[str, float] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The self-description of an adapter. `check()` has passed on every instance made by `from_json`.

    `prompt` and `chat_template` belong to a `causal_lm` head. Training writes neither, and its adapters go on after
    sources; importers write how their library asks. The template, in jinja2, is used where a request brings a chat, in
    place of the backbone's own.
    """

    kind: Kind
    activation: Activation
    scaling: float | dict[str, float]
    backbone: BackboneRef
    head: HeadSpec
    max_length: int
    training: TrainingRecord
    window: int | None = None
    stride: int | None = None
    prompt: PromptForm | None = None
    chat_template: str | None = None

    # Files that do not say were trained here, on sources.
    DEFAULT_PROMPT_FORM: ClassVar[PromptForm] = "source"

    @property
    def prompt_form(self) -> PromptForm:
        """How a prompt becomes token ids."""
        return self.prompt or self.DEFAULT_PROMPT_FORM

    def scale(self, layer: int, site: str) -> float:
        """The factor on the adapter's output at one site; a `layers.i.site` entry wins over a `site` entry."""
        if not isinstance(self.scaling, dict):
            return float(self.scaling)
        return float(self.scaling.get(f"layers.{layer}.{site}", self.scaling.get(site, 1.0)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: every entry but those that hold None. Equal manifests give equal values and types."""
        # The conversion makes an int that stands for a float a float: they are equal, but their JSON is not.
        converted = msgspec.convert(msgspec.to_builtins(self), Manifest)
        result: dict[str, Any] = _without_none(msgspec.to_builtins(converted))
        return result

    @classmethod
    def from_json(cls, value: object) -> "Manifest":
        """Build and check a manifest from parsed JSON.

        Raises:
            InvalidAdapter: a key is missing, unknown, of the wrong type or out of range; the message names it.
        """
        try:
            manifest = msgspec.convert(value, cls)
        except (msgspec.ValidationError, RecursionError, UnicodeEncodeError) as error:
            # ascii(), because the text quotes keys of the file as they are.
            raise InvalidAdapter(f"manifest: {ascii(str(error))[1:-1][:200]}", reason="MANIFEST_INVALID") from None
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise InvalidAdapter unless every value is in range."""
        back, head = self.backbone, self.head
        for name, digest in (
            ("backbone.fingerprint", back.fingerprint),
            ("backbone.tokenizer_fingerprint", back.tokenizer_fingerprint),
            ("backbone.pooler_fingerprint", back.pooler_fingerprint),
        ):
            _require(digest is None or _HEX_DIGEST.fullmatch(digest) is not None, f"{name} is not a sha256")
        _require(_is_name(back.name, MAX_NAME), "backbone.name is empty, too long or not printable")
        _require(_is_name(back.model_type, 64), "backbone.model_type is empty, too long or not printable")
        _require(1 <= back.hidden_size <= 65_536, "backbone.hidden_size is out of range")
        _require(1 <= back.num_layers <= 1_024, "backbone.num_layers is out of range")
        _require(1 <= self.max_length <= 1_048_576, "max_length is out of range")
        _require(self.window is None or 1 <= self.window <= 1_048_576, "window is out of range")
        _require(self.stride is None or 1 <= self.stride <= 1_048_576, "stride is out of range")
        scalings = self.scaling if isinstance(self.scaling, dict) else {"mlp_out": self.scaling}
        _require(all(_SCALING_KEY.fullmatch(key) for key in scalings), "scaling names an unknown site")
        _require(all(_finite(value, 1e4) for value in scalings.values()), "scaling is not a finite number")
        _require(self.kind != "lora" or self.activation == "identity", "a LoRA has the activation `identity`")
        _require(1 <= head.num_labels <= MAX_LABELS, f"head.num_labels is not in 1..{MAX_LABELS}")
        if head.id2label is not None:
            known = {str(i) for i in range(head.num_labels)}
            _require(set(head.id2label) == known, "head.id2label must name every label id exactly once")
            _require(all(len(v) <= MAX_NAME for v in head.id2label.values()), "head.id2label: a name is too long")
        is_language_model = head.type in ("causal_lm", "cloze")
        _require(head.pooling != "none" or is_language_model, f"a {head.type} head needs a pooling")
        _require(head.dense != "own" or head.activation is not None, "head.dense `own` needs head.activation")
        _require(head.type != "regression" or head.num_labels == 1, "a regression head has one label")
        _require(head.threshold is None or 0 <= head.threshold <= 1, "head.threshold is not in 0..1")
        _require(head.dim is None or head.type == "embedding", "head.dim is for embedding heads")
        _require(head.dim is None or 1 <= head.dim <= 65_536, "head.dim is out of range")
        _require(head.clip is None or all(_finite(v, MAX_CLIP) for v in head.clip), "head.clip is not finite")
        _require(head.clip is None or head.clip[0] < head.clip[1], "head.clip is not an interval")
        writes = head.type == "causal_lm"
        _require(self.prompt is None or writes, "prompt belongs to a causal_lm head")
        _require(self.chat_template is None or writes, "chat_template belongs to a causal_lm head")
        template_bytes = len((self.chat_template or "").encode(errors="surrogatepass"))
        _require(template_bytes <= MAX_CHAT_TEMPLATE_BYTES, f"chat_template is over {MAX_CHAT_TEMPLATE_BYTES} bytes")
        self._check_cloze()
        self._check_training()
        try:
            msgspec.json.encode(self)
        except UnicodeEncodeError:
            # JSON can spell half of a surrogate pair; no database, wire or terminal takes it.
            raise InvalidAdapter("manifest: a text is not valid Unicode", reason="MANIFEST_INVALID") from None

    def _check_cloze(self) -> None:
        """A cloze head is a template and a token for each label; no other head has either."""
        head = self.head
        is_cloze = head.type == "cloze"
        _require((head.template is not None) == is_cloze, "head.template belongs to a cloze head, which needs one")
        _require((head.verbalizer is not None) == is_cloze, "head.verbalizer belongs to a cloze head, which needs one")
        if head.template is None or head.verbalizer is None:
            return
        _require(0 < len(head.template) <= MAX_TEMPLATE, f"head.template is not 1..{MAX_TEMPLATE} characters")
        _require(head.pooling in ("none", "last"), "a cloze head reads its mask (pooling `none`) or the `last` token")
        _require(head.dense == "none", "a cloze head has no dense layer of its own")
        _require(head.template.count("{text}") == 1, "head.template has not exactly one {text}")
        _require(head.template.count("{pair}") <= 1, "head.template has more than one {pair}")
        masks = 1 if head.pooling == "none" else 0
        _require(head.template.count("{mask}") == masks, f"head.template has not exactly {masks} {{mask}}")
        _require(len(head.verbalizer) == head.num_labels, "head.verbalizer must name one token for each label")
        _require(len(set(head.verbalizer)) == head.num_labels, "head.verbalizer names one token twice")
        _require(all(0 <= token < 1 << 31 for token in head.verbalizer), "head.verbalizer: a token id is out of range")

    def _check_training(self) -> None:
        record = self.training
        _require(_is_name(record.method, 64), "training.method is empty, too long or not printable")
        _require(_is_name(record.merge, 64), "training.merge is empty, too long or not printable")
        _require(1 <= record.num_experts <= 1_024, "training.num_experts is out of range")
        _require(_finite(record.consistency, 1e4), "training.consistency is out of range")
        _require(abs(record.seed) < 1 << 63, "training.seed is out of range")
        _require(len(record.data) <= MAX_NAME, "training.data is too long")
        _require(all(_finite(v, math.inf) for v in record.metrics.values()), "training.metrics: not finite")


def check_size(manifest_json: str, spare: int = 0) -> None:
    """Raise InvalidAdapter (`MANIFEST_TOO_LARGE`) unless a new adapter may have this manifest; names its largest part.

    Args:
        manifest_json: canonical, so that its characters are bytes.
        spare: bytes that will be added to it.
    """
    limit = MAX_NEW_MANIFEST_BYTES - spare
    if len(manifest_json) <= limit:
        return
    sizes: dict[str, int] = {}
    for name, part in json.loads(manifest_json).items():
        inner = {f"{name}.{key}": value for key, value in part.items()} if isinstance(part, dict) else {name: part}
        sizes |= {key: len(json.dumps(value, separators=(",", ":"))) for key, value in inner.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    raise InvalidAdapter(
        f"the manifest has {len(manifest_json):,} bytes, of which {sizes[largest]:,} are "
        f"{_PARTS.get(largest, largest)}; an adapter's manifest may have {limit:,}",
        reason="MANIFEST_TOO_LARGE",
    )


def check_fits(manifest: Manifest, spec: BackboneSpec) -> None:
    """Raise InvalidAdapter unless an adapter with this manifest belongs on this backbone."""
    back = manifest.backbone
    if back.fingerprint != spec.fingerprint:
        raise InvalidAdapter(
            f"trained on another backbone, {back.label} ({back.fingerprint[:12]}), "
            f"than this one, {spec.label} ({spec.fingerprint[:12]})",
            reason="BACKBONE_MISMATCH",
        )
    if back.tokenizer_fingerprint != spec.tokenizer_fingerprint:
        raise InvalidAdapter("trained with another tokenizer than this server's", reason="TOKENIZER_MISMATCH")
    if (back.hidden_size, back.num_layers) != (spec.hidden_size, spec.num_layers):
        raise InvalidAdapter("backbone sizes differ from this server's backbone", reason="BACKBONE_MISMATCH")
    if manifest.head.dense == "backbone":
        if spec.pooler_fingerprint is None:
            raise InvalidAdapter("the head uses the backbone's pooler, which has none", reason="POOLER_MISMATCH")
        if back.pooler_fingerprint != spec.pooler_fingerprint:
            raise InvalidAdapter("the head uses another pooler than this server's", reason="POOLER_MISMATCH")
    if max(manifest.head.verbalizer or (0,)) >= spec.vocab_size:
        raise InvalidAdapter(
            f"head.verbalizer names a token that is not among the backbone's {spec.vocab_size}",
            reason="MANIFEST_INVALID",
        )
    if manifest.max_length > spec.max_tokens:
        raise InvalidAdapter(
            f"max_length {manifest.max_length} is over the backbone's {spec.max_tokens} positions",
            reason="MANIFEST_INVALID",
        )


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_none(item) for key, item in value.items() if item is not None}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidAdapter(f"manifest: {message}", reason="MANIFEST_INVALID")


def _is_name(text: str, limit: int) -> bool:
    return 0 < len(text) <= limit and text.isprintable()


def _finite(value: float, bound: float) -> bool:
    return math.isfinite(value) and abs(value) <= bound


def label_map(labels: Mapping[int, str] | list[str]) -> dict[str, str]:
    """Label names as the manifest stores them: ids as decimal strings."""
    pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    return {str(i): name for i, name in pairs}
