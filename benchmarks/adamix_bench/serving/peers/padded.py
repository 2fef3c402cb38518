"""Padded transformers: the plain backbone in batches of 32 in order of arrival, without adapters or heads."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamix.backbones.backbone import Backbone
from adamix.rows.labelled import TokenRow, collate
from adamix_bench.serving.workload import Requests

BATCH = 32


class PaddedBackbone:
    def __init__(self, backbone: Backbone, pad_id: int) -> None:
        self._model = backbone.model
        self._pad_id = pad_id

    @torch.inference_mode()
    def run(self, requests: Requests) -> None:
        for start in range(0, len(requests), BATCH):
            self._model(**pad(requests, range(start, min(start + BATCH, len(requests))), self._pad_id))

    @torch.inference_mode()
    def first_states(self, requests: Requests) -> NDArray[np.float32]:
        """The last hidden state `[requests, H]` of each request's first token."""
        found = []
        for start in range(0, len(requests), BATCH):
            batch = pad(requests, range(start, min(start + BATCH, len(requests))), self._pad_id)
            found.append(self._model(**batch).last_hidden_state[:, 0].numpy())
        return np.concatenate(found)


def pad(requests: Requests, indices: Sequence[int], pad_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of some requests, `[requests, longest]`."""
    return collate([TokenRow(tuple(requests.token_ids[i].tolist()), None, False) for i in indices], pad_id)
