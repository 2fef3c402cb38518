"""The layout of the files that the release of AdaMix wrote: where their experts are, and what shapes say.

Knows neither a backbone's weights nor what becomes of the experts. `weights.py` describes the files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adamix.errors import InvalidAdapter
from adamix.files.adapter_file import MAX_ADAPTER_RANK
from adamix.files.manifest import MAX_EXPERTS, Activation, BackboneSpec, Kind, Share
from adamix.interop.reading import Ledger, float64_array, read_pickle, shown, state_dict

MAX_BYTES = 4 << 30  # a whole GPT-2 medium in fp32 is 1.4 GB

_BLOCK_KEY = re.compile(
    r"(?P<body>bert|roberta|transformer)\.(?:encoder\.layer|h)\.(?P<layer>0|[1-9]\d{0,3})\."
    r"(?P<block>output\.ExpertSoup|mlp\.ExpertSoup|attn\.c_attn)\."
    r"(?:MoA_|experts_lora_)(?P<side>[AB])\.(?:deepspeed_experts\.)?(?P<expert>0|[1-9]\d?)(?:\.weight|\.bias)?"
)
_MODEL_TYPES = {"bert": "bert", "roberta": "roberta", "transformer": "gpt2"}


@dataclass(frozen=True)
class Layout:
    """Which of the release's kinds a file is.

    Attributes:
        block: name of what holds the experts of a layer, with a place for the layer's number.
        num_experts: of A (down) and of B (up); a side with one is shared.
    """

    model_type: str
    kind: Kind
    activation: Activation
    block: str
    num_layers: int
    num_experts: Mapping[str, int]

    @property
    def share(self) -> Share:
        """The side that all experts have in common."""
        down, up = self.num_experts["A"], self.num_experts["B"]
        return "none" if down == up else "up" if up == 1 else "down"

    def weights(self, layer: int, side: str) -> list[str]:
        """Names of the experts' weights, expert 0 first."""
        block, count = self.block.format(layer), self.num_experts[side]
        if self.kind == "lora":
            return [f"{block}.experts_lora_{side}.{expert}" for expert in range(count)]
        return [f"{block}.MoA_{side}.deepspeed_experts.{expert}.weight" for expert in range(count)]

    def biases(self, layer: int, side: str) -> list[str]:
        """Names of the experts' biases; none in a LoRA."""
        weights = self.weights(layer, side)
        return [] if self.kind == "lora" else [name.removesuffix("weight") + "bias" for name in weights]

    def scores(self, layer: int, side: str) -> str:
        """Name of the experts' scores, which a LoRA has once for both sides."""
        block = self.block.format(layer)
        return f"{block}.lora_expert_score_weight" if self.kind == "lora" else f"{block}.MoA_{side}.expert_score_weight"

    def names(self) -> list[str]:
        """Every tensor of the experts."""
        return [
            name
            for layer in range(self.num_layers)
            for side in "AB"
            for name in (*self.weights(layer, side), *self.biases(layer, side), self.scores(layer, side))
        ]


