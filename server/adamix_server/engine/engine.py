"""The engine: sole owner of the device, one loop, one step after another.

It takes tokenised requests from front ends, brings their adapters, forms batches, runs them and sends every request
exactly one final event. It knows digests, never task names; tenants only as a label to be fair by. No gRPC here.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adamix.errors import AdamixError, Cancelled, DeadlineExceeded, InternalError, Overloaded
from adamix_server import retry
from adamix_server.access.quotas import MAX_WEIGHT, Shares
from adamix_server.channel.channel import EngineChannel, Peer
from adamix_server.channel.codec import ToEngine
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    EngineLoad,
    Event,
    Hello,
    Quarantined,
    QuarantinedVersion,
    Reply,
    Submit,
    TenantShare,
    TenantShares,
    Timing,
    Value,
    WireError,
)
from adamix_server.engine.credit import QueueRoom
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.quarantine import Quarantine
from adamix_server.engine.request import Batch, Request
from adamix_server.engine.residency.claims import Claims
from adamix_server.engine.residency.loader import AdapterLoader, in_use
from adamix_server.engine.residency.orders import Orders
from adamix_server.engine.residency.seats import seating
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# With nothing to do the loop still turns this often, to send statistics and to notice deadlines.
_IDLE_S = 0.05
_STATS_EVERY_S = 1.0


class Engine:
    """See the module's docstring.

    Args:
        hello: what this engine is; sent to each front end that introduces itself.
        rate: what a warm-up has shown of the runner.
        on_stats: called about once a second, in the loop.
        front_ends: how many share the queue's room. Each may fill its part of it, and no more.

    Attributes:
        last_step: when the loop last came to the end of a step, or of a part of a batch that is computed in parts. For
            whoever watches from another thread: with nothing to do there is a step every 50 ms.
    """

    def __init__(
        self,
        channel: EngineChannel,
        runner: ModelRunner,
        adapters: AdapterLoader,
        scheduler: Scheduler,
        hello: Hello,
        rate: TokenRate,
        recorder: Recorder,
        on_stats: Callable[[], None],
        front_ends: int = 1,
    ) -> None:
        self._channel = channel
        self._runner = runner
        self._adapters = adapters
        self._scheduler = scheduler
        self.hello = hello
        self.last_step = time.monotonic()
        self._rate = rate
        self._recorder = recorder
        self._on_stats = on_stats
        self._room = QueueRoom(
            max_inputs=hello.limits.max_queue_inputs,
            max_tokens=hello.limits.max_queue_tokens,
            max_text_tokens=hello.spec.max_tokens,
            front_ends=front_ends,
            tokens_per_s=rate.tokens_per_s,
        )
        self._next_stats = 0.0
        self._largest_batch = 0
        self._largest_batch_before = 0
        # What front ends asked of adapters besides requests.
        self._orders = Orders(adapters)
        self._claims = Claims(lambda digest: adapters.residency(digest) == "store" and not adapters.is_awaited(digest))
        # The requests that have ended in this step, each with its final event.
        self._outbox: dict[Peer, list[tuple[Request, Event]]] = {}
        self._quarantine = Quarantine()
        # The front ends that have introduced themselves.
        self._peers: dict[Peer, None] = {}
        self._draining = False
        self._stopped = False

    def run(self) -> None:
        """Serve until `stop`, or until everything queued is answered after `drain`."""
        try:
            while not self._stopped and not (self._draining and not len(self._scheduler)):
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
        began = time.monotonic()
        # Before the loop may go to sleep: holds given back by the last step can have made room for a waiting adapter.
        self._bring(self._seating())
        began = self._receive(began)
        self._bring()
        self._expire()
        batch = self._scheduler.next_batch(self._adapters.is_ready, time.monotonic(), self._rate.tokens_per_s)
        is_behind = self._scheduler.is_behind
        if batch is not None:
            self._run(batch)
        self._emit()
        self.last_step = time.monotonic()
        if batch is not None:
            self._rate.add(batch.num_tokens, self.last_step - began, is_behind=is_behind)
            self._room.follow(self._rate.tokens_per_s)
        self._report()

    def _bring(self, order: Sequence[str] = ()) -> None:
        """Fill slots with what was read; answer orders; end the requests whose adapter cannot be brought."""
        failed = self._adapters.advance(order)
        for answer in self._orders.settle(failed):
            self._reply(*answer.caller, value=answer.residency, error=answer.error)
        for digest, error in failed.items():
            for request in self._scheduler.of(digest):
                self._finish(request, error)

    def _seating(self) -> list[str]:
        """The order in which adapters get slots, where those are too few for several tenants; else it is as it is.

        Makes room for the first of them where another tenant has too many.
        """
        adapters, scheduler = self._adapters, self._scheduler
        if not adapters.is_blocked or not scheduler.is_shared:
            return []
        order, giving_way = seating(adapters.waiting(), adapters.held(), scheduler.tenants_of, scheduler.weight_of)
        # What is not read yet takes no slot; so nobody gives one up for it.
        if giving_way is not None and adapters.residency(order[0]) == "host":
            for request in scheduler.of(giving_way):
                adapters.give_way(request.hold)
        return order

    def _receive(self, began: float) -> float:
        """Take in what has arrived. When the step began: as given, or when it had something to do at last."""
        is_idle = not self._scheduler.can_run(self._adapters.is_ready)
        frames = self._channel.poll(_IDLE_S if is_idle else 0.0)
        if is_idle:
            began = time.monotonic()
        for peer, frame in frames:
            self._take(peer, frame)
        return began

    def _take(self, peer: Peer, frame: ToEngine) -> None:
        """Act on one frame."""
        match frame:
            case Submit(rows=rows):
                now = time.monotonic()
                for row in rows:
                    self._claims.note(row.digest, row.tenant)
                    request = Request(row, peer, now, self._adapters.hold(row.digest))
                    self._scheduler.add(request)
                    if (refusal := self._quarantine.error(row.tenant, row.digest)) is not None:
                        self._finish(request, refusal)
            case Cancel(ids=ids):
                for request_id in ids:
                    if (gone := self._scheduler.find(peer, request_id)) is not None:
                        self._finish(gone, Cancelled("the caller is gone"))
            case TenantShares(shares=shares):
                # All front ends read the same catalog: whose word is the newest knows best.
                self._scheduler.set_shares({each.tenant: _shares(each) for each in shares})
            case Control(op="hello"):
                self._channel.send(peer, self.hello)
                self._peers[peer] = None
                self._channel.send(peer, self._quarantined())
                self._channel.send(peer, self._first_credit(peer))
            case Control():
                self._control(peer, frame)

    def _control(self, peer: Peer, frame: Control) -> None:
        value: Value = None
        if frame.tenant and frame.op in ("load", "activate", "pin"):
            self._claims.note(frame.digest, frame.tenant)
        match frame.op:
            case "unload" if frame.tenant and self._is_shared(frame):
                # Its requests, too, if it has some; as if nobody else had any.
                error = in_use() if frame.tenant in self._tenants_of(frame.digest) else None
                self._reply(peer, frame.call, value="store", error=error)
                return
            case "load" | "activate" | "pin" | "unpin" | "unload":
                self._orders.place(frame.op, frame.digest, (peer, frame.call))
                return
            case "pins":
                value = self._adapters.pinned()
            case "residencies":
                value = [self._residency(digest, frame.tenant) for digest in frame.digests]
            case "in_use":
                value = [digest for digest in frame.digests if self._adapters.is_held(digest)]
            case "lift":
                if self._quarantine.lift(frame.tenant, frame.digest):
                    self._tell_quarantined()
            case "report":
                value = self._load()
        self._reply(peer, frame.call, value=value)

    def _residency(self, digest: str, tenant: str) -> str:
        """Where an adapter is, for a tenant (empty: for the server)."""
        return self._adapters.residency(digest) if not tenant or self._claims.has(digest, tenant) else "store"

    def _is_shared(self, frame: Control) -> bool:
        """Whether others than the tenant that unloads an adapter need it. The tenant will be told that it is gone."""
        tenants = self._tenants_of(frame.digest)
        if frame.tenant not in tenants:
            self._claims.drop(frame.digest, frame.tenant)
        # What the tenant itself has pinned, its front end refuses to unload.
        return frame.is_kept or self._adapters.is_pinned(frame.digest) or bool(tenants - {frame.tenant})

    def _tenants_of(self, digest: str) -> set[str]:
        """Those that have requests for an adapter."""
        return set(self._scheduler.tenants_of(digest))

    def _first_credit(self, peer: Peer) -> Credit:
        inputs, tokens = self._room.grant(peer)
        return Credit(
            generation=self.hello.generation,
            engine_id=self.hello.engine_id,
            inputs=inputs,
            tokens=tokens,
            queue=self._scheduler.state(peer, self._rate.tokens_per_s),
        )

    def _load(self) -> EngineLoad:
        return EngineLoad(
            queued_inputs=len(self._scheduler),
            queued_tokens=self._scheduler.queued_tokens,
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

    def _expire(self) -> None:
        for request in self._scheduler.expired(time.monotonic()):
            self._finish(request, DeadlineExceeded("the deadline passed before the request ran"))

    def _run(self, batch: Batch) -> None:
        started = time.monotonic()
        for request in batch.requests:
            request.slot = self._adapters.slot_for(request.hold)
        self._largest_batch = max(self._largest_batch, len(batch.requests))
        outcomes = self._compute(batch)
        compute_s = time.monotonic() - started
        for request, outcome in zip(batch.requests, outcomes, strict=True):
            request.timing = Timing(
                queue_s=started - request.arrived,
                load_s=request.hold.waited_s,
                compute_s=compute_s,
                batch_requests=len(batch.requests),
                batch_tokens=batch.num_tokens,
                batch_tasks=batch.num_adapters,
            )
            self._finish(request, outcome)
        self._judge(batch, outcomes)
        self._record(batch, compute_s)

    def _judge(self, batch: Batch, outcomes: Sequence[NDArray[np.float32] | AdamixError]) -> None:
        """Hold failures against their adapters, and end what waits for one that is quarantined since."""
        newly = self._quarantine.judge(batch.requests, outcomes, self._is_well_without_adapter, time.monotonic())
        if not newly:
            return
        for tenant, digest in newly:
            log.error("a version is quarantined", extra={"tenant": tenant, "digest": digest})
            for request in self._scheduler.of(digest):
                if (refusal := self._quarantine.error(request.row.tenant, digest)) is not None:
                    self._finish(request, refusal)
        self._tell_quarantined()

    def _is_well_without_adapter(self, request: Request) -> bool:
        try:
            return self._runner.is_finite_without_adapter(request)
        except Exception:
            # What ends even this is the device's fault, or the backbone's: `_compute` has looked at the device.
            log.exception("a request failed without its adapter, too", extra={"request": request.row.id})
            return False

    def _tell_quarantined(self) -> None:
        told = self._quarantined()
        for peer in self._peers:
            self._channel.send(peer, told)

    def _quarantined(self) -> Quarantined:
        return Quarantined(
            generation=self.hello.generation,
            engine_id=self.hello.engine_id,
            versions=[
                QuarantinedVersion(tenant=tenant, digest=digest, reason=reason)
                for (tenant, digest), reason in self._quarantine.reasons.items()
            ],
        )

    def _compute(self, batch: Batch) -> list[NDArray[np.float32] | AdamixError]:
        """Run a batch. If it fails, run its halves, so that only the requests that fail alone fail."""
        try:
            return list(self._runner.run(batch.requests))
        except Exception as error:
            # The boundary around one request's computation: whatever is raised inside belongs to that request alone.
            if len(batch.requests) == 1 and _is_out_of_memory(error):
                # What takes the memory now is no longer there when all that waits has been computed.
                retry_after_s = self._rate.seconds(self._scheduler.queued_tokens + batch.num_tokens)
                return [Overloaded("not enough memory for this request now", retry_after_s=retry.within(retry_after_s))]
            if len(batch.requests) == 1:
                log.exception("a request failed", extra={"request": batch.requests[0].row.id})
                # Some device errors end the device's context. Then this raises, too: better a new engine than one
                # that answers INTERNAL for ever.
                self._runner.check_device()
                return [InternalError("internal error")]
        # Each part is a step forward.
        self.last_step = time.monotonic()
        first, second = batch.halves()
        return self._compute(first) + self._compute(second)

    def _finish(self, request: Request, outcome: NDArray[np.float32] | AdamixError) -> None:
        """End a request, once: give back its adapter, and put its final event into the outbox."""
        self._scheduler.end(request)
        self._adapters.release(request.hold)
        self._outbox.setdefault(request.peer, []).append((request, _final_event(request, outcome)))

    def _emit(self) -> None:
        """Send what is in the outbox, one frame per front end, with the credit that goes back."""
        outbox, self._outbox = self._outbox, {}
        if not outbox:
            return
        for peer, ended in outbox.items():
            inputs, tokens = self._room.give_back(peer, len(ended), sum(request.num_tokens for request, _ in ended))
            tenants = {request.row.tenant for request, _ in ended}
            emit = Emit(
                generation=self.hello.generation,
                engine_id=self.hello.engine_id,
                events=[event for _, event in ended],
                credit_inputs=inputs,
                credit_tokens=tokens,
                queue=self._scheduler.state(peer, self._rate.tokens_per_s, tenants),
            )
            self._channel.send(peer, emit)

    def _record(self, batch: Batch, compute_s: float) -> None:
        self._recorder.observe("adamix_batch_tokens", value=batch.num_tokens)
        self._recorder.observe("adamix_batch_requests", value=len(batch.requests))
        self._recorder.observe("adamix_batch_tasks", value=batch.num_adapters)
        self._recorder.observe("adamix_compute_seconds", value=compute_s)
        for request in batch.requests:
            self._recorder.observe("adamix_queue_seconds", value=request.timing.queue_s)

    def _report(self) -> None:
        now = time.monotonic()
        if now >= self._next_stats:
            self._next_stats = now + _STATS_EVERY_S
            self._recorder.set("adamix_queue_requests", value=len(self._scheduler))
            self._recorder.set("adamix_quarantined_versions", value=len(self._quarantine.reasons))
            self._recorder.set("adamix_running_requests", value=self._largest_batch)
            self._recorder.set_tenants("adamix_tenant_queue_tokens", self._scheduler.tokens_by_tenant())
            self._largest_batch_before, self._largest_batch = self._largest_batch, 0
            self._adapters.report()
            self._on_stats()


def _shares(share: TenantShare) -> Shares:
    return Shares(weight=min(max(share.weight, 1), MAX_WEIGHT), service_class=share.service_class)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short, of the device or of the host: torch says the second by words alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _final_event(request: Request, outcome: NDArray[np.float32] | AdamixError) -> Event:
    if isinstance(outcome, AdamixError):
        return Event(id=request.row.id, error=WireError.of(outcome), timing=request.timing)
    return Event(id=request.row.id, payload=outcome.astype("<f4").tobytes(), timing=request.timing)
