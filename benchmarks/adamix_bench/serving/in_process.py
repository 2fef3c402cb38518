"""The packed engine without processes or wire: the server's own model runner over the same requests.

Batches are cut in order of arrival; nothing waits for rows of an adapter that the batch needs anyway, as the server's
scheduler would. The bare backbone is a second runner that holds no adapter: the same packing and attention, no pooling
and no heads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from adamix.backbones.backbone import Backbone
from adamix.files import adapter_file
from adamix.modules.heads import shared_copy
from adamix_bench.serving.synthesis import SynthTask
from adamix_bench.serving.workload import Requests
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import PackedAdapter, pack
from adamix_server.engine.residency.slot_bank import SlotBank

_ALIGNMENT_BYTES = 4096
# Heads and biases differ between tasks, so adapters differ by a little in size.
_SPARE = 1.1


class MixedEngine:
    """The runner with an adapter and a head for each of `num_tasks` tasks, all in slots: slot 1 is task 0."""

    def __init__(
        self, backbone: Backbone, tasks: Iterable[SynthTask], num_tasks: int, *, deterministic: bool = False
    ) -> None:
        found = iter(tasks)
        first = _pack(next(found))
        capacity = int(num_tasks * (_aligned(first.num_bytes) + _ALIGNMENT_BYTES) * _SPARE)
        self.adapter_bytes = first.num_bytes
        bank = SlotBank(num_tasks, capacity, torch.float32, torch.device("cpu"))
        self._runner = ModelRunner(_own_copy(backbone), bank, deterministic=deterministic)
        offset = 0
        for slot in range(1, num_tasks + 1):
            packed = first if slot == 1 else _pack(next(found))
            bank.write(slot, offset, packed)
            offset += _aligned(packed.num_bytes)

    def run(self, requests: Requests, batches: Sequence[Sequence[int]]) -> None:
        """Answer everything, batch by batch."""
        for batch in batches:
            self._runner.run(_asked(requests, batch))

    def logits(self, requests: Requests, batches: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """As `run`; what each request was answered."""
        found: dict[int, NDArray[np.float32]] = {}
        for batch in batches:
            ordered = _by_task(requests, batch)
            found.update(zip(ordered, self._runner.run(_asked(requests, batch)), strict=True))
        return [found[index] for index in range(len(requests))]


class BareEngine:
    """The runner with empty slots."""

    def __init__(self, backbone: Backbone) -> None:
        bank = SlotBank(1, _ALIGNMENT_BYTES, torch.float32, torch.device("cpu"))
        self._runner = ModelRunner(_own_copy(backbone), bank)

    def run(self, requests: Requests, batches: Sequence[Sequence[int]]) -> None:
        for batch in batches:
            self._runner.hidden_states(_asked(requests, batch, has_adapter=False))

    def first_states(self, requests: Requests, batches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The last hidden state `[requests, H]` of each request's first token."""
        found = np.empty((len(requests), 0), np.float32)
        for batch in batches:
            ordered = _by_task(requests, batch)
            hidden = self._runner.hidden_states(_asked(requests, batch, has_adapter=False))
            starts = np.cumsum([0, *(len(requests.token_ids[i]) for i in ordered[:-1])])
            if not found.shape[1]:
                found = np.empty((len(requests), hidden.shape[1]), np.float32)
            found[ordered] = hidden[torch.from_numpy(starts)].numpy()
        return found


def _own_copy(backbone: Backbone) -> Backbone:
    """A runner takes its backbone over; the weights stay shared, as in one process they should be."""
    return replace(backbone, model=shared_copy(backbone.model))  # type: ignore[arg-type]  # of the same class


def _pack(task: SynthTask) -> PackedAdapter:
    return pack(adapter_file.decode(task.data), torch.float32)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _by_task(requests: Requests, batch: Sequence[int]) -> list[int]:
    """Requests of one task together, as the server hands them to its runner."""
    return sorted(batch, key=lambda index: requests.tasks[index])


def _asked(requests: Requests, batch: Sequence[int], *, has_adapter: bool = True) -> list[Request]:
    return [
        Request.of_tokens(requests.token_ids[index], slot=requests.tasks[index] + 1 if has_adapter else 0)
        for index in _by_task(requests, batch)
    ]
