"""The whole engine but the arithmetic, under random traffic: nothing lost, nothing answered twice, nothing leaked.

A bank that only checks, a channel in memory and readers that finish in random order drive the real engine, scheduler,
loader and slots step by step, with cancels, expired deadlines, files that cannot be read, and operators that load,
unload and pin.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from adamix.errors import Code, DataLoss
from adamix.files.manifest import BackboneSpec
from adamix_server.channel.codec import FromEngine, ToEngine
from adamix_server.channel.engine_frames import Cancel, Control, Emit, Event, Hello, Limits, Op, Reply, Row, Submit
from adamix_server.engine.encoding import Encoding
from adamix_server.engine.engine import Engine
from adamix_server.engine.request import Request
from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.residency.slots import Slots
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.manifests import no_model_spec

ENGINE_ID = "0"
STEPS = 250
PEER = b"front end"
OPS: tuple[Op, ...] = ("load", "activate", "pin", "unpin", "unload")
# How each may fail here.
REASONS: dict[str, set[str]] = {
    "load": {"BLOB_CORRUPT"},
    "activate": {"BLOB_CORRUPT"},
    "pin": {"BLOB_CORRUPT", "TOO_MANY_PINNED", "UNPINNED"},
    "unpin": set(),
    "unload": {"VERSION_IN_USE", "VERSION_PINNED"},
}


@dataclass(frozen=True)
class Packed:
    digest: str
    num_bytes: int


class CheckingBank:
    """Refuses to write over a slot or an extent in use."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[str, int, int]] = {}

    def write(self, slot: int, offset: int, packed: Packed) -> None:
        assert slot not in self.held
        for _, start, size in self.held.values():
            assert offset >= start + size or offset + packed.num_bytes <= start
        self.held[slot] = (packed.digest, offset, packed.num_bytes)

    def clear(self, slot: int) -> None:
        del self.held[slot]


class MemoryChannel:
    def __init__(self) -> None:
        self.inbox: list[tuple[bytes, ToEngine]] = []
        self.events: list[Event] = []
        self.replies: list[Reply] = []
        self.slept = False

    def poll(self, timeout_s: float) -> list[tuple[bytes, ToEngine]]:
        arrived, self.inbox = self.inbox, []
        self.slept = timeout_s > 0 and not arrived
        return arrived

    def send(self, peer: bytes, frame: FromEngine) -> bool:
        if isinstance(frame, Reply):
            self.replies.append(frame)
        else:
            assert isinstance(frame, Emit)
            self.events += frame.events
        return True

    def wake(self) -> None: ...

    def close(self) -> None: ...