@dataclass(frozen=True)
class Experts:
    """The copies of one projection: fp64 weights `[out, in]`, biases `[out]` (none in a LoRA), scores `[M]`."""

    weights: Sequence[NDArray[np.float64]]
    biases: Sequence[NDArray[np.float64]] | None
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.weights)

    def rows(self, start: int, stop: int) -> "Experts":
        """The experts of some of the output rows."""
        return replace(self, weights=[weight[start:stop] for weight in self.weights])

    def merged(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """The mean with weights softmax(scores); a shared projection is what it is."""
        return _mean(self.weights, self.scores), None if self.biases is None else _mean(self.biases, self.scores)


def read_state(source: Path) -> dict[str, Tensor]:
    """The state dict in a file of either kind, without the prefix of distributed training. Raises InvalidAdapter."""
    value: Any = read_pickle(source, MAX_BYTES)
    if isinstance(value, dict) and "model_state_dict" in value:
        value = value["model_state_dict"]
    state = state_dict(value, source.name)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def layout_of(state: Mapping[str, Tensor], where: str) -> Layout:
    """The layout that the names of a file have. Raises InvalidAdapter if they are not the release's."""
    matches = [match for name in state if (match := _BLOCK_KEY.fullmatch(name))]
    kinds = {(match["body"], match["block"]) for match in matches}
    if not kinds:
        raise InvalidAdapter(
            f"{where} holds no experts of AdaMix; its first names are {shown(sorted(state))}", reason="FORMAT_UNKNOWN"
        )
    if len(kinds) > 1:
        raise InvalidAdapter(f"{where} holds several kinds of experts at once", reason="UNSUPPORTED")
    body, block = kinds.pop()
    is_nlg = body == "transformer"
    if is_nlg == (block == "output.ExpertSoup"):
        raise InvalidAdapter(f"{where} holds {block} in a {body}, which the release has not", reason="UNSUPPORTED")
    is_lora = block == "attn.c_attn"
    counts = {side: 1 + max((int(m["expert"]) for m in matches if m["side"] == side), default=0) for side in "AB"}
    if len(set(counts.values()) - {1}) > 1 or max(counts.values()) > MAX_EXPERTS:
        raise InvalidAdapter(f"{where} has {counts['A']} experts on one side and {counts['B']} on the other",
                             reason="UNSUPPORTED")  # fmt: skip
    return Layout(
        model_type=_MODEL_TYPES[body],
        kind="lora" if is_lora else "bottleneck",
        activation="identity" if is_lora else "gelu_tanh" if is_nlg else "gelu",
        block=f"{body}.{'h' if is_nlg else 'encoder.layer'}.{{}}.{block}",
        num_layers=1 + max(int(match["layer"]) for match in matches),
        num_experts=counts,
    )


def check_backbone(layout: Layout, spec: BackboneSpec, where: str) -> None:
    """Raise InvalidAdapter unless a file of this layout is for such a backbone."""
    if (layout.model_type, layout.num_layers) != (spec.model_type, spec.num_layers):
        raise InvalidAdapter(
            f"{where} is for a {layout.model_type} of {layout.num_layers} layers; {spec.label} is a {spec.model_type} "
            f"of {spec.num_layers}",
            reason="BACKBONE_MISMATCH",
        )


def take_experts(ledger: Ledger, layout: Layout, spec: BackboneSpec) -> dict[str, Experts]:
    """Every projection, by the key it has in a file of ours. Raises InvalidAdapter."""
    ledger.require(layout.names())
    result: dict[str, Experts] = {}
    for layer in range(layout.num_layers):
        a, b = (_take_side(ledger, layout, layer, side) for side in "AB")
        if layout.kind == "bottleneck":
            result[f"layers.{layer}.mlp_out.down_proj"], result[f"layers.{layer}.mlp_out.up_proj"] = a, b
            continue
        # One tensor holds q and v; k has no LoRA.
        for name, experts in (("lora_A", a), ("lora_B", b)):
            rows = experts.weights[0].shape[0]
            if rows % 2:
                raise InvalidAdapter(f"layer {layer}: {rows} rows are not those of q and v", reason="SHAPE_MISMATCH")
            result[f"layers.{layer}.attn_q.{name}"] = experts.rows(0, rows // 2)
            result[f"layers.{layer}.attn_v.{name}"] = experts.rows(rows // 2, rows)
    _check_experts(result, spec)
    return result


def _take_side(ledger: Ledger, layout: Layout, layer: int, side: str) -> Experts:
    weights = _take_copies(ledger, layout.weights(layer, side), 2)
    biases = _take_copies(ledger, layout.biases(layer, side), 1)
    name = layout.scores(layer, side)
    # A LoRA has a score for each of the experts it mixes, also beside a side with only one.
    count = max(layout.num_experts.values()) if layout.kind == "lora" else len(weights)
    scores = float64_array(name, ledger.tensor(name))
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise InvalidAdapter(f"{name}: expected are {count} finite scores, one an expert", reason="SHAPE_MISMATCH")
    return Experts(weights, biases or None, scores[: len(weights)])


def _take_copies(ledger: Ledger, names: list[str], dim: int) -> list[NDArray[np.float64]]:
    copies = [float64_array(name, ledger.tensor(name)) for name in names]
    if any(copy.shape != copies[0].shape or copy.ndim != dim for copy in copies):
        raise InvalidAdapter(f"{names[0]}: experts differ in shape", reason="SHAPE_MISMATCH")
    return copies


def _check_experts(experts: Mapping[str, Experts], spec: BackboneSpec) -> None:
    for key, projection in experts.items():
        rows, columns = projection.weights[0].shape
        is_down = key.endswith(("down_proj", "lora_A"))
        rank, width = (rows, columns) if is_down else (columns, rows)
        if width != spec.hidden_size or not 1 <= rank <= MAX_ADAPTER_RANK:
            raise InvalidAdapter(
                f"{key} would be [{rows}, {columns}]; {spec.label} has width {spec.hidden_size}",
                reason="SHAPE_MISMATCH",
            )


def _mean(copies: Sequence[NDArray[np.float64]], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(copies) == 1:
        return copies[0]
    weights = np.exp(scores - scores.max())
    return np.asarray(np.tensordot(weights / weights.sum(), np.stack(copies), axes=1))
