"""Our LoRA adapters as directories that PEFT reads.

Each site is the LoRA of one module. The sites of a fused projection become one LoRA whose B is zero where a component
does not reach, so that q, k and v keep their own factors (`r` is then the sum of theirs). Ranks and scales that differ
go to `rank_pattern` and `alpha_pattern`. A head is written under `modules_to_save` where transformers'
`…ForSequenceClassification` of that family computes the same; else the export is refused, or made without the head.

Bottlenecks cannot be written: PEFT has no such method, and a non-linearity cannot be folded into weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from adamix.backbones.packaged import PACKAGES
from adamix.backbones.sites import family
from adamix.errors import FailedPrecondition
from adamix.files import disk
from adamix.files.adapter_file import AdapterFile
from adamix.files.tensors import TensorData
from adamix.interop.peft.config import CONFIG_FILE
from adamix.interop.peft.prompt import prompt_files
from adamix.interop.peft.weights import KEY_PREFIX, WEIGHTS_FILE, lora_targets
from adamix.interop.sequence_heads import SEQUENCE_HEADS


@dataclass(frozen=True)
class Exported:
    """What was written. `notes` say what a PEFT directory has no place for."""

    task_type: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Head:
    """A head in PEFT's terms: the model's task, and whole modules by the names they have there."""

    task_type: str
    modules: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] | None = None
    in_body: tuple[str, ...] = ()


def export_peft(adapter: AdapterFile, out: Path, *, body_only: bool = False) -> Exported:
    """Write `adapter_config.json` and `adapter_model.safetensors` into a new or empty directory.

    Beside them what says how a language model's adapter is asked, see `prompt.py`.

    Args:
        body_only: write the LoRA without the head, for the body that `AutoModel` loads.

    Raises:
        FailedPrecondition: the adapter cannot be said in PEFT's terms, or `out` is not empty.
    """
    manifest = adapter.manifest
    if manifest.kind != "lora":
        raise FailedPrecondition(
            "PEFT has no bottleneck adapters, and the activation between the projections cannot be folded into "
            "weights: only adapters trained with --method lora can be exported"
        )
    if not adapter.sites():
        raise FailedPrecondition("this adapter has a head and no LoRA: there is nothing PEFT could load")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FailedPrecondition(f"{out} is not an empty directory: name another one")
    head = _Head("FEATURE_EXTRACTION") if body_only else _head(adapter)
    prefix = "" if head.task_type == "FEATURE_EXTRACTION" else f"{SEQUENCE_HEADS[manifest.backbone.model_type].body}."
    modules = {prefix + name: lora for name, lora in _modules(adapter).items()}
    tensors: dict[str, Tensor] = dict(head.tensors or {})
    for name, (a, b, _) in modules.items():
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    data = save({KEY_PREFIX + name: tensor for name, tensor in tensors.items()}, metadata={"format": "pt"})
    config = json.dumps(_config(adapter, modules, head), indent=2, sort_keys=True)
    contents = {WEIGHTS_FILE: data, CONFIG_FILE: config.encode()}
    if head.task_type == "CAUSAL_LM":
        contents |= prompt_files(manifest)
    for name, content in contents.items():
        disk.write(out / name, content)
    return Exported(head.task_type, tuple(out / name for name in contents), _notes(adapter, head))


def _modules(adapter: AdapterFile) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A `[r, in]`, B `[out, r]` and scale of every module of the body that has a LoRA."""
    back = adapter.manifest.backbone
    carrying = set(adapter.sites())
    result = {}
    for module, target in lora_targets(family(back.model_type), back.num_layers).items():
        used = [(site, path) for site, path in target.sites if (target.layer, site) in carrying]
        if not used:
            continue
        factors = {site: _factors(adapter, target.layer, site) for site, _ in used}
        if used[0][1].window is None:
            result[module] = factors[used[0][0]]
            continue
        windows = {site: path.window for site, path in used if path.window is not None}
        result[module] = _fused(factors, windows)
    return result


def _fused(
    factors: Mapping[str, tuple[Tensor, Tensor, float]], windows: Mapping[str, tuple[int, int]]
) -> tuple[Tensor, Tensor, float]:
    """One LoRA of a fused projection: factors side by side, each in the rows of its own block."""
    scale = max((scale for _, _, scale in factors.values()), key=abs) or 1.0
    a = torch.cat([a for a, _, _ in factors.values()])
    blocks = next(iter(windows.values()))[1]
    width = next(iter(factors.values()))[1].shape[0]
    b = torch.zeros(blocks * width, a.shape[0])
    column = 0
    for site, (_, up, own_scale) in factors.items():
        start = windows[site][0] * width
        b[start : start + width, column : column + up.shape[1]] = up * (own_scale / scale)
        column += up.shape[1]
    return a, b, scale