class LazyReaders(Executor):
    """Runs what was submitted when told to, in any order."""

    def __init__(self, generator: random.Random) -> None:
        self.pending: list[Callable[[], Any]] = []
        self._generator = generator

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.pending.append(lambda: function(*args, **kwargs))
        return Future()

    def run_some(self) -> None:
        while self.pending and self._generator.random() < 0.6:
            self.pending.pop(self._generator.randrange(len(self.pending)))()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        count = self.random.randint(1, 12)
        self.sizes = {f"adapter-{i}": self.random.choice([256, 512, 1024, 4096, 16_384]) for i in range(count)}
        self.unreadable = {digest for digest in self.sizes if self.random.random() < 0.1}
        self.tenants = self.random.choice(("t", "tu", "tuvwx"))
        self.channel, self.bank, self.readers = MemoryChannel(), CheckingBank(), LazyReaders(self.random)
        self.live: dict[int, str] = {}
        self.answers: dict[int, Event] = {}
        self.orders: dict[int, Control] = {}
        self.num_orders = 0
        # What the last word on each adapter was, as far as it has been answered.
        self.pinned: set[str] = set()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.loader = AdapterLoader(
            Slots(self.random.randint(1, 5), self.random.choice([16_384, 20_480, 32_768])),
            self.bank,  # type: ignore[arg-type]
            HostCache(self.random.choice([0, 4096, 1 << 20])),
            self._read,  # type: ignore[arg-type]
            lambda: None,
            Recorder(),
            self.readers,
        )
        self.engine = Engine(
            self.channel,
            Encoding(self, Scheduler(self.random.choice([16, 64]))),  # type: ignore[arg-type]
            self.loader,
            Hello(engine_id=ENGINE_ID, generation=1, spec=_spec(), limits=_limits(), dtype="float32", device="cpu"),
            TokenRate(1000.0, 64),
            Recorder(),
            lambda: None,
        )

    def _read(self, digest: str) -> Packed:
        if digest in self.unreadable:
            raise DataLoss("gone")
        return Packed(digest, self.sizes[digest])

    def run(self, requests: Sequence[Request]) -> list[Any]:
        """The model runner's part: every request must find its own adapter in its slot."""
        for request in requests:
            assert self.bank.held[request.slot][0] == f"adapter-{request.token_ids[0]}"
        return [np.zeros(2, np.float32) for _ in requests]

    def settle(self) -> None:
        """Until everything that was asked is answered."""
        quiet = 0
        while self.live or self.orders:
            self.step()
            quiet += 1
            assert quiet < 2000, "requests or orders are stuck"

    def arrive(self) -> None:
        rows = []
        for _ in range(self.random.randint(1, 6)):
            number = len(self.live) + len(self.answers) + len(rows)
            which = min(int(self.random.expovariate(0.4)), len(self.sizes) - 1)
            tokens = np.full(self.random.randint(1, 20), which, "<i4").tobytes()
            deadline = time.monotonic() + 1e6 if self.random.random() < 0.98 else 0.0
            digest = f"adapter-{which}"
            tenant = self.random.choice(self.tenants)
            rows.append(Row(id=number, tenant=tenant, digest=digest, token_ids=tokens, deadline=deadline))
        self.live |= {row.id: row.digest for row in rows}
        self.channel.inbox.append((PEER, Submit(engine_id=ENGINE_ID, generation=1, rows=rows)))

    def order(self, op: Op, digest: str) -> None:
        self.num_orders += 1
        control = Control(engine_id=ENGINE_ID, generation=1, call=self.num_orders, op=op, digest=digest)
        self.orders[control.call] = control
        if op == "unpin":
            self.pinned.discard(digest)
        self.channel.inbox.append((PEER, control))

    def step(self) -> None:
        self.readers.run_some()
        before = len(self.channel.events)
        self.engine.step()
        self._take_replies()
        for event in self.channel.events[before:]:
            digest = self.live.pop(event.id)  # KeyError: a second final event
            self.answers[event.id] = event
            if event.error is not None and event.error.code == Code.DATA_LOSS:
                assert digest in self.unreadable
            if event.error is not None and event.error.reason == "NO_ROOM_BESIDE_PINNED":
                assert self.outcomes["pin", ""]
        self._check()

    def _take_replies(self) -> None:
        replies, self.channel.replies = self.channel.replies, []
        for reply in replies:
            control = self.orders.pop(reply.call)  # KeyError: a second reply
            reason = "" if reply.error is None else reply.error.reason
            self.outcomes[control.op, reason] += 1
            if reply.error is not None:
                # One that is so large that it has no room beside the others is one too many, too.
                assert reason in REASONS[control.op] or (control.op, reason) == ("pin", "NO_ROOM_BESIDE_PINNED")
                assert (reason == "BLOB_CORRUPT") <= (control.digest in self.unreadable)
            elif control.op == "pin":
                assert reply.value == "device"
                if not any(o.op == "unpin" and o.digest == control.digest for o in self.orders.values()):
                    self.pinned.add(control.digest)
            elif control.op == "unload":
                assert reply.value == "store"
                assert control.digest not in self.pinned

    def _check(self) -> None:
        holds = [request.hold for request in self.engine._scheduler]
        pins = list(self.loader._pinned.values())
        for slot in self.loader._slots:
            assert slot.holds == sum(hold.has_slot and hold.digest == slot.digest for hold in [*holds, *pins])
            assert not (slot.pinned and slot.closing)
        waiting = sum(len(waiting) for waiting in self.loader._waiting.values())
        assert waiting == sum(not hold.has_slot for hold in [*holds, *pins])
        assert set(self.loader._arrived) <= set(self.loader._waiting)
        for digest in self.sizes:
            assert self.loader.is_held(digest) == any(hold.digest == digest for hold in holds)
        assert {slot: digest for slot, (digest, _, _) in self.bank.held.items()} == {
            slot.index: slot.digest for slot in self.loader._slots
        }
        assert self.pinned <= set(self.loader.pinned())
        assert all(self.loader.residency(digest) == "device" for digest in self.pinned)
        assert 2 * len(self.loader.pinned()) <= self.loader._slots.count
        assert 2 * sum(self.sizes[digest] for digest in self.loader.pinned()) <= self.loader._slots.capacity_bytes


