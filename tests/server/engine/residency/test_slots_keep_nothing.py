"""Nothing of an adapter stays for another: not in a slot, not in its range of the arena, not in a table of a site."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from adamix.backbones.backbone import Backbone
from adamix.errors import DataLoss, InternalError
from adamix_kernels import native
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.residency.packing import PackedAdapter, pack
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.residency.slots import Hold, Slots, SlotState
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import MakeRandomAdapter

CPU = torch.device("cpu")
SLOTS, ARENA = 3, 40_000
# From a few hundred bytes to most of the arena, at sites that overlap and at others.
KINDS: list[dict[str, Any]] = [
    {"kind": "bottleneck", "rank": 1},
    {"kind": "bottleneck", "rank": 24, "sites": ("attn_out", "mlp_out")},
    {"kind": "bottleneck", "rank": 3, "sites": ("attn_norm", "mlp_norm"), "dense": "own"},
    {"kind": "lora", "rank": 16, "sites": ("attn_q", "attn_v")},
    {"kind": "lora", "rank": 2, "sites": ("attn_k", "mlp_in", "mlp_out"), "num_labels": 7},
]


class Readers(Executor):
    """Reads when told to."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], Any]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.pending.append(lambda: function(*args, **kwargs))
        return Future()


class World:
    """A loader over a real bank. A read fails where the test says so."""

    def __init__(
        self, backbone: Backbone, packed: list[PackedAdapter], *, has_arena: bool, with_records: bool = False
    ) -> None:
        self.packed = {each.digest: each for each in packed}
        self.broken: set[str] = set()
        self.bank = SlotBank(SLOTS, ARENA, torch.float32, CPU, has_arena=has_arena)
        if with_records:
            self.bank.install = partial(self.bank.install, with_records=True)  # type: ignore[method-assign]
        self.runner = ModelRunner(backbone, self.bank)
        if with_records:
            self.bank.implementation = "rows"
        if self.bank._arena is not None:
            # What nobody wrote shows in every sum.
            self.bank._arena.fill_(torch.nan)
        self.slots, self.readers = Slots(SLOTS, ARENA), Readers()
        self.loader = AdapterLoader(
            self.slots, self.bank, HostCache(1 << 20), self._read, lambda: None, Recorder(), self.readers
        )

    def _read(self, digest: str) -> PackedAdapter:
        if digest in self.broken:
            raise DataLoss("gone")
        return self.packed[digest]

    def turn(self) -> None:
        pending, self.readers.pending = self.readers.pending, []
        for read in pending:
            read()
        self.loader.advance()

    def check(self) -> None:
        """Each slot shows its own adapter as a whole, and one without shows nothing."""
        by_index = {slot.index: slot for slot in self.slots if slot.state is SlotState.READY}
        for index in range(1, SLOTS + 1):
            packed = self.packed[by_index[index].digest] if index in by_index else None
            assert (self.bank.heads[index] is None) == (packed is None)
            assert self.bank.head_specs[index] == (None if packed is None else packed.manifest.head)
            for at, site in self.bank.sites.items():
                shown = site._bottlenecks[index] or site._loras[index]
                expected = None if packed is None else packed.weights.sites.get(at)
                assert (shown is None) == (expected is None)
                if shown is not None and expected is not None:
                    assert_same(shown, expected)
                if self.bank._records is not None:
                    place = list(self.bank.sites).index(at)
                    assert self.bank._records[place, :, index].tolist() == site.records_of(index)
                    assert bool(self.bank._records[place, :, index].any()) == (expected is not None)
            if packed is not None:
                assert_same(self.bank.heads[index], packed.weights.head)


def assert_same(shown: object, expected: object) -> None:
    assert type(shown) is type(expected)
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(shown, name), value)


def row(slot: int) -> Request:
    return Request.of_tokens(np.arange(2, 12, dtype=np.int32), None, slot)


@pytest.mark.parametrize(("has_arena", "with_records"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_a_slot_shows_one_whole_adapter(
    seed: int,
    has_arena: bool,
    with_records: bool,
    make_backbone: Callable[[], Backbone],
    make_adapter: MakeRandomAdapter,
) -> None:
    """Evicted, unloaded, cancelled while they are read, unreadable: nobody sees of them what is another's."""
    if with_records and native.load() is None:
        pytest.skip("the native kernels were not built, or are turned off")
    packed = [pack(make_adapter(n, **KINDS[n % len(KINDS)]), torch.float32) for n in range(8)]
    world = World(make_backbone(), packed, has_arena=has_arena, with_records=with_records)
    random, digests = np.random.default_rng(seed), [each.digest for each in packed]
    holds: list[Hold] = []
    expected = {each.digest: alone(make_backbone(), each) for each in packed}
    for _ in range(120):
        digest = digests[int(random.integers(len(digests)))]
        match random.integers(6):
            case 0 | 1:
                holds.append(world.loader.hold(digest))
            case 2 | 3 if holds:
                world.loader.release(holds.pop(int(random.integers(len(holds)))))
            case 4 if not world.loader.is_held(digest):
                world.loader.unload(digest)
            case 5:
                world.broken ^= {digest}
        if random.random() < 0.7:
            world.turn()
        world.check()
    for slot in world.slots:
        np.testing.assert_allclose(world.runner.run([row(slot.index)])[0], expected[slot.digest], atol=2e-5, rtol=1e-4)


def alone(backbone: Backbone, packed: PackedAdapter) -> np.ndarray:
    bank = SlotBank(1, packed.num_bytes, torch.float32, CPU)
    runner = ModelRunner(backbone, bank)
    bank.write(1, 0, packed)
    return runner.run([row(1)])[0]


def test_a_smaller_adapter_in_the_place_of_a_larger_one_answers_as_if_it_had_been_first(
    make_backbone: Callable[[], Backbone], make_adapter: MakeRandomAdapter
) -> None:
    large = pack(make_adapter(1, kind="bottleneck", rank=24, sites=("attn_out", "mlp_in", "mlp_out")), torch.float32)
    small = pack(make_adapter(2, kind="lora", rank=1, sites=("attn_q",)), torch.float32)
    answers = []
    for first in (None, large):
        bank = SlotBank(1, 1 << 17, torch.float32, CPU, has_arena=True)
        runner = ModelRunner(make_backbone(), bank)
        if first is not None:
            bank.write(1, 0, first)
            runner.run([row(1)])
            bank.clear(1)
        bank.write(1, 0, small)
        answers.append(runner.run([row(1)])[0])
    np.testing.assert_array_equal(answers[0], answers[1])


def test_a_slot_is_not_written_before_it_is_cleared(
    make_backbone: Callable[[], Backbone], make_adapter: MakeRandomAdapter
) -> None:
    bank = SlotBank(1, 1 << 17, torch.float32, CPU)
    ModelRunner(make_backbone(), bank)
    bank.write(1, 0, pack(make_adapter(1), torch.float32))
    with pytest.raises(InternalError, match="not cleared"):
        bank.write(1, 0, pack(make_adapter(2, kind="lora", sites=("attn_q",)), torch.float32))
