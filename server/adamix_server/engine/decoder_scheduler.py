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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from adamix.errors import InternalError
from adamix_server.access.quotas import Shares
from adamix_server.engine.fair import MISSES, MOST_PASSED, FairQueue
from adamix_server.engine.pages import Pages
from adamix_server.engine.request import Request, Status
from adamix_server.engine.request_queue import RequestQueue
from adamix_server.engine.running import Running
from adamix_server.engine.sequence import Sequence, Work
from adamix_server.engine.tenants import LATELY_S

# A step in which texts get their next token has no more tokens than this, or than all of them and one chunk.
STEP_TOKENS = 256
# In how many requests of all tenants together a step looks for one that there is room for.
_MOST_MISSES = 256
# A number that every reader of JSON can say again.
_SEED_BITS = 53


@dataclass(eq=False)
class _Step:
    """One step while it is put together.

    Attributes:
        is_ready: whether an adapter can be computed with now.
        budget: of tokens, and `chunk` those of one prompt.
        weights: of all interactive tenants that want something together, and of all others.
        tokens: of `works`.
        seen: requests that are not looked at again, since they have work, or gave way.
        gave_way: those that did.
        lost: adapters of requests that were looked at, and are not ready.
        has_denied: something would have been beyond its tenant's share.
        is_short: a tenant within its share found too few pages.
        is_closed: nobody new is let in, so that one that was passed over for long finds pages.
    """

    is_ready: Callable[[str], bool]
    budget: int
    weights: tuple[float, float]
    chunk: int = 0
    works: dict[Sequence, int] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    tokens: int = 0
    seen: set[Request] = field(default_factory=set)
    gave_way: list[Sequence] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    has_denied: bool = False
    is_short: bool = False
    is_closed: bool = False

    def add(self, sequence: Sequence, num_new: int) -> None:
        self.works[sequence] = num_new
        self.tokens += num_new
        self.digests.add(sequence.request.row.digest)
        self.seen.add(sequence.request)

    def can_take(self, digest: str) -> bool:
        if digest in self.digests or (digest not in self.lost and self.is_ready(digest)):
            return True
        self.lost.add(digest)
        return False

    def grouped(self) -> list[Work]:
        """Grouped by adapter, in the order in which the step came to them."""
        by_digest: dict[str, list[Work]] = {}
        for sequence, num_new in self.works.items():
            by_digest.setdefault(sequence.request.row.digest, []).append(Work(sequence, num_new))
        return [work for works in by_digest.values() for work in works]


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
        # Each of them gets a token in every step.
        self._running = Running(pages, min(max_running, max_batch_tokens), self._tenants.shares, backbone)
        self._max_chunk_tokens = max_chunk_tokens
        self._step_tokens = min(max_batch_tokens, max(STEP_TOKENS, self._running.max_seats + max_chunk_tokens))
        self._draw_seed = draw_seed
        # Of requests that run or ran, and of those that were looked at when there was no room for them.
        self._sequences: dict[Request, Sequence] = {}
        self._prepared: dict[Request, Sequence] = {}
        self.max_adapters: int | None = None
        self.num_preempted = 0
        self.num_cached = 0

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
        # A tenant that has nothing queued may have a prompt in the middle.
        for request in [sequence.request for sequence in self._running]:
            here, there = self._fair(request.row.tenant), self._fair(request.row.tenant, other=True)
            if there.has(request):
                there.remove(request)
                here.add(request)
        self._sort()

    def add(self, request: Request) -> None:
        """Queue a request. Raises KeyError if its front end has another one of that id here, InternalError if it does
        not fit into all pages together."""
        params = request.row.generate
        if not self.fits(request.num_tokens, 0 if params is None else params.max_new_tokens):
            raise InternalError(f"request {request.row.id} is longer than all pages")
        super().add(request)

    def end(self, request: Request) -> None:
        """A request has its outcome, whether it is queued or runs. Raises InternalError the second time."""
        if request.status is Status.ENDED:
            raise InternalError(f"request {request.row.id} ended twice")
        del self._queue[request.peer, request.row.id]
        self._prepared.pop(request, None)
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
        step = _Step(
            lambda digest: not digest or is_ready(digest),
            budget=self._step_tokens if self._running.num_seats else self._budget(tokens_per_s),
            weights=self._weights(),
        )
        begun = self._go_on(step)
        step.chunk = self._max_chunk_tokens if step.works else step.budget
        self._classes.divide(
            lambda queue, limit, _: self._fill(step, queue, limit),
            step.budget,
            is_interactive_lately=now - self._tenants.interactive_asked <= LATELY_S,
            begun=begun,
        )
        self._settle(step)
        return step.grouped()

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

    def _go_on(self, step: _Step) -> tuple[int, int]:
        """Give each text its next token, oldest first. The tokens of interactive texts, and of others."""
        for sequence in tuple(self._running):
            is_text = sequence.num_generated > 0 and sequence.num_pending == 1
            if is_text and sequence.request.status is Status.RUNNING and self._make_room(step, sequence, 1):
                step.add(sequence, 1)
        num_batch = sum(self._is_batch(sequence.request) for sequence in step.works)
        return step.tokens - num_batch, num_batch

    def _fill(self, step: _Step, queue: FairQueue, limit: int) -> int:
        """Give tokens to prompts of one class until the step has `limit`. How many it has then."""
        if queue.is_active:
            step.has_denied = False
            self._by_turn(step, queue, limit, is_beyond=False)
            if step.has_denied:
                self._by_turn(step, queue, limit, is_beyond=True)
        return step.tokens

    def _by_turn(self, step: _Step, queue: FairQueue, limit: int, *, is_beyond: bool) -> None:
        """Give a chunk a turn. `is_beyond`: to tenants beyond their share."""
        counters = queue.counters
        rests: dict[str, Iterator[Request]] = {}
        misses: dict[str, int] = {}
        all_missed = 0
        while (
            (room := min(limit, step.budget) - step.tokens) > 0
            and all_missed < _MOST_MISSES
            and (counter := counters.first()) is not None
        ):
            tenant = counter.tenant
            if (rest := rests.get(tenant)) is None:
                rest = rests[tenant] = queue.oldest_first(tenant)
            given, missed = 0, misses.get(tenant, 0)
            for request in rest:
                if request in step.seen:
                    continue
                if request.status is Status.RUNNING:
                    given = self._chunk(step, self._sequences[request], room)
                else:
                    given = self._admit(step, request, room, is_beyond=is_beyond)
                if given:
                    break
                missed += 1
                all_missed += 1
                if missed >= MISSES:
                    break
            misses[tenant] = missed
            if given:
                counter.value += given / counter.weight
            else:
                counters.set_aside(counter)
        counters.restore()

    def _chunk(self, step: _Step, sequence: Sequence, room: int) -> int:
        """Go on with a prompt that is begun. How many of its tokens the step computes."""
        num_new, pages = min(sequence.num_pending, step.chunk, room), self.pages
        if self._running.is_oldest(sequence):
            self._make_room(step, sequence, num_new)
        else:
            missing = pages.needed(sequence.num_computed + num_new) - len(sequence.pages)
            if not self._find_pages(step, sequence.request.row.tenant, missing):
                spare = max(pages.num_available - len(self._running), 0)
                num_new = (len(sequence.pages) + spare) * pages.page_tokens - sequence.num_computed
                if num_new <= 0:
                    return 0
            self._running.grow(sequence, num_new)
        step.add(sequence, num_new)
        return num_new

    def _admit(self, step: _Step, request: Request, room: int, *, is_beyond: bool) -> int:
        """Begin with a request, if it finds a seat and pages. How many tokens the step computes of it."""
        row, running = request.row, self._running
        is_text = row.generate is not None
        if step.is_closed or not step.can_take(row.digest):
            return 0
        if is_text and not self._may_sit(step, request, is_beyond=is_beyond):
            return 0
        if (sequence := self._sequences.get(request) or self._prepared.get(request)) is None:
            sequence = self._prepared[request] = Sequence.of(request, self._draw_seed())
        found = running.found(sequence) if is_text else []
        num_found = len(found) * self.pages.page_tokens
        if is_text:
            room = min(room, max(self._step_tokens - step.tokens, self._max_chunk_tokens))
        num_new = min(sequence.num_tokens - num_found, step.chunk, room)
        # What gave way before is to come to its end now: so it has pages for all of it.
        reach = sequence.num_tokens if sequence.preemptions else num_found + num_new
        num_pages = self.pages.needed(reach) - len(found) + sum(map(self.pages.is_idle, found))
        if not self._may_have(step, request, num_pages, is_beyond=is_beyond):
            return 0
        if is_text and running.num_seats >= running.max_seats:
            if (giver := running.seat_giver(row.tenant)) is None:
                return 0
            self._give_way(step, giver)
        self._begin(sequence, found)
        running.grow(sequence, num_new)
        step.add(sequence, num_new)
        if is_text:
            step.budget = min(step.budget, max(self._step_tokens, step.tokens))
        return num_new

    def _may_sit(self, step: _Step, request: Request, *, is_beyond: bool) -> bool:
        """Whether a text may have a seat now, be it one that is free or another's."""
        tenant, running = request.row.tenant, self._running
        share = (
            running.max_seats * self._tenants.shares(tenant).weight / max(step.weights[self._is_batch(request)], 1.0)
        )
        if not is_beyond and running.seats_of(tenant) + 1 > max(share, 1.0):
            step.has_denied = True
            return False
        if self.max_adapters is not None and (digest := request.row.digest) and not running.tenants_of(digest):
            return running.num_adapters < self.max_adapters
        return running.num_seats < running.max_seats or running.seat_giver(tenant) is not None

    def _may_have(self, step: _Step, request: Request, num_pages: int, *, is_beyond: bool) -> bool:
        """Whether a request may have so many pages now; if so, they are there."""
        tenant, running = request.row.tenant, self._running
        is_within = not running.has(tenant) or running.pages_of(tenant) + num_pages <= running.share(
            tenant, step.weights
        )
        if not is_within and not is_beyond:
            step.has_denied = True
            return False
        if step.is_short and (self._is_batch(request) or not is_within):
            return False
        if self._find_pages(step, tenant, num_pages):
            return True
        if is_within:
            step.is_short = True
            request.passed += 1
            step.is_closed = request.passed > MOST_PASSED
        return False

    def _begin(self, sequence: Sequence, found: list[int]) -> None:
        """A sequence runs from now on."""
        request, num_found = sequence.request, len(found) * self.pages.page_tokens
        if self._sequences.setdefault(request, sequence) is sequence and self._prepared.pop(request, None) is not None:
            self._tenants.went(request)
            sequence.num_cached = num_found
            self.num_cached += num_found
        # What it had computed itself before it gave way, it was not given.
        sequence.num_cached = min(sequence.num_cached, num_found)
        request.status, request.passed = Status.RUNNING, 0
        self._running.add(sequence, found)

    def _find_pages(self, step: _Step, tenant: str, num_pages: int) -> bool:
        """Whether so many pages can be taken, and one is left for each that runs.

        If not, who has more than its share gives way to a tenant that stays within its own.
        """
        running, pages = self._running, self.pages
        if num_pages <= 0:
            return True
        while (lacking := num_pages + len(running) - pages.num_available) > 0:
            mine = running.pages_of(tenant)
            if mine and mine + num_pages > running.share(tenant, step.weights):
                return False
            if (giver := running.page_giver(tenant, lacking, step.weights)) is None:
                return False
            self._give_way(step, giver)
        return True

    def _make_room(self, step: _Step, sequence: Sequence, num_new: int) -> bool:
        """Pages for a sequence that is to go on, whoever gives way; False if it was the sequence itself."""
        while not self._running.grow(sequence, num_new):
            giver = self._running.gives_way(sequence, step.weights)
            self._give_way(step, giver)
            if giver is sequence:
                return False
        return True

    def _give_way(self, step: _Step, sequence: Sequence) -> None:
        """Take away its work, its seat and its pages. It waits at the head of its tenant's queue, and keeps its hold."""
        step.tokens -= step.works.pop(sequence, 0)
        step.seen.add(sequence.request)
        step.gave_way.append(sequence)
        self._running.remove(sequence)
        sequence.preemptions += 1
        self.num_preempted += 1
        sequence.request.status = Status.QUEUED

    def _settle(self, step: _Step) -> None:
        """Bring what gave way, and what has lost its adapter, to where it waits."""
        for sequence in step.gave_way:
            if not (fair := self._fair(sequence.request.row.tenant)).has(sequence.request):
                fair.add(sequence.request)
        if step.gave_way:
            self._sort()
        for digest in step.lost:
            self._park(digest)

    def _is_batch(self, request: Request) -> bool:
        return self._tenants.shares(request.row.tenant).service_class == "batch"
