"""The engine on a made-up clock: the server's scheduler, room and rate, over a device that only takes time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from adamix_bench.tenants.simulation.clock import Clock
from adamix_bench.tenants.simulation.hardware import Hardware
from adamix_server.access.quotas import Shares
from adamix_server.channel.engine_frames import QueueState, Row
from adamix_server.engine.credit import QueueRoom
from adamix_server.engine.request import Batch, Request
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.token_rate import TokenRate

# With nothing that could run the loop still turns this often.
_IDLE_S = 0.05


@dataclass(frozen=True)
class Told:
    """What goes back to one front end at the end of a step: rows that ended, credit, and the state of the queue."""

    ended: Sequence[tuple[int, bool]]  # id, whether it was computed
    tokens: int
    inputs: int
    queue: QueueState


class Listener(Protocol):
    """A front end, as its engine sees it."""

    def take(self, told: Told) -> None:
        """At the time at which it arrives."""


class Engine:
    """Batches one after another.

    Args:
        listeners: by their names; to be filled before anything is submitted.
        load_s: of an adapter by its digest; of most, 0.
        on_done: called with the tenant and tokens of everything that was computed, when it is done.
    """

    def __init__(
        self,
        clock: Clock,
        hardware: Hardware,
        listeners: Mapping[bytes, Listener],
        load_s: Callable[[str], float],
        on_done: Callable[[str, int], None],
        front_ends: int,
    ) -> None:
        self._clock = clock
        self._hardware = hardware
        self._listeners = listeners
        self._load_s = load_s
        self._on_done = on_done
        self._scheduler = Scheduler(hardware.max_batch_tokens)
        self._rate = TokenRate(hardware.knee, hardware.max_batch_tokens)
        self._room = QueueRoom(
            max_inputs=hardware.max_queue_inputs,
            max_tokens=hardware.max_queue_tokens,
            max_text_tokens=hardware.max_text_tokens,
            front_ends=front_ends,
            tokens_per_s=hardware.knee,
        )
        self._arrived: list[tuple[bytes, Sequence[Row], Sequence[int]]] = []
        self._ready_at: dict[str, float] = {}
        self._ended: dict[bytes, list[tuple[Request, bool]]] = {}
        self._is_running = False
        self._wakes_at = float("-inf")

    def first_credit(self, peer: bytes) -> Told:
        inputs, tokens = self._room.grant(peer)
        return Told((), tokens, inputs, self._scheduler.state(peer, self._rate.tokens_per_s))

    def set_shares(self, shares: Mapping[str, Shares]) -> None:
        self._scheduler.set_shares(shares)

    def receive(self, peer: bytes, rows: Sequence[Row], cancelled: Sequence[int] = ()) -> None:
        """A frame; it is looked at when the running batch has ended."""
        self._arrived.append((peer, rows, cancelled))
        if not self._is_running:
            self._step()

    def _step(self) -> None:
        now, scheduler = self._clock.now, self._scheduler
        arrived, self._arrived = self._arrived, []
        for peer, rows, cancelled in arrived:
            for row in rows:
                if row.digest not in self._ready_at:
                    self._ready_at[row.digest] = now + self._load_s(row.digest)
                scheduler.add(Request(row, peer, now, Hold(row.digest, since=now)))
            for row_id in cancelled:
                if (request := scheduler.find(peer, row_id)) is not None:
                    self._finish(request, is_computed=False)
        for request in scheduler.expired(now):
            self._finish(request, is_computed=False)
        batch = scheduler.next_batch(self._is_ready, now, self._rate.tokens_per_s)
        if batch is None:
            self._emit()
            if len(scheduler) and self._wakes_at <= now:
                # What waits for its adapter, or for its deadline.
                self._wakes_at = now + _IDLE_S
                self._clock.at(self._wakes_at, self._wake)
            return
        self._is_running = True
        seconds, is_behind = self._hardware.seconds(batch.num_tokens), scheduler.is_behind
        self._clock.after(seconds, lambda: self._end(batch, seconds, is_behind=is_behind))

    def _wake(self) -> None:
        if not self._is_running:
            self._step()

    def _end(self, batch: Batch, seconds: float, *, is_behind: bool) -> None:
        for request in batch.requests:
            self._on_done(request.row.tenant, request.num_tokens)
            self._finish(request, is_computed=True)
        self._is_running = False
        self._emit()
        self._rate.add(batch.num_tokens, seconds, is_behind=is_behind)
        self._room.follow(self._rate.tokens_per_s)
        self._step()

    def _is_ready(self, digest: str) -> bool:
        return self._ready_at[digest] <= self._clock.now

    def _finish(self, request: Request, *, is_computed: bool) -> None:
        self._scheduler.end(request)
        self._ended.setdefault(request.peer, []).append((request, is_computed))

    def _emit(self) -> None:
        ended, self._ended = self._ended, {}
        for peer, requests in ended.items():
            inputs, tokens = self._room.give_back(peer, len(requests), sum(r.num_tokens for r, _ in requests))
            tenants = {request.row.tenant for request, _ in requests}
            told = Told(
                [(request.row.id, is_computed) for request, is_computed in requests],
                tokens,
                inputs,
                self._scheduler.state(peer, self._rate.tokens_per_s, tenants),
            )
            self._send(self._listeners[peer], told)

    def _send(self, listener: Listener, told: Told) -> None:
        self._clock.after(self._hardware.link_s, lambda: listener.take(told))
