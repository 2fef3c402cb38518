"""PEFT over plain transformers: a mixed batch by `adapter_names`, and one active adapter at a time.

PEFT has no AdaMix bottleneck, so every task has a LoRA here. Heads are outside its mixed batch; here all heads are one
stacked product over the pooled rows, the least that per-task heads can cost. Batches are padded and hold 32 requests.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidConfig
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.modules.heads import pool, shared_copy
from adamix_bench.serving.peers.padded import BATCH, pad
from adamix_bench.serving.synthesis import LORA_RANK, LORA_SITES, SynthTask
from adamix_bench.serving.workload import Requests


class PeftBackbone:
    """A backbone with every task's LoRA loaded by PEFT.

    Raises:
        InvalidConfig: PEFT is not installed.
    """

    def __init__(self, backbone: Backbone, tasks: Sequence[SynthTask], pad_id: int) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise InvalidConfig("the peers need PEFT; run: pip install 'adamix[bench]'") from None
        adapters = [adapter_file.decode(task.data) for task in tasks]
        modules = [backbone.family.sites[site].module.rpartition(".")[2] for site in LORA_SITES]
        config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, lora_dropout=0.0, target_modules=modules)
        self._names = [task.name for task in tasks]
        self._body = shared_copy(backbone.model)
        # Puts its modules into the body.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about names that PEFT uses and transformers renames
            self._model = get_peft_model(self._body, config, adapter_name=self._names[0])
        for name in self._names[1:]:
            self._model.add_adapter(name, config)
        self._copy_weights(backbone, adapters)
        self._model.eval()
        self._pad_id = pad_id
        self._heads = _stack(adapters)

    def run_mixed(self, requests: Requests) -> None:
        """In order of arrival; PEFT splits each batch by adapter inside every adapted module."""
        for start in range(0, len(requests), BATCH):
            self._mixed_batch(requests, range(start, min(start + BATCH, len(requests))))

    def run_switching(self, requests: Requests) -> None:
        """Task after task, each made active once: the fewest switches there can be, at the price of order."""
        by_task: dict[int, list[int]] = {}
        for index, task in enumerate(requests.tasks):
            by_task.setdefault(task, []).append(index)
        for task, indices in by_task.items():
            self._model.set_adapter(self._names[task])
            for start in range(0, len(indices), BATCH):
                self._one_adapter(requests, indices[start : start + BATCH])

    def logits(self, requests: Requests) -> list[NDArray[np.float32]]:
        """What the mixed batch answers; padded with zeros to the widest head."""
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(requests), BATCH):
            found += list(self._mixed_batch(requests, range(start, min(start + BATCH, len(requests)))).numpy())
        return found

    @torch.inference_mode()
    def _mixed_batch(self, requests: Requests, indices: Sequence[int]) -> Tensor:
        batch = pad(requests, indices, self._pad_id)
        names = [self._names[requests.tasks[i]] for i in indices]
        hidden = self._model(**batch, adapter_names=names).last_hidden_state
        return self._answers(hidden, batch["attention_mask"], [requests.tasks[i] for i in indices])

    @torch.inference_mode()
    def _one_adapter(self, requests: Requests, indices: Sequence[int]) -> Tensor:
        batch = pad(requests, indices, self._pad_id)
        hidden = self._model(**batch).last_hidden_state
        return self._answers(hidden, batch["attention_mask"], [requests.tasks[i] for i in indices])

    def _answers(self, hidden: Tensor, mask: Tensor, tasks: Sequence[int]) -> Tensor:
        """`[N, widest head]`."""
        weights, biases = self._heads
        chosen = torch.tensor(tasks)
        features = pool(hidden, mask, "mean")
        return torch.baddbmm(biases[chosen][:, None], features[:, None], weights[chosen])[:, 0]

    @torch.no_grad()
    def _copy_weights(self, backbone: Backbone, adapters: Sequence[AdapterFile]) -> None:
        layers = self._body.get_submodule(backbone.family.layers)
        for layer, modules in enumerate(layers.children()):
            for site in LORA_SITES:
                adapted: Any = modules.get_submodule(backbone.family.sites[site].module)
                for name, adapter in zip(self._names, adapters, strict=True):
                    tensors = adapter.site(layer, site)
                    adapted.lora_A[name].weight.copy_(torch.from_numpy(tensors["lora_A"].to_float32()))
                    adapted.lora_B[name].weight.copy_(torch.from_numpy(tensors["lora_B"].to_float32()))


def _stack(adapters: Sequence[AdapterFile]) -> tuple[Tensor, Tensor]:
    """All heads as `[tasks, H, widest]` and `[tasks, widest]`, zeros where a head is narrower."""
    widest = max(adapter.manifest.head.num_labels for adapter in adapters)
    weights = torch.zeros(len(adapters), adapters[0].manifest.backbone.hidden_size, widest)
    biases = torch.zeros(len(adapters), widest)
    for index, adapter in enumerate(adapters):
        head = adapter.head()
        weight = torch.from_numpy(head["out_proj.weight"].to_float32())
        weights[index, :, : weight.shape[0]] = weight.T
        biases[index, : weight.shape[0]] = torch.from_numpy(head["out_proj.bias"].to_float32())
    return weights, biases
