"""Loading, unloading and pinning between two steps of an engine, with a bank and readers that do what the test says."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from adamix.errors import AdamixError, DataLoss
from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.residency.orders import Kind, Orders
from adamix_server.engine.residency.slots import Hold, Slots
from adamix_server.telemetry.metrics import Recorder

KIB = 1024


@dataclass(frozen=True)
class Packed:
    num_bytes: int


class Bank:
    def __init__(self) -> None:
        self.held: set[int] = set()

    def write(self, slot: int, _offset: int, _packed: Packed) -> None:
        assert slot not in self.held
        self.held.add(slot)

    def clear(self, slot: int) -> None:
        self.held.remove(slot)


class Readers(Executor):
    """Reads when told to."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], Any]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.pending.append(lambda: function(*args, **kwargs))
        return Future()

    def read_all(self) -> None:
        pending, self.pending = self.pending, []
        for work in pending:
            work()


class World:
    """A loader and its orders. Adapters are named by their size in KiB, as `4a` and `4b`; of `0a` the file is bad."""

    def __init__(self, slots: int = 4, arena_kib: int = 64, cache_kib: int = 1024) -> None:
        self.slots, self.bank, self.readers, self.recorder = (
            Slots(slots, arena_kib * KIB),
            Bank(),
            Readers(),
            Recorder(),
        )
        self.cache = HostCache(cache_kib * KIB)
        self.loader = AdapterLoader(
            self.slots,
            self.bank,  # type: ignore[arg-type]
            self.cache,
            self._read,  # type: ignore[arg-type]
            lambda: None,
            self.recorder,
            self.readers,
        )
        self.orders = Orders(self.loader)
        self.answers: dict[int, str] = {}
        self.failed: dict[str, AdamixError] = {}
        self._last = 0

    def _read(self, digest: str) -> Packed:
        if digest.startswith("0"):
            raise DataLoss("gone")
        return Packed(int(digest[:-1]) * KIB)

    def place(self, kind: Kind, digest: str) -> int:
        self._last += 1
        self.orders.place(kind, digest, (b"front end", self._last))
        return self._last

    def turn(self) -> None:
        """What the engine does between two steps."""
        self.failed = self.loader.advance()
        for answer in self.orders.settle(self.failed):
            _, call = answer.caller
            assert call not in self.answers
            self.answers[call] = answer.residency if answer.error is None else answer.error.reason

    def settle(self) -> None:
        while self.readers.pending or self.turn() or self.readers.pending:
            self.readers.read_all()

    def ask(self, kind: Kind, digest: str) -> str:
        """The answer to an order that waits for nobody."""
        call = self.place(kind, digest)
        self.settle()
        return self.answers.pop(call)

    def use(self, digest: str) -> Hold:
        """A request's hold, with its slot."""
        hold = self.loader.hold(digest)
        self.settle()
        assert hold.has_slot
        return hold


def test_load_ends_in_host_memory_and_activate_in_a_slot() -> None:
    world = World()
    assert world.ask("load", "4a") == "host"
    assert len(world.slots) == 0
    assert world.ask("activate", "4a") == "device"
    assert world.ask("load", "4a") == "device"
    assert world.ask("activate", "4b") == "device"
    assert world.ask("load", "0a") == world.ask("activate", "0b") == "BLOB_CORRUPT"
    assert not world.loader.is_held("4a")


def test_activate_takes_the_slot_of_an_idle_adapter_but_none_that_is_used() -> None:
    world = World(slots=2)
    hold = world.use("4a")
    world.loader.release(world.use("4b"))
    assert world.ask("activate", "4c") == "device"
    assert "4b" not in world.slots
    other = world.use("4c")
    assert world.ask("activate", "4d") == "host"
    assert not any(slot.closing for slot in world.slots)
    world.loader.release(hold)
    assert world.ask("activate", "4d") == "device"
    world.loader.release(other)


def test_activate_does_not_overtake_those_who_wait() -> None:
    world = World(slots=2, arena_kib=16)
    hold, small = world.use("8a"), world.use("4a")
    waiting = world.loader.hold("12a")
    world.settle()
    world.loader.release(small)
    assert world.ask("activate", "4b") == "host"
    world.loader.release(hold)
    world.settle()
    assert waiting.has_slot
    world.loader.release(waiting)


def test_without_a_host_cache_activate_ends_in_a_slot_or_nowhere() -> None:
    world = World(slots=1, cache_kib=0)
    assert world.ask("activate", "4a") == "device"
    hold = world.use("4a")
    assert world.ask("activate", "4b") == "store"
    assert world.ask("load", "4b") == "store"
    world.loader.release(hold)


def test_a_pin_waits_its_turn_like_a_request() -> None:
    world = World(slots=2)
    first, second = world.use("4a"), world.use("4b")
    call = world.place("pin", "4c")
    world.settle()
    assert call not in world.answers
    world.loader.release(first)
    world.settle()
    assert world.answers[call] == "device"
    assert world.loader.pinned() == ["4c"]
    assert not world.loader.is_held("4c"), "no request holds it"
    world.loader.release(second)
    assert world.ask("unpin", "4c") == "device"
    assert world.loader.pinned() == []
    assert world.ask("unpin", "4c") == "device"


def test_a_pinned_adapter_stays_whatever_else_is_asked_for() -> None:
    world = World(slots=2)
    assert world.ask("pin", "4a") == world.ask("pin", "4a") == "device"
    for name in "bcd":
        world.loader.release(world.use(f"4{name}"))
        assert world.ask("activate", f"8{name}") == "device"
        assert world.loader.residency("4a") == "device"
    assert world.ask("unpin", "4a") == "device"
    assert all(slot.holds == 0 for slot in world.slots)


