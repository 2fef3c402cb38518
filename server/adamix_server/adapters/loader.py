"""Brings adapters to the device: store -> host in threads, host -> slot between two steps of the engine.

Whoever wants an adapter takes a `Hold` on its digest and gives it back when done. A hold is pinned as soon as the
adapter has a slot, and from then on the slot cannot be taken away. Slots are given in the order of the wishes, so no
adapter waits for ever. Everything but the reading itself happens in the engine's thread.
"""

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from adamix.errors import AdamixError, InternalError, Overloaded
from adamix_server.adapters.host_cache import HostCache
from adamix_server.adapters.packing import PackedAdapter
from adamix_server.adapters.slot_bank import SlotBank
from adamix_server.adapters.slots import Slots, SlotState
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

_READERS = 2


@dataclass(eq=False)
class Hold:
    """One request's claim on one adapter. `waited_s` is how long it took until the adapter had a slot."""

    digest: str
    since: float
    pinned: bool = False
    waited_s: float = 0.0


class AdapterLoader:
    """Residency of all adapters of one engine.

    Args:
        read: digest -> packed adapter; runs in a thread; raises AdamixError when the blob is missing or unfit.
        wake: called from a thread when a read is over.
        readers: where `read` runs; two threads if not given.
    """

    def __init__(
        self,
        slots: Slots,
        bank: SlotBank,
        cache: HostCache[PackedAdapter],
        read: Callable[[str], PackedAdapter],
        wake: Callable[[], None],
        recorder: Recorder,
        readers: Executor | None = None,
    ) -> None:
        self._slots = slots
        self._bank = bank
        self._cache = cache
        self._read = read
        self._wake = wake
        self._recorder = recorder
        self._readers = readers or ThreadPoolExecutor(_READERS, thread_name_prefix="adapter-reader")
        self._reading: set[str] = set()
        self._finished: queue.SimpleQueue[tuple[str, PackedAdapter | AdamixError]] = queue.SimpleQueue()
        # Holds without a slot, by digest, in the order in which the digests were first asked for.
        self._waiting: dict[str, list[Hold]] = {}
        # Read for somebody who waits; kept apart from the cache, which may drop anything at any time.
        self._arrived: dict[str, PackedAdapter] = {}

    def hold(self, digest: str) -> Hold:
        """Claim an adapter; if it has no slot, the next `advance` starts bringing it."""
        hold = Hold(digest, since=time.monotonic())
        if self._slots.pin(digest) is not None:
            hold.pinned = True
        else:
            self._waiting.setdefault(digest, []).append(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """Give a hold back, pinned or not. Exactly once."""
        if hold.pinned:
            self._slots.unpin(hold.digest)
            hold.pinned = False
        else:
            self._stop_waiting(hold)

    def pin(self, hold: Hold) -> int:
        """The slot of a ready adapter, pinned for this hold until it is released."""
        slot = self._slots.get(hold.digest)
        if slot is None or slot.state is not SlotState.READY:
            raise InternalError(f"adapter {hold.digest[:12]} was scheduled without a slot")
        if not hold.pinned:
            self._stop_waiting(hold)
            self._slots.pin(hold.digest, even_closing=True)
            hold.pinned = True
        return slot.index

    def is_ready(self, digest: str) -> bool:
        slot = self._slots.get(digest)
        return slot is not None and slot.state is SlotState.READY

    def prefetch(self, digest: str) -> None:
        """Start bringing an adapter to host memory, unless it is there or on its way."""
        if digest in self._cache or digest in self._arrived or digest in self._reading:
            return
        self._reading.add(digest)
        self._readers.submit(self._read_one, digest)

    def residency(self, digest: str) -> str:
        """`device`, `host` or `store`."""
        if self.is_ready(digest):
            return "device"
        return "host" if digest in self._cache or digest in self._arrived else "store"

    def is_held(self, digest: str) -> bool:
        """Whether any request holds this adapter."""
        slot = self._slots.get(digest)
        return digest in self._waiting or (slot is not None and slot.pins > 0)

    def is_reading(self, digest: str) -> bool:
        return digest in self._reading

    def advance(self) -> dict[str, AdamixError]:
        """Take in what was read and fill slots. Call between steps.

        Returns:
            the adapters that cannot be brought, with the reason; their holds are still to be released.
        """
        failed = {digest: error for digest, error in self._take_finished().items() if not self.is_ready(digest)}
        has_room = True
        for digest in list(self._waiting):
            packed = self._arrived.get(digest) or self._cache.get(digest)
            if packed is None and digest not in self._slots:
                if digest not in failed and self._may_read_ahead():
                    self.prefetch(digest)
            elif has_room and not self._activate(digest, packed):
                # Those behind wait, too, or a large adapter would never find room; but their files may be read.
                self._slots.close_one()
                has_room = False
        return failed

    def report(self) -> None:
        """Record how many adapters are where."""
        pinned = sum(slot.pins > 0 for slot in self._slots)
        self._recorder.set("adamix_slots", "pinned", value=pinned)
        self._recorder.set("adamix_slots", "idle", value=len(self._slots) - pinned)
        self._recorder.set("adamix_slots", "free", value=self._slots.count - len(self._slots))
        self._recorder.set("adamix_resident_adapters", "device", value=len(self._slots))
        self._recorder.set("adamix_resident_adapters", "host", value=len(self._cache))

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _may_read_ahead(self) -> bool:
        """Whether one more adapter may be read for somebody who waits: as many bytes as the cache may hold, or one."""
        if len(self._reading) >= 2 * _READERS:
            return False
        return not self._arrived or sum(p.num_bytes for p in self._arrived.values()) < self._cache.capacity_bytes

    def _activate(self, digest: str, packed: PackedAdapter | None) -> bool:
        """Give an adapter a slot, or take the one it has again, and pin its holds; False while pins leave no room."""
        slot = self._slots.get(digest)
        if slot is None:
            if packed is None:
                raise InternalError(f"adapter {digest[:12]} is neither in a slot nor in host memory")
            started = time.monotonic()
            slot, evicted = self._slots.reserve(digest, packed.num_bytes)
            for old in evicted:
                self._bank.clear(old.index)
                self._recorder.inc("adamix_adapter_evictions_total", "device")
            if slot is None:
                return False
            self._bank.write(slot.index, slot.offset, packed)
            self._slots.ready(digest)
            self._recorder.inc("adamix_adapter_loads_total", "host", "ok")
            self._recorder.observe("adamix_adapter_load_seconds", "host", value=time.monotonic() - started)
        # A slot that was closing for somebody ahead in the line is wanted again, and nobody ahead waits for room.
        slot.closing = False
        now = time.monotonic()
        for hold in self._waiting.pop(digest):
            self._slots.pin(digest)
            hold.pinned, hold.waited_s = True, now - hold.since
        self._arrived.pop(digest, None)
        return True

    def _take_finished(self) -> dict[str, AdamixError]:
        failed: dict[str, AdamixError] = {}
        while True:
            try:
                digest, result = self._finished.get_nowait()
            except queue.Empty:
                return failed
            self._reading.discard(digest)
            if isinstance(result, AdamixError):
                failed[digest] = result
            elif result.num_bytes > self._slots.capacity_bytes:
                failed[digest] = Overloaded(
                    f"the adapter needs {result.num_bytes} bytes of device memory, the arena has "
                    f"{self._slots.capacity_bytes}; raise --arena-mib",
                    reason="ARENA_TOO_SMALL",
                )
            else:
                evictions = self._cache.evictions
                self._cache.put(digest, result)
                self._recorder.inc("adamix_adapter_evictions_total", "host", by=self._cache.evictions - evictions)
                if digest in self._waiting:
                    self._arrived[digest] = result

    def _read_one(self, digest: str) -> None:
        """In a thread."""
        started = time.monotonic()
        result: PackedAdapter | AdamixError
        try:
            result = self._read(digest)
        except AdamixError as error:
            result = error
        except Exception:
            # Whatever goes wrong in this thread has to reach those who wait, or they wait for ever.
            log.exception("adapter cannot be read", extra={"digest": digest})
            result = InternalError("the adapter cannot be read")
        outcome = "error" if isinstance(result, AdamixError) else "ok"
        self._recorder.inc("adamix_adapter_loads_total", "store", outcome)
        self._recorder.observe("adamix_adapter_load_seconds", "store", value=time.monotonic() - started)
        self._finished.put((digest, result))
        self._wake()

    def _stop_waiting(self, hold: Hold) -> None:
        holds = self._waiting[hold.digest]
        holds.remove(hold)
        if not holds:
            del self._waiting[hold.digest]
            self._arrived.pop(hold.digest, None)
