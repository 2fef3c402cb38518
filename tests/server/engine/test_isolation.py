"""A valid adapter made to do harm: whatever it does to its own rows, its neighbours in the batch do not feel it."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from adamix.backbones.backbone import Backbone
from adamix.files.adapter_file import MAX_MAGNITUDE, AdapterFile
from adamix.files.tensors import TensorData
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank

CPU = torch.device("cpu")
EXTENT = 1 << 16
HARMFUL_SLOT = 4

KINDS: list[dict[str, object]] = [
    {"kind": "bottleneck", "rank": 4},
    {"kind": "bottleneck", "sites": ("attn_norm", "mlp_norm"), "rank": 5, "dense": "own"},
    {"kind": "lora", "sites": ("attn_q", "attn_v"), "rank": 4},
    {"kind": "lora", "sites": ("attn_k", "mlp_in", "mlp_out"), "rank": 16},
]


def filled(adapter: AdapterFile, value: float) -> AdapterFile:
    """The adapter with this for every weight; not decoded, which would refuse what is not finite."""
    tensors = {
        name: TensorData.from_float32(np.full(tensor.shape, value, np.float32))
        for name, tensor in adapter.tensors.items()
    }
    return dataclasses.replace(adapter, tensors=tensors)


def runner_with(backbone: Backbone, adapters: list[AdapterFile]) -> ModelRunner:
    bank = SlotBank(len(adapters), EXTENT * len(adapters), torch.float32, CPU)
    runner = ModelRunner(backbone, bank)
    for slot, adapter in enumerate(adapters, start=1):
        bank.write(slot, (slot - 1) * EXTENT, pack(adapter, torch.float32))
    return runner


# The largest weights a file may have, and what no file can have: the engine does not lean on that check.
@pytest.mark.parametrize("value", [MAX_MAGNITUDE, np.nan])
@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda n: f"{KINDS[n]['kind']}-{n}")
def test_a_harmful_adapter_harms_its_own_rows_alone(
    number: int, value: float, make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    others = [make_adapter(seed, **kind) for seed, kind in enumerate(KINDS[:3])]
    harmless = make_adapter(9, **KINDS[number])
    generator = np.random.default_rng(number)
    rows = [
        Request.of_tokens(generator.integers(0, 64, length, dtype=np.int32), None, slot)
        for slot, length in ((1, 5), (1, 9), (2, 7), (3, 1), (3, 12), (HARMFUL_SLOT, 8), (HARMFUL_SLOT, 2))
    ]
    neighbours = [i for i, row in enumerate(rows) if row.slot != HARMFUL_SLOT]
    with_harmless = runner_with(make_backbone(), [*others, harmless]).run(rows)
    runner = runner_with(make_backbone(), [*others, filled(harmless, value)])
    with_harmful = runner.run(rows)
    own = np.array(with_harmful[len(neighbours) :])
    assert not np.isfinite(own).all() or np.abs(own).max() > 1e4, "it does harm to its own"
    for i in neighbours:
        # To the bit: the same rows of the same lengths in the same places, only other numbers beside them. Where those
        # are not finite, the neighbours are computed again without them, in another order of sums.
        tolerance = 0.0 if np.isfinite(value) else 2e-6
        np.testing.assert_allclose(with_harmful[i], with_harmless[i], rtol=0, atol=tolerance)
    alone = runner.run([rows[i] for i in neighbours])
    for i, answer in zip(neighbours, alone, strict=True):
        np.testing.assert_allclose(with_harmful[i], answer, atol=2e-5, rtol=1e-4)
    # And nothing of it stays behind in what the runner keeps between batches.
    for answer, again in zip(alone, runner.run([rows[i] for i in neighbours]), strict=True):
        np.testing.assert_array_equal(answer, again)
