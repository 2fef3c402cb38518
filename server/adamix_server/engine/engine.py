"""The engine: sole owner of the device, one loop, one step after another.

It takes tokenised requests from front ends, brings their adapters, runs them and sends every request exactly one final
event. What runs in a step, and how, is said by `steps.py` and the kind of backbone behind it. It knows digests, never
task names; tenants only as a label to be fair by. No gRPC here.
"""

import time
from collections.abc import Callable, Sequence

from adamix.errors import AdamixError
from adamix_server.access.quotas import MAX_WEIGHT, Shares
from adamix_server.channel.channel import EngineChannel, Peer
from adamix_server.channel.codec import ToEngine
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    EngineLoad,
    Hello,
    Reply,
    Row,
    Submit,
    TenantShare,
    TenantShares,
    Value,
    WireError,
)
from adamix_server.engine.credit import QueueRoom
from adamix_server.engine.desk import Desk
from adamix_server.engine.isolation import Isolation
from adamix_server.engine.request import Request
from adamix_server.engine.residency.claims import Claims
from adamix_server.engine.residency.loader import AdapterLoader, in_use
from adamix_server.engine.residency.orders import Orders
from adamix_server.engine.residency.seats import seating
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.steps import Steps
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder

# With nothing to do the loop still turns this often, to send statistics and to notice deadlines.
_IDLE_S = 0.05
_STATS_EVERY_S = 1.0


class Engine:
    """See the module's docstring.

    Args:
        steps: how its kind of backbone answers.
        hello: what this engine is; sent to each front end that introduces itself.
        rate: at which tokens are computed; what a warm-up has shown.
        on_stats: called about once a second, in the loop.
        front_ends: how many share the queue's room. Each may fill its part of it, and no more.

    Attributes:
        last_step: when the loop last came to the end of a step, or of a part of one that is computed in parts. For
            whoever watches from another thread: with nothing to do there is a step every 50 ms.
    """

    def __init__(
        self,
        channel: EngineChannel,
        steps: Steps,
        adapters: AdapterLoader,
        hello: Hello,
        rate: TokenRate,
        recorder: Recorder,
        on_stats: Callable[[], None],
        front_ends: int = 1,
    ) -> None:
        self._channel = channel
        self._steps = steps
        self._adapters = adapters
        self._scheduler = steps.queue
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
            tokens_per_s=steps.leaving_per_s(rate),
            max_running=hello.limits.max_running,
        )
        self._next_stats = 0.0
        self._largest_batch = 0
        self._largest_batch_before = 0
        # What front ends asked of adapters besides requests.
        self._orders = Orders(adapters)
        self._claims = Claims(lambda digest: adapters.residency(digest) == "store" and not adapters.is_awaited(digest))
        self._isolation = Isolation(channel, hello)
        self._desk = Desk(
            self._scheduler, adapters, steps.runner, self._room, self._isolation, recorder, self._note_progress
        )
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
        """One turn: take in what has arrived, run what can run now, send what is new."""
        began = time.monotonic()
        # Before the loop may go to sleep: holds given back by the last step can have made room for a waiting adapter.
        self._bring(self._seating())
        began = self._receive(began)
        self._bring()
        self._expire()
        step = self._steps.take(self._desk, self._rate)
        for peer, emit in self._desk.parcels(self.hello, self._rate.tokens_per_s):
            if not self._channel.send(peer, emit):
                self._let_go(peer)
        self._note_progress()
        if step is not None:
            self._largest_batch = max(self._largest_batch, step.num_requests)
            self._rate.add(step.num_tokens, self.last_step - began, is_behind=step.is_full)
            self._room.follow(self._steps.leaving_per_s(self._rate))
        self._report()

    def _note_progress(self) -> None:
        self.last_step = time.monotonic()

    def _bring(self, order: Sequence[str] = ()) -> None:
        """Fill slots with what was read; answer orders; end the requests whose adapter cannot be brought."""
        failed = self._adapters.advance(order)
        for answer in self._orders.settle(failed):
            self._reply(*answer.caller, value=answer.residency, error=answer.error)
        for digest, error in failed.items():
            for request in self._scheduler.of(digest):
                self._desk.end(request, error)

    def _seating(self) -> list[str]:
        """The order in which adapters get slots, where those are too few; else it is as it is.

        Makes room for the first of them where another tenant has too many.
        """
        adapters, scheduler = self._adapters, self._scheduler
        if not adapters.is_blocked:
            return []
        order: list[str] = []
        if scheduler.is_shared:
            order, giving_way = seating(
                adapters.waiting(), adapters.held(), scheduler.tenants_of, scheduler.weight_of, self._steps.kept()
            )
            # What is not read yet takes no slot; so nobody gives one up for it.
            if giving_way is not None and adapters.residency(order[0]) == "host":
                for request in scheduler.of(giving_way):
                    adapters.give_way(request.hold)
        return self._steps.arrange(order, adapters)

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
                    self._submit(row, peer, now)
            case Cancel(ids=ids):
                for request_id in ids:
                    if (gone := self._scheduler.find(peer, request_id)) is not None:
                        self._steps.cancel(gone, self._desk)
            case TenantShares(shares=shares):
                # All front ends read the same catalog: whose word is the newest knows best.
                self._scheduler.set_shares({each.tenant: _shares(each) for each in shares})
            case Control(op="hello"):
                self._channel.send(peer, self.hello)
                self._isolation.introduce(peer)
                self._channel.send(peer, self._first_credit(peer))
            case Control():
                self._control(peer, frame)

    def _submit(self, row: Row, peer: Peer, now: float) -> None:
        if (error := self._steps.refusal(row)) is not None:
            self._desk.refuse(Request(row, peer, now, Hold(row.digest, since=now)), error)
            return
        self._claims.note(row.digest, row.tenant)
        request = Request(row, peer, now, self._adapters.hold(row.digest))
        self._steps.add(request)
        if (refusal := self._isolation.error(row.tenant, row.digest)) is not None:
            self._desk.end(request, refusal)

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
                self._isolation.lift(frame.tenant, frame.digest)
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
            queued_inputs=self._steps.num_queued,
            queued_tokens=self._scheduler.queued_tokens,
            running_inputs=max(self._largest_batch, self._largest_batch_before),
            resident_adapters=self._adapters.num_resident,
            slots=self.hello.limits.slots,
            used_pages=self._steps.used_pages,
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

    def _let_go(self, peer: Peer) -> None:
        """End what a front end that is gone had asked for: nobody would cancel its texts, however long they are."""
        for request in [request for request in self._scheduler if request.peer == peer]:
            self._steps.cancel(request, self._desk)

    def _expire(self) -> None:
        for request in self._scheduler.expired(time.monotonic()):
            self._steps.expire(request, self._desk)

    def _report(self) -> None:
        now = time.monotonic()
        if now >= self._next_stats:
            self._next_stats = now + _STATS_EVERY_S
            self._recorder.set("adamix_queue_requests", value=self._steps.num_queued)
            self._recorder.set("adamix_quarantined_versions", value=self._isolation.num_quarantined)
            self._recorder.set("adamix_running_requests", value=self._largest_batch)
            self._recorder.set_tenants("adamix_tenant_queue_tokens", self._scheduler.tokens_by_tenant())
            self._largest_batch_before, self._largest_batch = self._largest_batch, 0
            self._adapters.report()
            self._steps.report(self._recorder)
            self._on_stats()


def _shares(share: TenantShare) -> Shares:
    return Shares(weight=min(max(share.weight, 1), MAX_WEIGHT), service_class=share.service_class)
