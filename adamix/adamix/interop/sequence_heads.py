"""The heads of transformers' `…ForSequenceClassification`, in our terms.

PEFT saves such heads under `modules_to_save`, AdapterHub as "static" heads, the AdaMix release beside its experts; this
table is what the three importers and the export share. Knows names and what they compute; no files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter
from adamix.files.manifest import Activation, Dense, Pooling
from adamix.files.tensors import TensorData
from adamix.interop.assembly import HeadPart
from adamix.interop.reading import Ledger, float32, tensor_data

POOLER = "pooler.dense"


@dataclass(frozen=True)
class SequenceHead:
    """One family's classifier.

    Attributes:
        body: attribute of the classifier that holds the body; also the prefix of the body's keys.
        pooling: what the head reads.
        dense: name of the head's dense layer; None where it has none.
        activation: after the dense layer.
        out_proj: name of the output layer.
        has_bias: the output layer has one.
        dense_in_body: the dense layer is the body's own pooler: frozen unless the source brings one.
    """

    body: str
    pooling: Pooling
    dense: str | None
    activation: Activation | None
    out_proj: str
    has_bias: bool = True
    dense_in_body: bool = False


_BERT = SequenceHead("bert", "cls", POOLER, "tanh", "classifier", dense_in_body=True)
_ROBERTA = SequenceHead("roberta", "cls", "classifier.dense", "tanh", "classifier.out_proj")
_DECODER = SequenceHead("model", "last", None, None, "score", has_bias=False)

SEQUENCE_HEADS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": SequenceHead("distilbert", "cls", "pre_classifier", "relu", "classifier"),
    "gpt2": SequenceHead("transformer", "last", None, None, "score", has_bias=False),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
}


def take_head(
    ledger: Ledger,
    backbone: Backbone,
    *,
    prefix: str = "",
    fold: Callable[[Tensor], Tensor] | None = None,
    labels: tuple[str, ...] | None = None,
) -> HeadPart | None:
    """The head in a source; None if it has no output layer.

    Args:
        prefix: before every key of the source.
        fold: adds what the source trained on the pooler to its weight, `[H, H] -> [H, H]`.
        labels: names that the source gives.

    Raises:
        InvalidAdapter: the head has its dense layer missing.
    """
    head = SEQUENCE_HEADS[backbone.spec.model_type]
    if f"{prefix}{head.out_proj}.weight" not in ledger:
        return None
    tensors = _linear(ledger, prefix + head.out_proj, "out_proj", has_bias=head.has_bias)
    dense: Dense = "none"
    if head.dense_in_body:
        dense, layer = _pooler(ledger, backbone, f"{prefix}{head.body}.{head.dense}", fold)
        tensors |= layer
    elif head.dense is not None:
        if f"{prefix}{head.dense}.weight" not in ledger:
            raise InvalidAdapter(
                f"the head's layer {head.dense} was not saved; it was random when the adapter was trained, and cannot "
                "be had again: train with it among the modules that are saved",
                reason="TENSOR_MISSING",
            )
        dense = "own"
        tensors |= _linear(ledger, prefix + head.dense, "dense")
    return HeadPart(
        pooling=head.pooling,
        dense=dense,
        activation=head.activation if dense == "own" else None,
        tensors=tensors,
        labels=labels,
    )


def _pooler(
    ledger: Ledger, backbone: Backbone, key: str, fold: Callable[[Tensor], Tensor] | None
) -> tuple[Dense, dict[str, TensorData]]:
    """A pooler that was trained is a dense layer of the head's own; one that was not stays the backbone's."""
    if f"{key}.weight" in ledger:
        return "own", _linear(ledger, key, "dense")
    if fold is None:
        return "backbone", {}
    if backbone.pooler is None:
        raise InvalidAdapter(
            f"the adapter changes the pooler of its backbone, and the checkpoint of {backbone.spec.label} has none",
            reason="POOLER_MISMATCH",
        )
    weights = dict(backbone.pooler.named_parameters())
    folded = fold(weights["dense.weight"].detach().float().cpu())
    return "own", {
        "dense.weight": tensor_data(key, folded),
        "dense.bias": tensor_data(key, weights["dense.bias"].detach().float().cpu()),
    }


def _linear(ledger: Ledger, source: str, target: str, *, has_bias: bool = True) -> dict[str, TensorData]:
    weight = ledger.take(f"{source}.weight")
    if weight is None:
        return {}
    tensors = {f"{target}.weight": tensor_data(f"{source}.weight", weight)}
    if has_bias:
        bias = ledger.take(f"{source}.bias")
        if bias is not None:
            tensors[f"{target}.bias"] = tensor_data(f"{source}.bias", bias)
    else:
        # Our output layers have one, and adding zero changes nothing.
        width = float32(source, weight).shape[0]
        tensors[f"{target}.bias"] = tensor_data(source, torch.zeros(width))
    return tensors
