"""Files that the release of AdaMix wrote: all experts of a run, and its head.

- NLU (`pytorch_model_….bin`, BERT and RoBERTa): a flat state dict. Experts sit behind the FFN's output,
  `….output.ExpertSoup.MoA_A` (down) and `MoA_B` (up), beside the head. The activation is the exact GELU.
- NLG (`model.….pt`, GPT-2): the same under `model_state_dict`, often with `module.` before every name; either LoRA
  experts on the fused attention projection, `….attn.c_attn.experts_lora_A` and `…_B`, or bottlenecks behind the MLP
  with the approximate GELU. Files of the end of an epoch hold the whole GPT-2 too, which then has to be the backbone's.

Experts are averaged with weights `softmax(expert_score_weight)`, as the release does when it evaluates (its level 3).
Hidden size, rank, number of experts, sharing, depth and labels follow from the shapes; the scale of a LoRA does not,
and has to be given. What was imported is then run against the release's formula (`forward.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import TrainingRecord
from adamix.files.mixture_file import MixtureFile, MixtureManifest, expert_key
from adamix.files.tensors import TensorData
from adamix.interop.assembly import (
    LANGUAGE_MODEL,
    AdapterPart,
    HeadPart,
    Imported,
    ImportOptions,
    PromptPart,
    assemble,
)
from adamix.interop.microsoft_adamix.forward import self_test
from adamix.interop.microsoft_adamix.layout import Experts, Layout, check_backbone, layout_of, read_state, take_experts
from adamix.interop.reading import Ledger, float32
from adamix.interop.sequence_heads import take_head

# The release cuts RoBERTa's predictions at 0 from below only; this is the largest bound a manifest may hold.
_NO_UPPER_BOUND = 1e15
_BUFFERS = re.compile(r"h\.\d+\.attn\.(?:bias|masked_bias)")


def import_release(
    source: Path,
    backbone: Backbone,
    options: ImportOptions,
    *,
    alpha: float | None = None,
    is_uncased: bool | None = None,
) -> Imported:
    """A file of the release as an adapter for this backbone, and as the mixture it was.

    Args:
        alpha: of a LoRA, whose output is multiplied by alpha / r. The release's scripts use 32.
        is_uncased: the backbone's tokenizer ignores case; the release's BERT does. None: not known.

    Raises:
        InvalidAdapter: the file is damaged or no such file, does not fit the backbone, or fails the self-test.
        InvalidConfig: an option contradicts the file, or alpha is missing.
    """
    state = read_state(source)
    layout = layout_of(state, source.name)
    check_backbone(layout, backbone.spec, source.name)
    if layout.kind == "lora" and alpha is None:
        raise InvalidConfig(
            "the file holds LoRA experts and not their alpha; give it by --alpha (the release's scripts use 32)",
            field="alpha",
        )
    if layout.kind != "lora" and alpha is not None:
        raise InvalidConfig("--alpha is for LoRA experts; the file holds bottlenecks", field="alpha")
    ledger = Ledger(state, source.name)
    experts = take_experts(ledger, layout, backbone.spec)
    head = _take_head(ledger, layout, backbone)
    _take_backbone(ledger, layout, backbone)
    ledger.close()
    data, adapter, mixture = _assemble(experts, layout, head, backbone, options, alpha, source.name)
    difference = self_test(state, adapter, backbone, alpha)
    return Imported(
        adapter=adapter,
        data=data,
        matched=ledger.matched,
        notes=_notes(layout, mixture, is_uncased),
        mixture=mixture,
        max_abs_diff=difference,
    )


def _take_head(ledger: Ledger, layout: Layout, backbone: Backbone) -> HeadPart:
    if layout.model_type == "gpt2":
        return LANGUAGE_MODEL
    head = take_head(ledger, backbone)
    if head is None:
        raise InvalidAdapter("the head is missing: no classifier", reason="HEAD_MISSING")
    is_regression = head.tensors["out_proj.weight"].shape[0] == 1
    if layout.model_type == "roberta" and is_regression:
        return replace(head, clip=(0.0, _NO_UPPER_BOUND))
    return head


def _take_backbone(ledger: Ledger, layout: Layout, backbone: Backbone) -> None:
    """The rest of a whole GPT-2, which has to be this backbone: one that was trained on is another model."""
    if layout.model_type != "gpt2":
        return
    body = dict(backbone.model.named_parameters())
    for name in ledger.surplus:
        inner = name.removeprefix("transformer.")
        if _BUFFERS.fullmatch(inner):
            ledger.take(name)
            continue
        parameter = body.get("wte.weight" if name in ("lm_head.weight", "lm_head.decoder.weight") else inner)
        if parameter is None:
            continue
        tensor = ledger.take(name)
        if (
            tensor is None
            or tensor.shape != parameter.shape
            or not torch.allclose(float32(name, tensor), parameter.float())
        ):
            raise InvalidAdapter(
                f"{name}: the file holds a whole GPT-2 with other weights than {backbone.spec.label}",
                reason="BACKBONE_MISMATCH",
            )


def _assemble(
    experts: Mapping[str, Experts],
    layout: Layout,
    head: HeadPart,
    backbone: Backbone,
    options: ImportOptions,
    alpha: float | None,
    where: str,
) -> tuple[bytes, AdapterFile, MixtureFile]:
    tensors: dict[str, TensorData] = {}
    copies: dict[str, TensorData] = {}
    scales: dict[tuple[int, str], float] = {}
    is_uniform = True
    for key, projection in experts.items():
        _, layer, site, _ = key.split(".")
        if key.endswith("lora_A"):
            scales[int(layer), site] = (alpha or 0.0) / projection.weights[0].shape[0]
        elif key.endswith("down_proj"):
            scales[int(layer), site] = 1.0
        is_uniform &= bool((projection.scores == projection.scores[0]).all())
        weight, bias = projection.merged()
        tensors[key if bias is None else f"{key}.weight"] = TensorData.from_float32(weight)
        if bias is not None:
            tensors[f"{key}.bias"] = TensorData.from_float32(bias)
        for expert in range(len(projection)):
            copies[expert_key(key, expert, "weight")] = TensorData.from_float32(projection.weights[expert])
            if projection.biases is not None:
                copies[expert_key(key, expert, "bias")] = TensorData.from_float32(projection.biases[expert])
    count = max(layout.num_experts.values())
    record = TrainingRecord(
        method="adamix",
        num_experts=count,
        share=layout.share,
        merge="uniform" if is_uniform else "weighted",
        data=f"microsoft/AdaMix: {ascii(where)[1:-1][:200]}",
    )
    part = AdapterPart(kind=layout.kind, activation=layout.activation, tensors=tensors, scales=scales)
    # The release's rows of generation data are those that are trained here.
    data, adapter = assemble(backbone, part, head, options, record, PromptPart(form="source"))
    mixture = MixtureFile(
        MixtureManifest(adapter=adapter.manifest, num_experts=count, share=layout.share, routing_granularity="batch"),
        copies | {f"head.{name}": tensor for name, tensor in head.tensors.items()},
    )
    return data, adapter, mixture


def _notes(layout: Layout, mixture: MixtureFile, is_uncased: bool | None) -> tuple[str, ...]:
    notes = []
    if layout.model_type == "bert" and is_uncased is False:
        notes.append(
            "the backbone's tokenizer keeps case; the release's BERT files were trained on bert-base-uncased, and are "
            "of no use on another"
        )
    if mixture.manifest.adapter.training.merge == "weighted":
        notes.append("the experts' scores differ: they were averaged with these weights, not uniformly")
    if layout.kind == "lora" and max(layout.num_experts.values()) > 1:
        notes.append("in the release one route served q and v together; a mixture of ours draws one for each")
    return tuple(notes)
