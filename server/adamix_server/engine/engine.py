"""The engine: sole owner of the device, one loop, one step after another.

It takes tokenised requests from front ends, brings their adapters, forms batches, runs them and sends every request
exactly one final event. It knows digests, never task names; tenants only as a label to be fair by. No gRPC here.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from adamix.errors import AdamixError, Cancelled, DeadlineExceeded, InternalError, Overloaded
from adamix_server.adapters.loader import AdapterLoader, Hold
from adamix_server.adapters.orders import Orders
from adamix_server.channel import EngineChannel, Peer
from adamix_server.engine.model_runner import ModelRunner, PackedRow
from adamix_server.engine.request import Batch, Request
from adamix_server.engine.scheduler import Key, Scheduler
from adamix_server.frames import (
    AnyFrame,
    Cancel,
    Control,
    Credit,
    Emit,
    EngineLoad,
    Event,
    Hello,
    Reply,
    Submit,
    Timing,
    Value,
    WireError,
)
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# With nothing to do the loop still turns this often, to send statistics and to notice deadlines.
_IDLE_S = 0.05
_STATS_EVERY_S = 1.0


@dataclass
class _Finished:
    """The end of one request: its logits or its error."""

    request: Request
    outcome: NDArray[np.float32] | AdamixError
    timing: Timing = field(default_factory=Timing)


class Engine:
    """See the module's docstring.

    Args:
        hello: what this engine is; sent to each front end that introduces itself.
        on_stats: called about once a second, in the loop; also the sign that the loop still turns.
        front_ends: how many share the queue's room. Each may fill its part of it, and no more.
    """

    def __init__(
        self,
        channel: EngineChannel,
        runner: ModelRunner,
        adapters: AdapterLoader,
        scheduler: Scheduler,
        hello: Hello,
        recorder: Recorder,
        on_stats: Callable[[], None],
        front_ends: int = 1,
    ) -> None:
        self._channel = channel
        self._runner = runner
        self._adapters = adapters
        self._scheduler = scheduler
        self.hello = hello
        self._recorder = recorder
        self._on_stats = on_stats
        self._front_ends = front_ends
        self._next_stats = 0.0
        self._largest_batch = 0
        self._largest_batch_before = 0
        self._holds: dict[Key, Hold] = {}
        # What front ends asked of adapters besides requests, by (peer, call).
        self._orders: Orders[tuple[Peer, int]] = Orders(adapters)
        self._draining = False
        self._stopped = False

    def run(self) -> None:
        """Serve until `stop`, or until everything queued is answered after `drain`."""
        try:
            while not self._stopped and not (self._draining and not self._holds):
                self.step()
        finally:
            self._adapters.close()

    def drain(self) -> None:
        """End `run` once nothing is queued. Front ends have stopped submitting by then. From any thread."""
        self._draining = True
        self._channel.wake()

    def stop(self) -> None:
        """End `run` after the running step. From any thread."""
        self._stopped = True
        self._channel.wake()

    def step(self) -> None:
        """One turn: take in what has arrived, run one batch, send what is finished."""
        # Before the loop may go to sleep: holds given back by the last step can have made room for a waiting adapter.
        finished = self._bring_adapters()
        finished += self._receive()
        finished += self._bring_adapters()
        finished += self._expire()
        batch = self._scheduler.next_batch(self._adapters.is_ready)
        if batch is not None:
            finished += self._run(batch)
        self._emit(finished)
        self._report()

    def _receive(self) -> list[_Finished]:
        idle = not any(self._adapters.is_ready(request.digest) for request in self._scheduler)
        finished: list[_Finished] = []
        for peer, frame in self._channel.poll(_IDLE_S if idle else 0.0):
            finished += self._handle(peer, frame)
        return finished

    def _handle(self, peer: Peer, frame: AnyFrame) -> list[_Finished]:
        """Act on one frame; returns the requests that it ends."""
        match frame:
            case Submit(rows=rows):
                now = time.monotonic()
                for row in rows:
                    request = Request(
                        peer, row.id, row.tenant, row.digest, row.token_ids, row.type_ids, row.deadline, now
                    )
                    self._scheduler.add(request)
                    self._holds[request.key] = self._adapters.hold(request.digest)
            case Cancel(ids=ids):
                gone = [self._scheduler.remove((peer, request_id)) for request_id in ids]
                return [_Finished(r, Cancelled("the caller is gone")) for r in gone if r is not None]
            case Control(op="hello"):
                self._channel.send(peer, self.hello)
                self._channel.send(peer, self._first_credit())
            case Control():
                self._control(peer, frame)
            case _:
                log.error("unexpected frame", extra={"frame": type(frame).__name__})
        return []

    def _control(self, peer: Peer, frame: Control) -> None:
        value: Value = None
        match frame.op:
            case "load" | "activate" | "pin" | "unpin" | "unload":
                self._orders.place(frame.op, frame.digest, (peer, frame.call))
                return
            case "pins":
                value = self._adapters.pinned()
            case "residency":
                value = self._adapters.residency(frame.digest)
            case "in_use":
                value = self._adapters.is_held(frame.digest)
            case "report":
                value = self._load()
        self._reply(peer, frame.call, value=value)

    def _first_credit(self) -> Credit:
        """One front end's part of the queue; at least one text of the backbone's full length, or it could send none."""
        limits = self.hello.limits
        return Credit(
            generation=self.hello.generation,
            engine_id=self.hello.engine_id,
            inputs=max(limits.max_queue_inputs // self._front_ends, 1),
            tokens=max(limits.max_queue_tokens // self._front_ends, self.hello.spec.max_tokens),
        )

    def _load(self) -> EngineLoad:
        return EngineLoad(
            queued_inputs=len(self._scheduler),
            queued_tokens=sum(request.num_tokens for request in self._scheduler),
            running_inputs=max(self._largest_batch, self._largest_batch_before),
            resident_adapters=self._adapters.num_resident,
            slots=self.hello.limits.slots,
        )

    def _reply(self, peer: Peer, call: int, *, value: Value = None, error: AdamixError | None = None) -> None:
        reply = Reply(
            generation=self.hello.generation,
            engine_id=self.hello.engine_id,
            call=call,
            value=value,
            error=None if error is None else WireError.of(error),
        )
        self._channel.send(peer, reply)

    def _bring_adapters(self) -> list[_Finished]:
        failed = self._adapters.advance()
        for answer in self._orders.settle(failed):
            self._reply(*answer.caller, value=answer.residency, error=answer.error)
        return [
            _Finished(request, error)
            for digest, error in failed.items()
            for request in self._scheduler.remove_digest(digest)
        ]

    def _expire(self) -> list[_Finished]:
        expired = self._scheduler.remove_expired(time.monotonic())
        return [_Finished(r, DeadlineExceeded("the deadline passed before the request ran")) for r in expired]

    def _run(self, batch: Batch) -> list[_Finished]:
        started = time.monotonic()
        holds = [self._holds[request.key] for request in batch.requests]
        slots = {hold.digest: self._adapters.slot_for(hold) for hold in holds}
        self._largest_batch = max(self._largest_batch, len(batch.requests))
        outcomes = self._compute(batch, slots)
        compute_s = time.monotonic() - started
        self._record(batch, started, compute_s)
        return [
            _Finished(
                request,
                outcome,
                Timing(
                    queue_s=started - request.arrived,
                    load_s=hold.waited_s,
                    compute_s=compute_s,
                    batch_requests=len(batch.requests),
                    batch_tokens=batch.num_tokens,
                    batch_tasks=batch.num_adapters,
                ),
            )
            for request, hold, outcome in zip(batch.requests, holds, outcomes, strict=True)
        ]

    def _compute(self, batch: Batch, slots: dict[str, int]) -> list[NDArray[np.float32] | AdamixError]:
        """Run a batch. If it fails, run its halves, so that only the requests that fail alone fail."""
        try:
            outputs = self._runner.run([_row(request, slots[request.digest]) for request in batch.requests])
            return list(outputs)
        except torch.OutOfMemoryError:
            if len(batch.requests) == 1:
                return [Overloaded("not enough device memory for this request now", retry_after_s=1.0)]
        except Exception:
            # The boundary around one request's computation: whatever is raised inside belongs to that request alone.
            if len(batch.requests) == 1:
                log.exception("a request failed", extra={"request": batch.requests[0].id})
                # Some device errors end the device's context. Then this raises, too: better a new engine than one
                # that answers INTERNAL for ever.
                self._runner.check_device()
                return [InternalError("internal error")]
        first, second = batch.halves()
        return self._compute(first, slots) + self._compute(second, slots)

    def _emit(self, finished: Iterable[_Finished]) -> None:
        """Send every request's final event, one frame per front end, and give back slots and credit."""
        by_peer: dict[Peer, list[_Finished]] = {}
        for end in finished:
            self._adapters.release(self._holds.pop(end.request.key))
            by_peer.setdefault(end.request.peer, []).append(end)
        for peer, ends in by_peer.items():
            emit = Emit(
                generation=self.hello.generation,
                engine_id=self.hello.engine_id,
                events=[_event(end) for end in ends],
                credit_inputs=len(ends),
                credit_tokens=sum(end.request.num_tokens for end in ends),
            )
            self._channel.send(peer, emit)

    def _record(self, batch: Batch, started: float, compute_s: float) -> None:
        self._recorder.observe("adamix_batch_tokens", value=batch.num_tokens)
        self._recorder.observe("adamix_batch_requests", value=len(batch.requests))
        self._recorder.observe("adamix_batch_tasks", value=batch.num_adapters)
        self._recorder.observe("adamix_compute_seconds", value=compute_s)
        for request in batch.requests:
            self._recorder.observe("adamix_queue_seconds", value=started - request.arrived)

    def _report(self) -> None:
        now = time.monotonic()
        if now >= self._next_stats:
            self._next_stats = now + _STATS_EVERY_S
            self._recorder.set("adamix_queue_requests", value=len(self._scheduler))
            self._recorder.set("adamix_running_requests", value=self._largest_batch)
            self._largest_batch_before, self._largest_batch = self._largest_batch, 0
            self._adapters.report()
            self._on_stats()


def _row(request: Request, slot: int) -> PackedRow:
    types = None if request.type_ids is None else np.frombuffer(request.type_ids, "<i4")
    return PackedRow(np.frombuffer(request.token_ids, "<i4"), types, slot)


def _event(end: _Finished) -> Event:
    if isinstance(end.outcome, AdamixError):
        return Event(id=end.request.id, error=WireError.of(end.outcome), timing=end.timing)
    return Event(id=end.request.id, payload=end.outcome.astype("<f4").tobytes(), timing=end.timing)
