"""A merged adapter put into the backbone it was trained on, as plain modules of torch.

The placement is that of `sites`, the modules are the experts' own, with the weights of the file. Knows neither data nor
metrics.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from adamix.backbones.backbone import Backbone
from adamix.backbones.sites import Point, insert
from adamix.errors import FailedPrecondition
from adamix.files.adapter_file import AdapterFile, check_backbone
from adamix.files.tensors import TensorData
from adamix.modules.bottleneck import Bottleneck, BottleneckAtLinear, BottleneckAtNorm
from adamix.modules.heads import ClozeHead, Head, TaskModel, shared_copy
from adamix.modules.lora import Lora, LoraAtLinear


def attach(
    adapter: AdapterFile, backbone: Backbone, replace: Callable[[str, nn.Linear], nn.Module] | None = None
) -> TaskModel:
    """The backbone with this adapter and its head in place, in evaluation mode; the backbone itself is untouched.

    Args:
        replace: called with the key (`layers.{i}.{site}.down_proj`, `….lora_A`, …) and the linear of each projection;
            what it returns takes the linear's place.

    Raises:
        InvalidAdapter: the adapter does not fit the backbone.
        FailedPrecondition: it has a cloze head, and the backbone was loaded without its language model's.
    """
    check_backbone(adapter, backbone.spec)
    body = shared_copy(backbone.model)
    insert_adapter(body, adapter, replace)
    device = next(backbone.model.parameters()).device
    return TaskModel(body, _head(adapter, backbone), backbone.first_position).to(device).eval()


def _head(adapter: AdapterFile, backbone: Backbone) -> Head | ClozeHead:
    spec = adapter.manifest.head
    if spec.type == "cloze":
        if backbone.lm_head is None:
            raise FailedPrecondition(
                f"{backbone.name} was loaded without its language-model head, which an adapter with a cloze head needs"
            )
        return ClozeHead(shared_copy(backbone.lm_head), spec.verbalizer or ())
    head = Head(spec, backbone.spec.hidden_size, backbone.pooler)
    tensors = adapter.head()
    if "out_proj.weight" in tensors:
        head.out_proj = _linear(tensors["out_proj.weight"], tensors.get("out_proj.bias"))
    if head.dense is not None:
        head.dense = _linear(tensors["dense.weight"], tensors["dense.bias"])
    return head


def insert_adapter(
    body: nn.Module, adapter: AdapterFile, replace: Callable[[str, nn.Linear], nn.Module] | None = None
) -> None:
    """Put the adapter, which must fit, into a body, in place; `replace` as of `attach`."""
    sites = sorted({site for _, site in adapter.sites()})
    insert(body, sites, lambda point: _merged_site(adapter, point, replace or _as_it_is))


def _as_it_is(_: str, linear: nn.Linear) -> nn.Module:
    return linear


def _merged_site(adapter: AdapterFile, point: Point, replace: Callable[[str, nn.Linear], nn.Module]) -> nn.Module:
    tensors = adapter.site(point.layer, point.site)
    if not tensors:
        return point.module
    scale = adapter.manifest.scale(point.layer, point.site)
    where = f"layers.{point.layer}.{point.site}"
    if adapter.manifest.kind == "lora":
        a = replace(f"{where}.lora_A", _linear(tensors["lora_A"], None))
        b = replace(f"{where}.lora_B", _linear(tensors["lora_B"], None))
        lora = Lora(a, b, scale)
        return LoraAtLinear(point.module, lora, point.window)
    down = replace(f"{where}.down_proj", _linear(tensors["down_proj.weight"], tensors.get("down_proj.bias")))
    up = replace(f"{where}.up_proj", _linear(tensors["up_proj.weight"], tensors.get("up_proj.bias")))
    bottleneck = Bottleneck(down, up, adapter.manifest.activation, scale)
    if point.is_norm:
        return BottleneckAtNorm(point.module, bottleneck)
    return BottleneckAtLinear(point.module, bottleneck, point.window)


def _linear(weight: TensorData, bias: TensorData | None) -> nn.Linear:
    width_out, width_in = weight.shape
    linear = nn.Linear(width_in, width_out, bias=bias is not None, device="meta")
    linear.weight = _parameter(weight)
    if bias is not None:
        linear.bias = _parameter(bias)
    return linear


def _parameter(tensor: TensorData) -> nn.Parameter:
    # torch does not take the read-only view of a file's bytes; to_float32 copies.
    return nn.Parameter(torch.from_numpy(np.array(tensor.to_float32())), requires_grad=False)
