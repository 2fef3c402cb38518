"""Bottleneck adapters of AdapterHub: directories that `adapters` (or adapter-transformers) saved.

What the library computes behind a block whose output is h and whose residual input is t, with A the adapter without its
residual (`scaling * up(act(down(x)))`):

- `original_ln_before` false (Houlsby, `double_seq_bn`): `LN(h + A(h) + t)`. A linear point, `attn_out` or `mlp_out`:
  what AdaMix itself does. In decoders the sum has no LayerNorm of its own: `h + A(h) + t`.
- `original_ln_before` and `residual_before_ln` true (Pfeiffer, `seq_bn`): `LN(s + A(LN(s)))` with `s = h + t`. A norm
  point, `attn_norm` or `mlp_norm`. Decoders have none: there it is `s + A(s)` behind the residual sum, which is no
  site.

`mh_adapter` is the block of attention, `output_adapter` the other one. Does not import the library.
"""

import re
from pathlib import Path

import numpy as np

from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter
from adamix.files.manifest import MAX_LABELS, Activation, HeadType, TrainingRecord
from adamix.files.tensors import TensorData
from adamix.interop.adapterhub.config import (
    BLOCKS,
    CONFIG_FILE,
    HEAD_CONFIG_FILE,
    BottleneckConfig,
    HeadConfig,
    activation_of,
    bottleneck_config,
    read_config,
)
from adamix.interop.assembly import AdapterPart, HeadPart, Imported, ImportOptions, assemble, note_on_base, without_head
from adamix.interop.reading import (
    Ledger,
    converted,
    quoted,
    read_json,
    read_pickle,
    read_tensors,
    state_dict,
    tensor_data,
)
from adamix.interop.sequence_heads import SEQUENCE_HEADS, take_head

_WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
_HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")

# Names that early versions gave to the modules that are all called `adapters` now.
_EARLY_NAMES = re.compile(r"\b(?:attention|layer)_text_(?:task|lang)_adapters\b")
_PROJECTIONS = {"adapter_down.0": "down_proj", "adapter_up": "up_proj"}


def import_adapterhub(source: Path, backbone: Backbone, options: ImportOptions) -> Imported:
    """A directory of AdapterHub as an adapter for this backbone.

    Raises:
        InvalidAdapter: the directory is damaged, is of another kind, or holds what our format cannot say; the message
            names it.
        InvalidConfig: an option contradicts the source, or is needed.
    """
    document = read_config(source, backbone)
    config = bottleneck_config(document)
    is_early = "version" not in document
    name = document.get("name")
    if not isinstance(name, str):
        raise InvalidAdapter(f"{CONFIG_FILE}: the adapter has no name", reason="MANIFEST_INVALID")
    ledger = _open(source, _WEIGHTS, rename_early=True)
    adapter = _take_sites(ledger, backbone, config, name, activation_of(config.non_linearity, is_early))
    ledger.close()
    head, matched = _read_head(source, backbone, options)
    record = TrainingRecord(method="adapterhub-bottleneck", merge="none", data=quoted(name))
    data, result = assemble(backbone, adapter, head, options, record)
    return Imported(
        adapter=result,
        data=data,
        matched=ledger.matched + matched,
        notes=note_on_base(document.get("model_name"), backbone),
    )


def _take_sites(
    ledger: Ledger, backbone: Backbone, config: BottleneckConfig, name: str, activation: Activation
) -> AdapterPart:
    family = backbone.family
    if config.original_ln_before and family.is_decoder:
        raise InvalidAdapter(
            f"{CONFIG_FILE}: original_ln_before (seq_bn) on {family.model_type} puts the adapter behind the residual "
            "sum, where our format has no site; double_seq_bn can be imported",
            reason="UNSUPPORTED",
        )
    attention, output = BLOCKS[family.model_type]
    suffix = "norm" if config.original_ln_before else "out"
    sites = {attention: f"attn_{suffix}", output: f"mlp_{suffix}"}
    used = [block for block, is_used in ((attention, config.mh_adapter), (output, config.output_adapter)) if is_used]
    body = SEQUENCE_HEADS[family.model_type].body
    tensors: dict[str, TensorData] = {}
    scales: dict[tuple[int, str], float] = {}
    for layer in range(backbone.spec.num_layers):
        if layer in config.leave_out:
            continue
        for block in used:
            scales[layer, sites[block]] = float(config.scaling)
            for part, projection in _PROJECTIONS.items():
                for kind in ("weight", "bias"):
                    key = f"{body}.{family.layers}.{layer}.{block}.adapters.{name}.{part}.{kind}"
                    tensor = ledger.take(key)
                    if tensor is not None:
                        tensors[f"layers.{layer}.{sites[block]}.{projection}.{kind}"] = tensor_data(key, tensor)
    return AdapterPart(kind="bottleneck", activation=activation, tensors=tensors, scales=scales)


