"""Brings adapters to the device: store -> host in threads, host -> slot between two steps of the engine.

Whoever wants an adapter takes a `Hold` on its digest and gives it back when done. A hold has the slot as soon as the
adapter does, and from then on the slot cannot be taken away. Slots are given in the order of the wishes, so no adapter
waits for ever. What an operator pins is held by the loader itself, until unpinned. No adapter at all, the empty digest,
is always there and takes no slot. Everything but the reading happens in the engine's thread. Knows neither who asks nor
how they are answered (`orders.py`).
"""

import logging
import queue
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor

from adamix.errors import AdamixError, FailedPrecondition, InternalError, Overloaded
from adamix_server.blobs.packed_size import too_large_for_server
from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.packing import PackedAdapter
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.residency.slots import Hold, Slots, SlotState
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

_READERS = 2


class AdapterLoader:
    """Residency of all adapters of one engine.

    Args:
        read: digest -> packed adapter; runs in a thread; raises AdamixError when the blob is missing or unfit.
        wake: called from a thread when a read is over.
        readers: where `read` runs; two threads if not given.

    Attributes:
        is_blocked: the last `advance` found no slot for an adapter that was read; those behind it wait for that, too.
    """

    def __init__(
        self,
        slots: Slots,
        bank: SlotBank,
        cache: HostCache,
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
        # What operators pinned. One hold for each, so that holds stay balanced.
        self._pinned: dict[str, Hold] = {}
        # To be given a slot if one can be had for nothing; else they end in host memory.
        self._wanted: set[str] = set()
        # Unloaded while they were read.
        self._unwanted: set[str] = set()
        # Those whose slots stay held for long, and those that will hold theirs for long once they have one.
        self._lasting: Collection[str] = ()
        self._will_last: Collection[str] = ()
        self.is_blocked = False

    def hold(self, digest: str) -> Hold:
        """Claim an adapter; if it has no slot, the next `advance` starts bringing it."""
        hold = Hold(digest, since=time.monotonic())
        if not digest or self._slots.hold(digest) is not None:
            hold.has_slot = True
        else:
            self._waiting.setdefault(digest, []).append(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """Give a hold back, with a slot or without. Exactly once."""
        if not hold.digest:
            return
        if hold.has_slot:
            self._slots.release(hold.digest)
            hold.has_slot = False
        else:
            self._stop_waiting(hold)

    def slot_for(self, hold: Hold) -> int:
        """The slot of a ready adapter, which this hold has until it is released; 0 of no adapter."""
        if not hold.digest:
            return 0
        slot = self._slots.get(hold.digest)
        if slot is None or slot.state is not SlotState.READY:
            raise InternalError(f"adapter {hold.digest[:12]} was scheduled without a slot")
        if not hold.has_slot:
            self._stop_waiting(hold)
            self._slots.hold(hold.digest, even_closing=True)
            hold.has_slot = True
        return slot.index

    def pin(self, digest: str) -> None:
        """Hold an adapter until `unpin`. It waits for its slot like a request; `settle_pins` says how that went.

        Raises:
            Overloaded: half of the slots are pinned already (`TOO_MANY_PINNED`).
        """
        if digest not in self._pinned:
            self._slots.check_pinnable(len(self._pinned) + 1)
            self._pinned[digest] = self.hold(digest)

    def unpin(self, digest: str) -> None:
        """Give up what `pin` took; nothing if it took nothing."""
        if (hold := self._pinned.pop(digest, None)) is not None:
            self._slots.unpin(digest)
            self.release(hold)

    def settle_pins(self, failed: Mapping[str, AdamixError]) -> dict[str, AdamixError]:
        """Mark the slots of the pinned adapters as such, and unpin those that cannot stay.

        Args:
            failed: as `advance` returned it.

        Returns:
            what was unpinned, with the reason: it cannot be brought, or its bytes are too many (`TOO_MANY_PINNED`).
        """
        refused: dict[str, AdamixError] = {}
        for digest, hold in list(self._pinned.items()):
            try:
                if hold.has_slot:
                    self._slots.pin(digest)
                elif digest in failed:
                    raise failed[digest]
            except AdamixError as error:
                self.unpin(digest)
                refused[digest] = error
        return refused

    def is_pinned(self, digest: str) -> bool:
        """Whether `pin` holds it, with a slot or still without."""
        return digest in self._pinned

    def pinned(self) -> list[str]:
        """The adapters that are pinned in their slots now."""
        return [slot.digest for slot in self._slots if slot.pinned]

    def has_pinned_slot(self, digest: str) -> bool:
        slot = self._slots.get(digest)
        return slot is not None and slot.pinned

    def activate(self, digest: str) -> None:
        """Bring an adapter to host memory, and into a slot if none has to be closed for it; `is_wanted` until then."""
        if self._slots.hold(digest) is not None:
            # It has one. The hold only marks it as just used.
            self._slots.release(digest)
        else:
            self._wanted.add(digest)

    def is_wanted(self, digest: str) -> bool:
        return digest in self._wanted

    def unload(self, digest: str) -> None:
        """Take an adapter out of its slot and out of host memory.

        Raises:
            FailedPrecondition: it is pinned (`VERSION_PINNED`), or a request holds it (`VERSION_IN_USE`).
        """
        if digest in self._pinned:
            raise FailedPrecondition(
                "the version is pinned, here or by another task with the same bytes; unpin it first",
                reason="VERSION_PINNED",
            )
        if self.is_held(digest):
            raise in_use()
        self._wanted.discard(digest)
        if digest in self._reading:
            self._unwanted.add(digest)
        if (slot := self._slots.get(digest)) is not None:
            self._slots.drop(digest)
            self._bank.clear(slot.index)
        self._cache.discard(digest)
        self._arrived.pop(digest, None)

    def is_ready(self, digest: str) -> bool:
        if not digest:
            return True
        slot = self._slots.get(digest)
        return slot is not None and slot.state is SlotState.READY

    def prefetch(self, digest: str) -> None:
        """Start bringing an adapter to host memory, unless it is there or on its way."""
        self._unwanted.discard(digest)
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
        """Whether any request holds this adapter. That it is pinned does not count."""
        slot, pin = self._slots.get(digest), self._pinned.get(digest)
        holds = 0 if slot is None else slot.holds
        return holds > (pin is not None and pin.has_slot) or any(h is not pin for h in self._waiting.get(digest, ()))

    @property
    def num_resident(self) -> int:
        """How many adapters have a slot."""
        return len(self._slots)

    def is_reading(self, digest: str) -> bool:
        return digest in self._reading

    def is_awaited(self, digest: str) -> bool:
        """Whether it is read now, or anybody waits for it."""
        return digest in self._reading or digest in self._waiting or digest in self._wanted

    def waiting(self) -> list[str]:
        """The adapters that somebody waits for, in the order in which they were first asked for."""
        return list(self._waiting)

    def held(self) -> list[str]:
        """The adapters whose slots requests hold, but for those that are pinned; least recently used first."""
        return [slot.digest for slot in self._slots if slot.holds and slot.digest not in self._pinned]

    def expect_to_last(self, held: Collection[str], wanted: Collection[str]) -> None:
        """Some adapters are held for long, and some that are waited for will be.

        To close the slots of the first makes no room soon, so for others than the second they are closed last. For the
        second they are closed first: those wait for the end of the first, also where they have a slot already.
        """
        self._lasting, self._will_last = held, wanted

    def give_way(self, hold: Hold) -> None:
        """Let a hold wait for a slot again. One that nobody holds any more is the first to be evicted."""
        if hold.has_slot and hold.digest:
            self._slots.release(hold.digest)
            hold.has_slot, hold.since = False, time.monotonic()
            self._waiting.setdefault(hold.digest, []).append(hold)

    def advance(self, order: Iterable[str] = ()) -> dict[str, AdamixError]:
        """Take in what was read and fill slots. Call between steps.

        Args:
            order: in which the adapters that are waited for get slots, if not in that in which they were asked for.

        Returns:
            the adapters that cannot be brought, with the reason; their holds are still to be released.
        """
        failed = {digest: error for digest, error in self._take_finished().items() if not self.is_ready(digest)}
        has_room = True
        for digest in order or list(self._waiting):
            packed = self._arrived.get(digest) or self._cache.get(digest)
            if packed is None and digest not in self._slots:
                if digest not in failed and self._may_read_ahead():
                    self.prefetch(digest)
            elif has_room and self._is_shut_out(digest, packed):
                failed[digest] = Overloaded(
                    "the version's device memory must be in one piece, and the pinned versions leave none so large; "
                    "unpin one, or raise --arena-mib",
                    reason="NO_ROOM_BESIDE_PINNED",
                )
            elif has_room and not self._activate(digest, packed):
                # Those behind wait, too, or a large adapter would never find room; but their files may be read.
                self._slots.close_one(self._spared(digest))
                has_room = False
        self.is_blocked = not has_room
        self._try_wanted(failed, has_room=has_room)
        return failed

    def report(self) -> None:
        """Record how many adapters are where."""
        held = sum(slot.holds > 0 for slot in self._slots)
        # The label's word is older than the difference between what requests hold and what operators pin.
        self._recorder.set("adamix_slots", "pinned", value=held)
        self._recorder.set("adamix_slots", "idle", value=len(self._slots) - held)
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

    def _spared(self, digest: str) -> Collection[str]:
        """Whose slots are closed last for an adapter that waits."""
        if digest in self._will_last:
            return {slot.digest for slot in self._slots} - set(self._lasting)
        return self._lasting

    def _is_shut_out(self, digest: str, packed: PackedAdapter | None) -> bool:
        """Whether the pinned adapters lie so that this one would wait for ever."""
        if packed is None or digest in self._slots or not self._pinned:
            return False
        return not self._slots.can_have_room(packed.num_bytes)

    def _try_wanted(self, failed: Mapping[str, AdamixError], *, has_room: bool) -> None:
        """Give slots to adapters that nobody waits for, but nobody's who waits."""
        for digest in list(self._wanted):
            packed = self._arrived.get(digest) or self._cache.get(digest)
            is_ready = self.is_ready(digest)
            if packed is None and not is_ready and digest not in failed:
                self.prefetch(digest)
                continue
            self._wanted.discard(digest)
            if packed is not None and not is_ready and has_room and self._slots.has_room(packed.num_bytes):
                self._activate(digest, packed)
            if digest not in self._waiting:
                self._arrived.pop(digest, None)

    def _activate(self, digest: str, packed: PackedAdapter | None) -> bool:
        """Give an adapter a slot, or take the one it has again, for all its holds; False while others leave no room."""
        slot = self._slots.get(digest)
        if slot is None:
            if packed is None:
                raise InternalError(f"adapter {digest[:12]} is neither in a slot nor in host memory")
            started = time.monotonic()
            slot, evicted = self._slots.reserve(digest, packed.num_bytes, at_end=digest in self._pinned)
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
        for hold in self._waiting.pop(digest, ()):
            self._slots.hold(digest)
            hold.has_slot, hold.waited_s = True, now - hold.since
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
                failed[digest] = too_large_for_server(result.num_bytes, self._slots.capacity_bytes)
            else:
                if digest not in self._unwanted:
                    evictions = self._cache.evictions
                    self._cache.put(digest, result)
                    self._recorder.inc("adamix_adapter_evictions_total", "host", by=self._cache.evictions - evictions)
                if digest in self._waiting or digest in self._wanted:
                    self._arrived[digest] = result
            self._unwanted.discard(digest)

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
            if hold.digest not in self._wanted:
                self._arrived.pop(hold.digest, None)


def in_use() -> FailedPrecondition:
    """Why an adapter is not unloaded that requests hold."""
    return FailedPrecondition(
        "requests that run now use this version; unload it when they have ended", reason="VERSION_IN_USE"
    )