def test_a_pin_that_fails_pins_nothing() -> None:
    world = World()
    assert world.ask("pin", "0a") == "BLOB_CORRUPT"
    assert world.ask("pin", "99a") == "ADAPTER_TOO_LARGE_FOR_SERVER"
    assert not world.loader.is_pinned("0a")
    assert not world.loader.is_pinned("99a")
    assert not world.loader._waiting


def test_half_of_the_slots_is_the_limit_at_once_and_before_anything_is_read() -> None:
    world = World(slots=4)
    calls = [world.place("pin", f"4{name}") for name in "abc"]
    assert len(world.readers.pending) == 0
    world.settle()
    assert [world.answers[call] for call in calls] == ["device", "device", "TOO_MANY_PINNED"]
    assert world.loader.residency("4c") == "store"
    assert world.ask("unpin", "4a") == "device"
    assert world.ask("pin", "4c") == "device"


def test_half_of_the_arena_is_the_limit_and_requests_do_not_notice() -> None:
    world = World(slots=8, arena_kib=64)
    assert world.ask("pin", "20a") == "device"
    call = world.place("pin", "20b")
    hold = world.loader.hold("20b")
    world.settle()
    assert world.answers[call] == "TOO_MANY_PINNED"
    assert hold.has_slot
    assert world.failed == {}
    world.loader.release(hold)
    assert world.loader.pinned() == ["20a"]
    assert sum(slot.holds for slot in world.slots) == 1


def test_two_pins_of_one_adapter_are_one_and_both_are_answered() -> None:
    world = World()
    calls = [world.place("pin", digest) for digest in ("4a", "4a", "0a", "0a")]
    world.settle()
    assert [world.answers[call] for call in calls] == ["device", "device", "BLOB_CORRUPT", "BLOB_CORRUPT"]
    assert world.ask("unpin", "4a") == "device"
    assert not world.loader.is_pinned("4a")


def test_a_pin_that_is_taken_back_while_it_waits_is_answered() -> None:
    world = World(slots=2)
    holds = [world.use("4a"), world.use("4b")]
    call = world.place("pin", "4c")
    world.settle()
    assert world.ask("unpin", "4c") == "host"
    assert world.answers[call] == "UNPINNED"
    for hold in holds:
        world.loader.release(hold)
    assert all(slot.holds == 0 for slot in world.slots)


def test_unload_refuses_what_is_used_or_pinned() -> None:
    world = World()
    hold = world.use("4a")
    assert world.ask("unload", "4a") == "VERSION_IN_USE"
    world.loader.release(hold)
    waiting = world.loader.hold("4b")
    assert world.ask("unload", "4b") == "VERSION_IN_USE", "it waits to be read"
    world.loader.release(waiting)
    assert world.ask("pin", "4a") == "device"
    assert world.ask("unload", "4a") == "VERSION_PINNED"
    hold = world.use("4a")
    assert world.ask("unpin", "4a") == "device"
    assert world.ask("unload", "4a") == "VERSION_IN_USE"
    world.loader.release(hold)
    assert world.ask("unload", "4a") == "store"
    assert world.ask("unload", "4z") == "store", "never loaded"


def test_unload_frees_slot_and_host_memory_and_is_no_eviction() -> None:
    world = World()
    world.loader.release(world.use("4a"))
    world.ask("load", "4b")
    world.recorder.drain()
    assert world.ask("unload", "4a") == world.ask("unload", "4b") == "store"
    assert (len(world.slots), len(world.cache), world.cache.used_bytes, world.bank.held) == (0, 0, 0, set())
    world.loader.report()
    samples = {(sample.name, *sample.labels): sample.values for sample in world.recorder.drain()}
    assert samples["adamix_resident_adapters", "device"] == samples["adamix_resident_adapters", "host"] == [0.0]
    assert [samples["adamix_slots", state] for state in ("pinned", "idle", "free")] == [[0.0], [0.0], [4.0]]
    assert ("adamix_adapter_evictions_total", "device") not in samples
    assert world.ask("activate", "4a") == "device", "it comes back when asked for"


def test_unloaded_while_it_is_read_it_is_not_kept() -> None:
    world = World()
    load = world.place("load", "4a")
    world.turn()
    unload = world.place("unload", "4a")
    world.settle()
    assert (world.answers[unload], world.answers[load]) == ("store", "store")
    assert len(world.cache) == 0
    world.place("load", "4b")
    world.turn()
    world.place("unload", "4b")
    again = world.place("load", "4b")
    world.settle()
    assert world.answers[again] == "host", "the last word counts"


def test_unload_ends_an_activation_that_is_under_way() -> None:
    world = World()
    activate = world.place("activate", "4a")
    world.turn()
    assert world.ask("unload", "4a") == "store"
    assert world.answers[activate] == "store"
    assert len(world.slots) == 0


def test_whoever_is_shut_out_by_pins_is_told_so_instead_of_waiting_for_ever() -> None:
    world = World(slots=4, arena_kib=16)
    # In the middle of the arena: the one before it has gone when it is pinned.
    first, second = world.use("6a"), world.use("2a")
    world.ask("pin", "2a")
    world.loader.release(first)
    world.loader.release(second)
    hold = world.loader.hold("9a")
    world.settle()
    assert not hold.has_slot
    assert world.failed["9a"].reason == "NO_ROOM_BESIDE_PINNED"
    other = world.use("8a")
    world.loader.release(other)
    world.ask("unpin", "2a")
    world.settle()
    assert hold.has_slot
    world.loader.release(hold)


def test_what_is_pinned_before_it_is_loaded_leaves_the_arena_whole() -> None:
    world = World(slots=4, arena_kib=16)
    world.loader.release(world.use("6a"))
    assert world.ask("pin", "2a") == "device"
    assert world.use("14a").has_slot
