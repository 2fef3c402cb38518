"""A mixed batch through the Triton kernels, from records in the arena, as on a CUDA device: here in the interpreter."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adamix.backbones.backbone import Backbone
from adamix.evaluation.labelled import predict
from adamix.files.adapter_file import AdapterFile
from adamix.modules.attach import attach
from adamix.rows.labelled import TokenRow
from adamix_kernels import dispatch
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank

EXTENT = 1 << 16
CPU = torch.device("cpu")
KINDS: list[dict[str, object]] = [
    {"kind": "bottleneck", "sites": ("attn_out", "mlp_out"), "rank": 7, "num_labels": 2, "pooling": "cls"},
    {"kind": "bottleneck", "sites": ("attn_norm", "mlp_norm"), "rank": 5, "num_labels": 5, "dense": "own"},
    {"kind": "lora", "sites": ("attn_q", "mlp_in"), "rank": 16, "num_labels": 1},
]


@pytest.fixture
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without graphs to record, every op takes its kernels, on a CPU too."""
    if torch.cuda.is_available():
        pytest.skip("kernels that are compiled do not run on a CPU; tests marked gpu run them on the device")
    monkeypatch.setitem(dispatch._ORDER_ON_DEVICE, "cpu", ("triton", "cpu", "reference"))


def rows_for(slots: list[int], seed: int) -> list[Request]:
    random = np.random.default_rng(seed)
    rows = []
    for slot in slots:
        length = int(random.integers(1, 20))
        rows.append(Request.of_tokens(random.integers(0, 64, length, dtype=np.int32), np.zeros(length, np.int32), slot))
    return rows


def offline(adapter: AdapterFile, backbone: Backbone, row: Request) -> np.ndarray:
    types = tuple(0 for _ in row.token_ids)
    return predict(
        attach(adapter, backbone), [TokenRow(tuple(row.token_ids.tolist()), types, is_truncated=False)], pad_id=0
    )[0].numpy()


def check(runner: ModelRunner, adapters: dict[int, AdapterFile], make_backbone: Callable[[], Backbone]) -> None:
    rows = rows_for(sorted([*adapters] * 2), seed=len(adapters))
    with torch.inference_mode():
        answers = runner.run(rows)
    expected = []
    for row in rows:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(dispatch._ORDER_ON_DEVICE, "cpu", ("cpu", "reference"))
            expected.append(offline(adapters[row.slot], make_backbone(), row))
    for answer, alone in zip(answers, expected, strict=True):
        # fp32 on both sides: only the order of sums differs, over two layers of O(1) states.
        np.testing.assert_allclose(answer, alone, atol=2e-5, rtol=1e-4)


def test_a_mixed_batch_equals_offline_and_slots_can_change_hands(
    kernels_everywhere: None, make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    bank = SlotBank(4, 4 * EXTENT, torch.float32, CPU, has_arena=True)
    runner = ModelRunner(make_backbone(), bank)
    # Slots and their places in the arena are in different order: only the records know.
    places = {1: 2, 2: 0, 4: 1}
    adapters = {slot: make_adapter(slot, **kind) for slot, kind in zip(places, KINDS, strict=True)}
    for slot, place in places.items():
        bank.write(slot, place * EXTENT, pack(adapters[slot], torch.float32))
    check(runner, adapters, make_backbone)

    # Another adapter, of another kind, takes a slot; and one that was empty is filled beside it.
    bank.clear(1)
    adapters[1] = make_adapter(9, **KINDS[2])
    bank.write(1, 2 * EXTENT, pack(adapters[1], torch.float32))
    adapters[3] = make_adapter(3, **KINDS[0])
    bank.write(3, 3 * EXTENT, pack(adapters[3], torch.float32))
    check(runner, adapters, make_backbone)
