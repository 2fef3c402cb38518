"""What a decoder's engine computes in its next step. Pure: no torch, no clock, no channel.

A step gives each text that is being generated its next token, and what is left of its budget to prompts, in chunks: to
those that are begun, and to new ones. Prompts take turns by their tenants' counters (`token_counters.py`), a chunk a
turn, within the classes of `service_classes.py`; generated tokens are charged as they come. A request stays in its fair
queue until its prompt is computed.

New texts need a seat, and all need pages (`running.py`). First come the tenants that stay within their share of both;
if nothing is left for one of them, a tenant that has more than its share gives way at once. What nobody within a share
can use goes to the others, by turn again. So a newcomer waits for one step, however long the texts of others are.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from adamix.errors import InternalError
from adamix_server.access.quotas import Shares
from adamix_server.engine.pages import Pages
from adamix_server.engine.precedence import Precedence
from adamix_server.engine.request import Request, Status
from adamix_server.engine.request_queue import RequestQueue
from adamix_server.engine.running import Running
from adamix_server.engine.sequence import Sequence, Work
from adamix_server.engine.step import Bounds, Step
from adamix_server.engine.tenants import LATELY_S

# A step in which texts get their next token has no more tokens than this, or than all of them and one chunk.
TEXT_TOKENS = 256
# A number that every reader of JSON can say again.
_SEED_BITS = 53


class DecoderScheduler(RequestQueue):
    """The requests of a decoder's engine, queued and running, and its next step.

    Args:
        max_batch_tokens: token budget of a step in which no text is generated.
        max_running: texts that are generated at once.
        max_chunk_tokens: of a prompt, in a step in which others get their next token.
        backbone: its fingerprint; what is computed with another one is never found.
        draw_seed: of a text whose request brings none.

    Attributes:
        max_adapters: how many adapters texts may hold at once; None for any number. Those that run go on.
        needs_slot: texts begin only if their own hold has a slot. Else those of an adapter that is always asked for
            would keep one that is closed for others, each holding it for the next.
        num_preempted: how often running sequences gave way.
        num_cached: tokens of prompts that were found computed.
    """

    def __init__(
        self,
        max_batch_tokens: int,
        pages: Pages,
        max_running: int,
        max_chunk_tokens: int,
        *,
        backbone: str = "",
        draw_seed: Callable[[], int] = lambda: secrets.randbits(_SEED_BITS),
    ) -> None:
        super().__init__(max_batch_tokens)
        self.pages = pages
        self._running = Running(pages, max_running, backbone)
        self._max_chunk_tokens = max_chunk_tokens
        self._text_tokens = min(max_batch_tokens, max(TEXT_TOKENS, self._running.max_seats + max_chunk_tokens))
        self._draw_seed = draw_seed
        # Of requests that run or ran, and of those that were looked at when there was no room for them.
        self._sequences: dict[Request, Sequence] = {}
        self._prepared: dict[Request, Sequence] = {}
        # How many requests each tenant has that are answered by a head, and need no seat.
        self._seatless: Counter[str] = Counter()
        self.max_adapters: int | None = None
        self.needs_slot = False
        self.num_preempted = 0
        self.num_cached = 0

    @property
    def running(self) -> Iterator[Sequence]:
        """What runs, oldest first."""
        return iter(self._running)

    @property
    def num_running(self) -> int:
        """Requests that run. `len` counts them, too."""
        return len(self._running)

    @property
    def is_behind(self) -> bool:
        """Whether prompts of interactive requests are still to be computed."""
        return self._classes.interactive.is_active

    @property
    def is_shared(self) -> bool:
        return super().is_shared or len(self._running.tenants | set(self.tokens_by_tenant())) > 1

    def fits(self, num_tokens: int, max_new_tokens: int) -> bool:
        """Whether all pages together hold a text of so many tokens, and its continuation but for the last token."""
        return self.pages.needed(num_tokens + max(max_new_tokens - 1, 0)) < self.pages.count

    def sequence_of(self, request: Request) -> Sequence | None:
        """What there is of a request that runs, or gave way; None if it never ran."""
        return self._sequences.get(request)

    def can_run(self, is_ready: Callable[[str], bool]) -> bool:
        """Whether there is a next step."""
        return len(self._running) > 0 or super().can_run(is_ready)

    def of(self, digest: str) -> list[Request]:
        """The queued requests of one adapter, oldest first; those that gave way are among them."""
        return [request for request in super().of(digest) if request.status is Status.QUEUED]

    def tenants_of(self, digest: str) -> set[str]:
        """Those that have requests of an adapter, queued or running."""
        return {*super().tenants_of(digest), *self._running.tenants_of(digest)}

    def set_shares(self, shares: Mapping[str, Shares]) -> None:
        super().set_shares(shares)
        # A tenant that has nothing queued may have prompts in the middle, and what gave way.
        for request in sorted(self._sequences, key=lambda each: each.number):
            here, there = self._fair(request.row.tenant), self._fair(request.row.tenant, other=True)
            if there.has(request):
                there.remove(request)
                here.add(request)

    def add(self, request: Request) -> None:
        """Queue a request. Raises KeyError if its front end has another one of that id here, InternalError if it does
        not fit into all pages together."""
        params = request.row.generate
        if not self.fits(request.num_tokens, 0 if params is None else params.max_new_tokens):
            raise InternalError(f"request {request.row.id} is longer than all pages")
        super().add(request)
        if params is None:
            self._seatless[request.row.tenant] += 1

    def end(self, request: Request) -> None:
        """A request has its outcome, whether it is queued or runs. Raises InternalError the second time."""
        if request.status is Status.ENDED:
            raise InternalError(f"request {request.row.id} ended twice")
        del self._queue[request.peer, request.row.id]
        self._prepared.pop(request, None)
        if request.row.generate is None:
            self._seatless[request.row.tenant] -= 1
            if not self._seatless[request.row.tenant]:
                del self._seatless[request.row.tenant]
        if (sequence := self._sequences.pop(request, None)) is None:
            self._tenants.went(request)
        elif request.status is Status.RUNNING:
            self._running.remove(sequence)
        if (fair := self._fair(request.row.tenant)).has(request):
            fair.remove(request)
        elif request in (parked := self._parked.get(request.row.digest, {})):
            del parked[request]
            if not parked:
                del self._parked[request.row.digest]
        request.status = Status.ENDED

    def next_step(self, is_ready: Callable[[str], bool], now: float, tokens_per_s: float) -> list[Work]:
        """What is computed next, grouped by adapter; each sequence has pages for its work. Empty if nothing can run.

        To be followed by `take_in`, and an `end` for each request that failed, before the next step.

        Args:
            is_ready: asked of adapters that requests wait for, and of those that the step is about to need.
            now: on the clock by which requests arrived.
            tokens_per_s: measured.
        """
        self._tenants.forget(now)
        self._wake(is_ready)
        precedence = Precedence(self._running, self._tenants.shares, self._counter_of, self._weights())
        tokens = self._text_tokens if self._running.num_seats else self._budget(tokens_per_s)
        bounds = Bounds(tokens, self._text_tokens, self._max_chunk_tokens, self.max_adapters, self.needs_slot)
        step = Step(self._running, precedence, bounds, self._prepare, is_ready, self._seatless)
        self._classes.divide(
            lambda queue, limit, _: step.fill(queue, limit),
            step.budget,
            is_interactive_lately=now - self._tenants.interactive_asked <= LATELY_S,
            begun=step.go_on(),
        )
        self._settle(step)
        return step.works()

    def take_in(self, works: Iterable[Work], drawn: Mapping[Sequence, int]) -> None:
        """So much is computed.

        Args:
            works: of the last step, without those that failed.
            drawn: the next token of those that are complete and are generated. One without has failed: nothing of it is
                found any more, and it is to be ended.
        """
        for work in works:
            sequence, request = work.sequence, work.sequence.request
            is_complete = work.is_complete
            sequence.num_computed += work.num_new
            if is_complete and (fair := self._fair(request.row.tenant)).has(request):
                fair.remove(request)
            if sequence.params is None:
                continue
            if is_complete:
                if (token := drawn.get(sequence)) is None:
                    self._running.withdraw(sequence)
                    continue
                sequence.buffer[sequence.num_tokens] = token
                sequence.num_tokens += 1
                self.charge_generated(request.row.tenant, 1)
            self._running.publish(sequence)

    def _weights(self) -> tuple[float, float]:
        """Of all interactive tenants that want something together, and of all others."""
        interactive, batch = self._classes.interactive.counters, self._classes.batch.counters
        weights = [interactive.active_weight, batch.active_weight]
        for tenant in self._running.tenants:
            shares = self._tenants.shares(tenant)
            is_batch = shares.service_class == "batch"
            counter = (batch if is_batch else interactive).get(tenant)
            if counter is None or not counter.is_active:
                weights[is_batch] += shares.weight
        return weights[0], weights[1]

    def _counter_of(self, tenant: str) -> float:
        counters = self._fair(tenant).counters
        return counters.floor if (counter := counters.get(tenant)) is None else counter.value

    def _prepare(self, request: Request) -> Sequence:
        """The sequence of a request that runs, or may begin to."""
        if (sequence := self._sequences.get(request) or self._prepared.get(request)) is None:
            sequence = self._prepared[request] = Sequence.of(request, self._draw_seed())
        return sequence

    def _settle(self, step: Step) -> None:
        """Enter what has begun, what gave way and what has lost its adapter."""
        for sequence in step.begun:
            request = sequence.request
            if self._prepared.pop(request, None) is not None:
                self._sequences[request] = sequence
                self._tenants.went(request)
                self.num_cached += sequence.num_cached
        for sequence in step.gave_way:
            if not (fair := self._fair(sequence.request.row.tenant)).has(sequence.request):
                fair.add(sequence.request)
        if step.gave_way:
            self.num_preempted += len(step.gave_way)
            self._sort()
        for digest in step.lost:
            self._park(digest)
