"""A front end on a made-up clock: the server's rules of room and time, and lines of inputs that wait for room.

What `frontend/inference/feeding.py` does with futures on an event loop is done here with inputs on a clock: a call is
judged as a whole, one of several inputs is fed in, tenants in turn. Texts are as long as they seem to be.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adamix_bench.tenants.simulation.clock import Clock
from adamix_bench.tenants.simulation.engine import Engine, Told
from adamix_bench.tenants.simulation.hardware import Hardware
from adamix_bench.tenants.trace import Outcome
from adamix_server import retry
from adamix_server.access.quotas import Shares
from adamix_server.channel.engine_frames import QueueState, Row
from adamix_server.frontend.inference.deadline import Queue
from adamix_server.frontend.queue_room import Lack, Room
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL, MAX_WAITING_INPUTS


@dataclass(eq=False, slots=True)
class Asked:
    """A call on its way through a front end.

    Attributes:
        inputs: digest and tokens of each.
        deadline: on the clock.
        on_end: called once with how it ended, why, when to come again, and the tokens that were answered.
        left: inputs that have not ended, by their ids.
    """

    tenant: str
    inputs: Sequence[tuple[str, int]]
    deadline: float
    on_end: Callable[[Outcome, str, float, int], None]
    left: set[int]
    answered: int = 0
    is_ended: bool = False

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.inputs)


class FrontEnd:
    """One of those that share an engine. It does one thing at a time."""

    def __init__(
        self,
        name: bytes,
        clock: Clock,
        hardware: Hardware,
        engine: Engine,
        shares: Callable[[str], Shares],
    ) -> None:
        self._name = name
        self._clock = clock
        self._hardware = hardware
        self._engine = engine
        self._shares = shares
        self._room = Room(least_tokens=hardware.max_text_tokens)
        self._waiting = Room(least_tokens=0, least_inputs=MAX_INPUTS_PER_CALL)
        self._waiting.grant(0, MAX_WAITING_INPUTS)
        self._lines: OrderedDict[str, OrderedDict[int, Row]] = OrderedDict()
        self._admitted: dict[str, int] = {}
        self._all_admitted = 0
        self._turns: dict[str, retry.RoomTurns] = {}
        self._queue = QueueState()
        self._queue_time = 0.0
        self._sent_since: dict[str, int] = {}
        self._all_sent_since = 0
        self._ids = itertools.count()
        # What is under way: whose, and its tokens.
        self._held: dict[int, tuple[str, int]] = {}
        self._asked: dict[int, Asked] = {}
        self._outbox: list[Row] = []
        self._calls: deque[Asked] = deque()
        self._is_busy = False

    def ask(self, call: Asked) -> None:
        """A call arrives."""
        self._calls.append(call)
        self._clock.at(call.deadline, lambda: self._expire(call))
        if not self._is_busy:
            self._work()

    def take(self, told: Told) -> None:
        """The engine has said something."""
        for row_id, is_computed in told.ended:
            tenant, tokens = self._held.pop(row_id)
            self._room.end(tenant, tokens)
            if (call := self._asked.pop(row_id, None)) is not None and not call.is_ended:
                self._answer(call, row_id, tokens, is_computed=is_computed)
        self._queue, self._queue_time = told.queue, self._clock.now
        self._sent_since, self._all_sent_since = {}, 0
        self._room.grant(told.tokens, told.inputs)
        self._feed()

    def _work(self) -> None:
        """The oldest call, and after the time that it takes the next."""
        self._is_busy = bool(self._calls)
        if not self._calls:
            return
        call, hardware = self._calls.popleft(), self._hardware
        if call.is_ended:
            self._work()
            return
        refused = self._refusal(call)
        seconds = hardware.refusal_s if refused else hardware.call_s + hardware.input_s * len(call.inputs)
        if refused is None:
            self._submit(call)
        self._clock.after(seconds, lambda: self._done(call, refused))

    def _done(self, call: Asked, refused: tuple[str, float] | None) -> None:
        if refused is not None:
            self._end(call, "refused", *refused)
        self._work()

    def _refusal(self, call: Asked) -> tuple[str, float] | None:
        """Why a call is not let in, and when it may come again."""
        tenant, shares, size, count = call.tenant, self._shares(call.tenant), call.tokens, len(call.inputs)
        queue, left_s = self._queue_of(tenant, shares), call.deadline - self._clock.now
        wait_s = queue.wait_s(size)
        if wait_s is not None and wait_s > left_s:
            return "DEADLINE_UNREACHABLE", retry.within(wait_s - left_s)
        lack: Lack = ""
        if tenant not in self._lines and not (lack := self._room.lack(tenant, shares, size, count)):
            return None
        if count > 1 or tenant in self._lines:
            beside = self._waiting.lack(tenant, shares, 0, count)
            if not beside:
                return None
            lack = lack if lack == "share" else beside
        if lack == "share":
            turns = self._turns.setdefault(tenant, retry.RoomTurns())
            own, ahead, reason = queue.own, queue.ahead, "TENANT_QUEUE_FULL"
        else:
            turns = self._turns.setdefault("", retry.RoomTurns())
            own, ahead, reason = self._room.tokens, self._queue.queued_tokens, "OVERLOADED"
        after_s = turns.next(
            self._clock.now,
            size,
            own=own,
            queued=ahead,
            per_s=self._queue.tokens_per_s,
            batch=self._hardware.max_batch_tokens,
        )
        return reason, after_s

    def _queue_of(self, tenant: str, shares: Shares) -> Queue:
        said = self._queue
        done = said.tokens_per_s * (self._clock.now - self._queue_time)
        left = max(said.queued_tokens - done, 0.0)
        queued = left + self._all_sent_since + self._all_admitted
        own_said = said.tenants.get(tenant)
        if own_said is None:
            own_said = max(self._room.tokens_of(tenant) - self._sent_since.get(tenant, 0), 0)
        own = min(own_said, left) + self._sent_since.get(tenant, 0) + self._admitted.get(tenant, 0)
        of_batch = max(said.batch_tokens - done, 0.0)
        is_batch = shares.service_class == "batch"
        return Queue(
            queued=queued if is_batch else max(queued - of_batch, own),
            before=max(queued - of_batch - own, 0.0) if is_batch else 0.0,
            own=own,
            busy=max(queued, self._room.tokens),
            batch=self._hardware.max_batch_tokens,
            active_weight=said.active_weight + (0 if own_said else shares.weight),
            weight=shares.weight,
            tokens_per_s=said.tokens_per_s,
        )

    def _submit(self, call: Asked) -> None:
        """Send the inputs of a call that was let in, or let them wait."""
        shares, tenant = self._shares(call.tenant), call.tenant
        fits = tenant not in self._lines and not self._room.lack(tenant, shares, call.tokens, len(call.inputs))
        for digest, tokens in call.inputs:
            row_id = next(self._ids)
            row = Row(id=row_id, tenant=tenant, digest=digest, token_ids=bytes(4 * tokens), deadline=call.deadline)
            call.left.add(row_id)
            self._asked[row_id] = call
            if fits or (tenant not in self._lines and not self._room.lack(tenant, shares, tokens)):
                self._send(row, tokens)
            else:
                self._lines.setdefault(tenant, OrderedDict())[row_id] = row
                self._waiting.take(tenant, shares, 0)
                self._admit(tenant, tokens)

    def _send(self, row: Row, tokens: int) -> None:
        tenant = row.tenant
        self._room.take(tenant, self._shares(tenant), tokens)
        self._sent_since[tenant] = self._sent_since.get(tenant, 0) + tokens
        self._all_sent_since += tokens
        self._held[row.id] = tenant, tokens
        if not self._outbox:
            self._clock.after(self._hardware.link_s, self._flush)
        self._outbox.append(row)

    def _flush(self) -> None:
        """One frame for all that was sent meanwhile."""
        rows, self._outbox = self._outbox, []
        self._engine.receive(self._name, rows)

    def _feed(self) -> None:
        """Send what there is room for now, an input of each tenant in turn."""
        turns = deque(self._lines)
        while turns:
            tenant = turns.popleft()
            row = next(iter(self._lines[tenant].values()))
            tokens = len(row.token_ids) // 4
            if self._room.lack(tenant, self._shares(tenant), tokens):
                continue
            self._send(row, tokens)
            self._leave(row)
            if tenant in self._lines:
                self._lines.move_to_end(tenant)
                turns.append(tenant)

    def _leave(self, row: Row) -> None:
        """A row waits here no more."""
        line = self._lines[row.tenant]
        del line[row.id]
        if not line:
            del self._lines[row.tenant]
        self._waiting.put_back(row.tenant, 0)
        self._admit(row.tenant, -(len(row.token_ids) // 4))

    def _admit(self, tenant: str, tokens: int) -> None:
        self._all_admitted += tokens
        self._admitted[tenant] = self._admitted.get(tenant, 0) + tokens

    def _answer(self, call: Asked, row_id: int, tokens: int, *, is_computed: bool) -> None:
        call.left.discard(row_id)
        call.answered += tokens if is_computed else 0
        if not call.left:
            self._end(call, "ok" if call.answered == call.tokens else "expired")

    def _expire(self, call: Asked) -> None:
        """Its time is over: nobody waits for what has not ended."""
        if call.is_ended:
            return
        line = self._lines.get(call.tenant, OrderedDict())
        cancelled = []
        for row_id in sorted(call.left):
            self._asked.pop(row_id, None)
            if (row := line.get(row_id)) is not None:
                self._leave(row)
            else:
                cancelled.append(row_id)
        if cancelled:
            self._clock.after(self._hardware.link_s, lambda: self._engine.receive(self._name, (), cancelled))
        self._end(call, "expired", "DEADLINE_EXCEEDED")

    def _end(self, call: Asked, outcome: Outcome, reason: str = "", after_s: float = 0.0) -> None:
        if not call.is_ended:
            call.is_ended = True
            call.on_end(outcome, reason, after_s, call.answered)