def _read_head(source: Path, backbone: Backbone, options: ImportOptions) -> tuple[HeadPart, int]:
    """The head and the number of its tensors."""
    if not (source / HEAD_CONFIG_FILE).exists():
        return without_head(backbone, options), 0
    document = read_json(source / HEAD_CONFIG_FILE)
    ledger = _open(source, _HEAD_WEIGHTS)
    if document.get("config") is None:
        # A model of transformers: others have a layer called `classifier` too, which reads other states.
        model_class = document.get("model_class")
        if not str(model_class).endswith("ForSequenceClassification"):
            raise InvalidAdapter(
                f"{HEAD_CONFIG_FILE}: the head of a {quoted(model_class)} is no sequence classifier",
                reason="UNSUPPORTED",
            )
        head = take_head(ledger, backbone, labels=_labels(document.get("label2id")))
    else:
        config = converted(document["config"], HeadConfig, HEAD_CONFIG_FILE)
        head = _take_flex_head(ledger, backbone, config, document.get("name"), "version" not in document)
    ledger.close()
    if head is None:
        raise InvalidAdapter(f"{HEAD_CONFIG_FILE}: this is no classification head", reason="UNSUPPORTED")
    return head, ledger.matched


def _take_flex_head(
    ledger: Ledger, backbone: Backbone, config: HeadConfig, name: object, is_early: bool
) -> HeadPart | None:
    """A head of the library's own kind: a sequence of dropout, linear, activation, dropout, linear."""
    types: dict[str, HeadType | None] = {"classification": None, "multilabel_classification": "multilabel"}
    if config.head_type not in types:
        raise InvalidAdapter(
            f"{HEAD_CONFIG_FILE}: heads of type {quoted(config.head_type)} are not supported; supported are "
            f"{', '.join(types)}",
            reason="UNSUPPORTED",
        )
    if config.layers not in (1, 2) or (config.use_pooler and config.layers == 2):
        raise InvalidAdapter(
            f"{HEAD_CONFIG_FILE}: {config.layers} layers{' on the pooler' * config.use_pooler}; our heads have at most "
            "one before the output",
            reason="UNSUPPORTED",
        )
    prefix = f"heads.{name}"
    tensors: dict[str, TensorData] = {}
    activation = None
    if config.layers == 1:
        last = 1
    elif config.activation_function:
        activation, last = activation_of(config.activation_function, is_early), 4
    else:
        activation, last = "identity", 3  # without an activation there is no module for it
    wanted = {f"{prefix}.{last}": "out_proj"} | ({f"{prefix}.1": "dense"} if config.layers == 2 else {})
    for key, target in wanted.items():
        for kind in ("weight", "bias"):
            if kind == "bias" and target == "out_proj" and not config.bias:
                tensors["out_proj.bias"] = _zeros(config.num_labels)
            elif (tensor := ledger.take(f"{key}.{kind}")) is not None:
                tensors[f"{target}.{kind}"] = tensor_data(f"{key}.{kind}", tensor)
    return HeadPart(
        pooling="last" if backbone.family.is_decoder else "cls",
        dense="backbone" if config.use_pooler else "own" if config.layers == 2 else "none",
        activation=activation,
        tensors=tensors,
        type=types[config.head_type],
        labels=_labels(config.label2id),
    )


def _labels(label2id: object) -> tuple[str, ...] | None:
    """Names in the order of their ids; None for the made-up ones of transformers, or where there are none."""
    if label2id is None:
        return None
    ids = converted(label2id, dict[str, int], HEAD_CONFIG_FILE)
    if not ids:
        return None
    names = sorted(ids, key=lambda name: ids[name])
    if [ids[name] for name in names] != list(range(len(names))):
        raise InvalidAdapter(f"{HEAD_CONFIG_FILE}: label2id is no numbering from 0", reason="MANIFEST_INVALID")
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else tuple(names)


def _open(source: Path, names: tuple[str, str], *, rename_early: bool = False) -> Ledger:
    """The tensors of whichever of two files is there: the safetensors file, or the pickle."""
    safe, pickled = (source / name for name in names)
    path = pickled if pickled.exists() and not safe.exists() else safe
    tensors = state_dict(read_tensors(path) if path == safe else read_pickle(path), path.name)
    if rename_early:
        tensors = {_EARLY_NAMES.sub("adapters", key): tensor for key, tensor in tensors.items()}
    return Ledger(tensors, path.name)


def _zeros(width: int) -> TensorData:
    return TensorData.from_float32(np.zeros(min(max(width, 1), MAX_LABELS)))