@pytest.mark.parametrize("seed", range(60))
def test_random_traffic(seed: int) -> None:
    simulation = Simulation(seed)
    for _ in range(STEPS):
        if simulation.random.random() < 0.8:
            simulation.arrive()
        if simulation.live and simulation.random.random() < 0.2:
            ids = [simulation.random.choice(list(simulation.live))]
            simulation.channel.inbox.append((PEER, Cancel(engine_id=ENGINE_ID, generation=1, ids=ids)))
        if simulation.random.random() < 0.3:
            simulation.order(simulation.random.choice(OPS), simulation.random.choice(list(simulation.sizes)))
        simulation.step()
    simulation.settle()
    for digest in simulation.sizes:
        simulation.order("unpin", digest)
    simulation.settle()
    assert not simulation.loader._pinned
    assert not simulation.loader._waiting
    assert not simulation.loader._wanted
    assert not simulation.loader._arrived
    assert all(slot.holds == 0 for slot in simulation.loader._slots)
    # Nothing remembers a request that has ended.
    simulation.step()
    assert len(simulation.engine._scheduler) == len(simulation.engine._scheduler._deadlines) == 0
    assert not len(simulation.engine._desk)
    readable = set(simulation.sizes) - simulation.unreadable
    assert not readable or any(event.error is None for event in simulation.answers.values())


def test_random_orders_meet_every_outcome() -> None:
    # What the test above says about outcomes is worth something only if they occur.
    outcomes: Counter[tuple[str, str]] = Counter()
    for seed in range(60, 80):
        simulation = Simulation(seed)
        for _ in range(100):
            if simulation.random.random() < 0.5:
                simulation.arrive()
            for _ in range(2):
                simulation.order(simulation.random.choice(OPS), simulation.random.choice(list(simulation.sizes)))
            simulation.step()
        simulation.settle()
        outcomes += simulation.outcomes
    expected = {(op, "") for op in OPS} | {(op, reason) for op in OPS for reason in REASONS[op]}
    assert set(outcomes) >= expected


def test_the_loop_does_not_sleep_while_a_waiting_adapter_could_have_a_slot() -> None:
    simulation = Simulation(seed=0)
    simulation.unreadable.clear()
    simulation.sizes = dict.fromkeys([f"adapter-{i}" for i in range(8)], 256)
    simulation.loader._slots.count = 1
    simulation.loader._slots._free_indices = [1]
    for digest in simulation.sizes:
        simulation.loader._cache.capacity_bytes = 1 << 20
        simulation.loader._cache.put(digest, Packed(digest, 256))  # type: ignore[arg-type]
    rows = [
        Row(id=i, tenant="t", digest=f"adapter-{i}", token_ids=np.full(4, i, "<i4").tobytes(), deadline=1e12)
        for i in range(8)
    ]
    simulation.live = {row.id: row.digest for row in rows}
    simulation.channel.inbox.append((PEER, Submit(engine_id=ENGINE_ID, generation=1, rows=rows)))
    steps = 0
    while simulation.live:
        simulation.step()
        steps += 1
        assert not simulation.channel.slept
        assert steps < 50


def test_a_file_that_cannot_be_read_is_read_once_for_all_who_wait() -> None:
    simulation = Simulation(seed=0)
    simulation.unreadable = {"adapter-0"}
    read, reads = simulation.loader._read, []
    simulation.loader._read = lambda digest: reads.append(digest) or read(digest)  # type: ignore[func-returns-value]
    token_ids = np.zeros(4, "<i4").tobytes()
    rows = [Row(id=i, tenant="t", digest="adapter-0", token_ids=token_ids, deadline=1e12) for i in range(3)]
    simulation.live = {row.id: row.digest for row in rows}
    simulation.channel.inbox.append((PEER, Submit(engine_id=ENGINE_ID, generation=1, rows=rows)))
    simulation.settle()
    for _ in range(20):
        simulation.step()
    assert reads == ["adapter-0"]


def _limits() -> Limits:
    return Limits(max_batch_tokens=64, max_queue_inputs=10**6, max_queue_tokens=10**7, slots=5)


def _spec() -> BackboneSpec:
    return no_model_spec(max_tokens=512)
