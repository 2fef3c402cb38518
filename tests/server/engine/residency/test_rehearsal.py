"""What a batch launches was launched when its adapters were read: no request waits for a kernel to be compiled."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adamix.backbones.backbone import Backbone
from adamix.files.adapter_file import AdapterFile
from adamix_kernels import dispatch
from adamix_kernels.gpu import heads, low_rank, ops
from adamix_kernels.plans import Facts, Plan
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.rehearsal import Rehearsal
from adamix_server.engine.residency.slot_bank import SlotBank

EXTENT = 1 << 16
MAX_ROWS = 48
CPU = torch.device("cpu")
KINDS: list[dict[str, object]] = [
    {"kind": "bottleneck", "sites": ("attn_out", "mlp_in"), "rank": 7, "num_labels": 2, "pooling": "cls"},
    {"kind": "bottleneck", "sites": ("attn_norm",), "rank": 20, "num_labels": 70, "dense": "own"},
    {"kind": "lora", "sites": ("attn_q", "mlp_out"), "rank": 4, "num_labels": 1},
]


def pick(_op: str, _architecture: str, facts: Facts, kernel: str | None = None) -> Plan:
    """As the shipped plans, another one for few rows than for many, and for one segment than for several."""
    if facts.rows <= 16 and kernel != "fused":
        return Plan("split", block_m=16, block_h=16, num_warps=4, num_stages=2, block_n=16, splits=2)
    return Plan("fused", block_m=16 if facts.segments > 1 else 32, block_h=16, num_warps=4, num_stages=2)


class Watched:
    """Takes the place of a kernel, and notes what each launch would be compiled for."""

    def __init__(self, name: str, launched: set[object]) -> None:
        self._name, self._launched = name, launched

    def __getitem__(self, _grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, **constants: object) -> None:
            pointers = tuple((a.dtype, a.data_ptr() % 16 == 0) for a in arguments if isinstance(a, torch.Tensor))
            self._launched.add((self._name, pointers, frozenset(constants.items())))

        return launch


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[object]:
    """What has been launched so far, with every op on its kernels."""
    if torch.cuda.is_available():
        pytest.skip("kernels that are compiled do not run on a CPU")
    seen: set[object] = set()
    for module, name in ((low_rank, "fused"), (low_rank, "shrink"), (low_rank, "expand"), (heads, "heads")):
        monkeypatch.setattr(module, name, Watched(name, seen))
    monkeypatch.setattr(ops, "pick", pick)
    monkeypatch.setitem(dispatch._ORDER_ON_DEVICE, "cpu", ("triton", "cpu", "reference"))
    return seen


def test_batches_of_every_size_launch_what_was_rehearsed(
    launched: set[object], make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    bank = SlotBank(len(KINDS), len(KINDS) * EXTENT, torch.float32, CPU, has_arena=True)
    runner = ModelRunner(make_backbone(), bank)
    adapters = [pack(make_adapter(i, **kind), torch.float32) for i, kind in enumerate(KINDS)]
    rehearsal = Rehearsal(bank, MAX_ROWS)
    for adapter in adapters:
        rehearsal.rehearse(adapter)
    rehearsed = set(launched)
    assert {name for name, *_ in rehearsed} == {"fused", "shrink", "expand", "heads"}
    for slot, adapter in enumerate(adapters, start=1):
        bank.write(slot, (slot - 1) * EXTENT, adapter)
    launched.clear()
    for lengths in ([1, 0, 0], [0, 5, 3], [2, 2, 2], [0, 40, 0], [16, 16, 16]):
        rows = [
            Request.of_tokens(np.arange(n, dtype=np.int32), None, slot) for slot, n in enumerate(lengths, start=1) if n
        ]
        runner.run(rows)
    assert {name for name, *_ in launched} == {"fused", "shrink", "expand", "heads"}
    assert launched <= rehearsed


def test_another_adapter_of_the_same_shape_needs_no_rehearsal(
    launched: set[object], make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    bank = SlotBank(1, EXTENT, torch.float32, CPU, has_arena=True)
    ModelRunner(make_backbone(), bank)
    rehearsal = Rehearsal(bank, MAX_ROWS)
    rehearsal.rehearse(pack(make_adapter(0, **KINDS[0]), torch.float32))
    assert launched
    launched.clear()
    rehearsal.rehearse(pack(make_adapter(1, **{**KINDS[0], "rank": 11}), torch.float32))
    assert not launched


def test_an_adapter_above_the_largest_rank_of_the_kernels_is_read_all_the_same(
    launched: set[object], make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    bank = SlotBank(1, EXTENT, torch.float32, CPU, has_arena=True)
    ModelRunner(make_backbone(), bank)
    Rehearsal(bank, MAX_ROWS).rehearse(pack(make_adapter(0, **{**KINDS[0], "rank": 257}), torch.float32))
    assert {name for name, *_ in launched} == {"heads"}


def test_where_no_kernels_run_none_are_rehearsed(
    launched: set[object],
    make_backbone: Callable[[], Backbone],
    make_adapter: Callable[..., AdapterFile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(dispatch._ORDER_ON_DEVICE, "cpu", ("cpu", "reference"))
    bank = SlotBank(1, EXTENT, torch.float32, CPU, has_arena=True)
    ModelRunner(make_backbone(), bank)
    Rehearsal(bank, MAX_ROWS).rehearse(pack(make_adapter(0, **KINDS[0]), torch.float32))
    assert not launched