def _factors(adapter: AdapterFile, layer: int, site: str) -> tuple[Tensor, Tensor, float]:
    tensors = adapter.site(layer, site)
    return _tensor(tensors["lora_A"]), _tensor(tensors["lora_B"]), adapter.manifest.scale(layer, site)


def _head(adapter: AdapterFile) -> _Head:
    """The head as the family's sequence classifier has it. Raises FailedPrecondition where it has none like it."""
    spec, tensors = adapter.manifest.head, {name: _tensor(data) for name, data in adapter.head().items()}
    if spec.type == "causal_lm":
        return _Head("CAUSAL_LM")
    if spec.type == "embedding" and not tensors:
        return _Head("FEATURE_EXTRACTION")
    kind = SEQUENCE_HEADS[adapter.manifest.backbone.model_type]
    reason = None
    if spec.type in ("embedding", "cloze"):
        reason = f"PEFT's models have no {spec.type} head"
    elif spec.pooling != kind.pooling:
        reason = f"its head pools by `{spec.pooling}`, transformers' by `{kind.pooling}`"
    elif spec.dense not in ({"none"} if kind.dense is None else {"own", "backbone"} if kind.dense_in_body else {"own"}):
        reason = f"its head has `dense: {spec.dense}`, unlike transformers'"
    elif spec.dense == "own" and spec.activation != kind.activation:
        reason = f"its head has the activation {spec.activation}, transformers' {kind.activation}"
    elif not kind.has_bias and bool(tensors["out_proj.bias"].any()):
        reason = "its output layer has a bias, transformers' has none"
    if reason is not None:
        raise FailedPrecondition(
            f"the sequence classifier of {adapter.manifest.backbone.model_type} does not compute this adapter's head: "
            f"{reason}; --body-only exports the LoRA without the head"
        )
    names = {"out_proj": kind.out_proj}
    if spec.dense == "own" and kind.dense is not None:
        names["dense"] = f"{kind.body}.{kind.dense}" if kind.dense_in_body else kind.dense
    saved = {
        f"{names[layer]}.{part}": tensor
        for (layer, part), tensor in ((tuple(name.split(".")), tensor) for name, tensor in tensors.items())
        if part == "weight" or kind.has_bias
    }
    # PEFT names whole modules: `classifier` of RoBERTa holds both layers, BERT's pooler is one inside the body.
    modules = {"pooler" if "pooler" in name else name.split(".")[0] for name in names.values()}
    return _Head("SEQ_CLS", tuple(sorted(modules)), saved)


def _config(adapter: AdapterFile, modules: Mapping[str, tuple[Tensor, Tensor, float]], head: _Head) -> dict[str, Any]:
    back = adapter.manifest.backbone
    ranks = {name: a.shape[0] for name, (a, _, _) in modules.items()}
    alphas = {name: scale * ranks[name] for name, (_, _, scale) in modules.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "task_type": head.task_type,
        "base_model_name_or_path": None if back.name in PACKAGES else back.name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: _number(value) for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(modules),
        "modules_to_save": list(head.modules) or None,
        # The weights of transformers' Conv1D are [in, out].
        "fan_in_fan_out": back.model_type == "gpt2",
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
    }


def _notes(adapter: AdapterFile, head: _Head) -> tuple[str, ...]:
    spec = adapter.manifest.head
    notes = []
    if spec.type in ("classification", "multilabel", "regression"):
        if head.task_type != "SEQ_CLS":
            notes.append("the head was left out")
        else:
            notes.append(f"load the model with num_labels={spec.num_labels}: PEFT's files do not hold it")
            if spec.id2label is not None:
                notes.append("label names are not in PEFT's files: give id2label when the model is loaded")
    if spec.clip is not None:
        notes.append(f"predictions are no longer cut to {list(spec.clip)}")
    if head.task_type == "CAUSAL_LM" and adapter.manifest.prompt_form == "source":
        notes.append("a prompt is the ids of a source and then the separator (docs/generation.md): not a text as it is")
    if head.task_type == "FEATURE_EXTRACTION":
        notes.append(f"the pooling (`{spec.pooling}`) is the caller's")
    return tuple(notes)


def _tensor(data: TensorData) -> Tensor:
    return torch.from_numpy(data.to_float32().copy())


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
