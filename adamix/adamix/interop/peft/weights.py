"""LoRA directories of PEFT: `adapter_config.json` with `adapter_model.safetensors` (or `.bin`).

What PEFT computes (0.21): `W x + scale * B (A x)`, `scale = lora_alpha / r`, or `/ sqrt(r)` with `use_rslora`, where
`rank_pattern` and `alpha_pattern` replace r and alpha for the modules whose names they match. A module is a site of the
backbone, or its pooler. A LoRA on a fused projection is one A and a B of all its columns: each block of columns is a
site of its own, with a copy of A.

Which modules were targets is read from the tensors, so a list, a regular expression, `all-linear` and chosen layers are
all the same here. Does not import peft.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adamix.backbones.backbone import Backbone
from adamix.backbones.sites import Family, SitePath
from adamix.errors import InvalidAdapter
from adamix.files.manifest import NORM_SITES, TrainingRecord
from adamix.files.tensors import TensorData
from adamix.interop.assembly import (
    TEXT,
    AdapterPart,
    HeadPart,
    Imported,
    ImportOptions,
    assemble,
    note_on_base,
    without_head,
)
from adamix.interop.peft.config import LoraConfig, read_config
from adamix.interop.peft.prompt import read_prompt
from adamix.interop.reading import Ledger, float32, read_pickle, read_tensors, shown, state_dict, tensor_data
from adamix.interop.sequence_heads import POOLER, SEQUENCE_HEADS, take_head

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
KEY_PREFIX = "base_model.model."
# Of the families' language models, by the names of their modules.
_WHOLE = ("lm_head", "embed_tokens", "wte", "wpe")
_FROZEN = "and an adapter leaves the head and the embeddings of the backbone, which are often one tensor, as they are"
_FACTOR_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>A|B)\.weight")


@dataclass(frozen=True)
class Target:
    """A module of a body that may carry a LoRA: the sites it is, each with its window of output columns."""

    layer: int
    sites: tuple[tuple[str, SitePath], ...]


def import_peft(source: Path, backbone: Backbone, options: ImportOptions) -> Imported:
    """A PEFT LoRA directory as an adapter for this backbone.

    Raises:
        InvalidAdapter: the directory is damaged, is of another kind, or holds what our format cannot say; the message
            names it.
        InvalidConfig: an option contradicts the source, or is needed.
    """
    config = read_config(source)
    ledger = Ledger(_read_weights(source), source.name)
    _refuse_tensors(ledger)
    sites = _take_sites(ledger, backbone, config)
    head = _take_head(ledger, backbone, config, options)
    _refuse_rest(ledger, backbone)
    ledger.close()
    prompt = read_prompt(source) if head.type == "causal_lm" else TEXT
    record = TrainingRecord(method="peft-lora", merge="none")
    data, adapter = assemble(backbone, sites, head, options, record, prompt)
    notes = note_on_base(config.base_model_name_or_path, backbone)
    if prompt.form == "chat":
        notes += ("the source brings a chat template: a prompt is a message of a user, rendered by it",)
    if config.task_type is None and head.tensors:
        notes += ("the source does not say its task; its head was taken for a sequence classifier's",)
    return Imported(adapter=adapter, data=data, matched=ledger.matched, notes=notes)


def _read_weights(source: Path) -> dict[str, Tensor]:
    path = source / WEIGHTS_FILE
    if path.exists() or not (source / _PICKLE_FILE).exists():
        return state_dict(read_tensors(path), path.name)
    return state_dict(read_pickle(source / _PICKLE_FILE), _PICKLE_FILE)


def _refuse_tensors(ledger: Ledger) -> None:
    """Say why, where the reason for a tensor that has no place is known."""
    for name in ledger:
        for part, what in (
            ("lora_embedding_", "an embedding is a target, and our format has no such site"),
            ("lora_magnitude_vector", "DoRA rescales the weights of the backbone"),
            ("token_adapter", "trainable tokens change the embeddings of the backbone"),
            ("lora_B.bias", "B has a bias of its own, which our format has no place for"),
            ("lm_head.lora_", f"lm_head is a target, {_FROZEN}"),
            *((f"{module}.weight", f"{module} was saved whole, {_FROZEN}") for module in _WHOLE),
        ):
            if part in name:
                raise InvalidAdapter(f"{name[:120]}: {what}", reason="UNSUPPORTED")
        if _FACTOR_KEY.fullmatch(name) and ledger.shape(name)[2:]:
            raise InvalidAdapter(f"{name[:120]}: a convolution is a target; sites are linear", reason="UNSUPPORTED")


def _refuse_rest(ledger: Ledger, backbone: Backbone) -> None:
    """Say what the tensors are that nothing has taken."""
    factors = [name for name in ledger.surplus if _FACTOR_KEY.fullmatch(name)]
    if factors:
        raise InvalidAdapter(
            f"LoRA on {len(factors)} modules that are no site of {backbone.spec.model_type} here, or beyond its "
            f"{backbone.spec.num_layers} layers: {shown(factors)}",
            reason="UNSUPPORTED",
        )
    if ledger.surplus:
        raise InvalidAdapter(
            f"whole modules were trained that an adapter cannot replace (modules_to_save, saved embeddings): "
            f"{shown(ledger.surplus)}",
            reason="UNSUPPORTED",
        )


def _take_sites(ledger: Ledger, backbone: Backbone, config: LoraConfig) -> AdapterPart:
    targets = lora_targets(backbone.family, backbone.spec.num_layers)
    tensors: dict[str, TensorData] = {}
    scales: dict[tuple[int, str], float] = {}
    for module in _modules(ledger):
        target = targets.get(_in_body(module, backbone.family))
        if target is None:
            continue  # the pooler, or what the ledger will report
        a, b = _take_factors(ledger, module)
        scale = config.scale(module, len(a))
        for site, path in target.sites:
            key = f"layers.{target.layer}.{site}."
            factors = (a, b) if path.window is None else _window(a, b, path.window)
            if factors is None:
                continue
            tensors[f"{key}lora_A"], tensors[f"{key}lora_B"] = (tensor_data(module, factor) for factor in factors)
            scales[target.layer, site] = scale
    if not scales:
        _refuse_rest(ledger, backbone)
    return AdapterPart(kind="lora", activation="identity", tensors=tensors, scales=scales)


def _take_head(ledger: Ledger, backbone: Backbone, config: LoraConfig, options: ImportOptions) -> HeadPart:
    fold = None
    kind = SEQUENCE_HEADS[backbone.spec.model_type]
    for module in _modules(ledger):
        is_head = kind.dense_in_body and f"{KEY_PREFIX}{kind.out_proj}.weight" in ledger
        if is_head and _in_body(module, backbone.family) == POOLER:
            fold = _folding(ledger, module, config)
    head = take_head(ledger, backbone, prefix=KEY_PREFIX, fold=fold)
    if head is not None:
        return head
    if config.task_type == "SEQ_CLS":
        raise InvalidAdapter(
            f"the classification head is missing: no {KEY_PREFIX}{kind.out_proj}.weight", reason="HEAD_MISSING"
        )
    return without_head(backbone, options)


def _folding(ledger: Ledger, module: str, config: LoraConfig) -> Callable[[Tensor], Tensor]:
    a, b = _take_factors(ledger, module)
    scale = config.scale(module, len(a))

    def fold(weight: Tensor) -> Tensor:
        if weight.shape != (b.shape[0], a.shape[1]):
            raise InvalidAdapter(f"{module[:120]}: the LoRA does not fit the pooler", reason="SHAPE_MISMATCH")
        return (weight.double() + scale * (b.double() @ a.double())).float()

    return fold


def lora_targets(family: Family, num_layers: int) -> dict[str, Target]:
    """Every module inside a body that is one site or, fused, several: by its name."""
    modules: dict[str, list[tuple[str, SitePath]]] = {}
    for site, path in family.sites.items():
        if site not in NORM_SITES:
            modules.setdefault(path.module, []).append((site, path))
    return {
        f"{family.layers}.{layer}.{module}": Target(layer, tuple(sites))
        for layer in range(num_layers)
        for module, sites in modules.items()
    }


def _modules(ledger: Ledger) -> list[str]:
    """Names, in the model PEFT wrapped, of the modules that have a factor; in order of the file."""
    matches = [match for name in ledger if (match := _FACTOR_KEY.fullmatch(name))]
    modules = [match["module"].removeprefix(KEY_PREFIX) for match in matches if match["module"].startswith(KEY_PREFIX)]
    return list(dict.fromkeys(modules))


def _in_body(module: str, family: Family) -> str:
    """The name inside the body: PEFT may have wrapped the body itself or a model around it."""
    return module.removeprefix(f"{SEQUENCE_HEADS[family.model_type].body}.")


def _take_factors(ledger: Ledger, module: str) -> tuple[Tensor, Tensor]:
    factors = [ledger.take(f"{KEY_PREFIX}{module}.lora_{factor}.weight") for factor in "AB"]
    a, b = factors
    if a is None or b is None:
        missing = "A" if a is None else "B"
        raise InvalidAdapter(f"{module[:120]}: lora_{missing} is missing", reason="TENSOR_MISSING")
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise InvalidAdapter(f"{module[:120]}: the factors do not fit one another", reason="SHAPE_MISMATCH")
    return a, b


def _window(a: Tensor, b: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """The factors of one of n equal blocks of output columns; None where the block's update is zero.

    Components that reach other blocks only are left out: they add exact zeros here.
    """
    index, count = window
    if b.shape[0] % count:
        raise InvalidAdapter(f"B has {b.shape[0]} rows, not {count} equal blocks", reason="SHAPE_MISMATCH")
    block = float32("B", b).chunk(count)[index]
    used = block.ne(0).any(0)
    if not used.any():
        return None
    return float32("A", a)[used], block[:, used]
