"""One step of a decoder while it is put together: what goes on, what begins, what gives way. Pure: no torch, no clock.

First each text gets its next token, then prompts get what is left, a chunk a turn. Knows the queues it takes turns in
by their counters alone, and changes none of them: what came out of a step is the scheduler's to enter there.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from adamix_server.engine.fair import MISSES, FairQueue
from adamix_server.engine.precedence import Precedence
from adamix_server.engine.prompt_turns import PromptTurns
from adamix_server.engine.request import Request, Status
from adamix_server.engine.running import Running
from adamix_server.engine.sequence import Sequence, Work

# In how many steps a request within its tenant's share may find too few pages. Then all that came after it gives way;
# not sooner, since what those have computed may have to be computed again.
MOST_PASSED = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a step has at most.

    Attributes:
        tokens: in it, and `text_tokens` once there are some of a text.
        chunk_tokens: of one prompt, beside texts that get their next token.
        adapters: that texts hold at once; None for any number.
        needs_slot: texts begin only if their own hold has a slot.
    """

    tokens: int
    text_tokens: int
    chunk_tokens: int
    adapters: int | None
    needs_slot: bool = False


class Step:
    """See the module's docstring.

    Args:
        sequence_of: the sequence of a request that may begin, or runs.
        is_ready: whether an adapter can be computed with now.
        seatless: tenants that have requests which need no seat.

    Attributes:
        tokens: that it has so far.
        begun: the sequences that run since, and `gave_way` those that run no more. One may be among both.
        lost: adapters of requests that were looked at, and are not ready.
    """

    def __init__(
        self,
        running: Running,
        precedence: Precedence,
        bounds: Bounds,
        sequence_of: Callable[[Request], Sequence],
        is_ready: Callable[[str], bool],
        seatless: Collection[str],
    ) -> None:
        self._running = running
        self._pages = running.pages
        self._precedence = precedence
        self._bounds = bounds
        self._sequence_of = sequence_of
        self._is_ready = is_ready
        self._seatless = seatless
        self.budget = bounds.tokens
        self.tokens = 0
        self.begun: list[Sequence] = []
        self.gave_way: list[Sequence] = []
        self.lost: set[str] = set()
        self._chunk_tokens = self.budget
        self._works: dict[Sequence, int] = {}
        self._digests: set[str] = set()
        self._begun_prompts: list[Sequence] = []
        # Requests that are not looked at again, since they have work or gave way.
        self._seen: set[Request] = set()
        # Tenants for which there is no seat.
        self._standing: set[str] = set()
        # What one was not given because it would have been beyond its share.
        self._has_denied = False
        # So many pages are too many for one that would stay within its share.
        self._scarce_pages = self._pages.count

    def works(self) -> list[Work]:
        """Grouped by adapter, in the order in which the step came to them."""
        by_digest: dict[str, list[Work]] = {}
        for sequence, num_new in self._works.items():
            by_digest.setdefault(sequence.request.row.digest, []).append(Work(sequence, num_new))
        return [work for works in by_digest.values() for work in works]

    def go_on(self) -> tuple[int, int]:
        """Give each text its next token, oldest first. The tokens of interactive texts, and of others."""
        for sequence in tuple(self._running):
            if sequence.num_generated == 0 or sequence.num_pending != 1:
                self._begun_prompts.append(sequence)
            elif sequence.request.status is Status.RUNNING and self._make_room(sequence, 1):
                self._add(sequence, 1)
        if self._works:
            self._chunk_tokens = self._bounds.chunk_tokens
        num_batch = sum(self._precedence.is_batch(sequence.request.row.tenant) for sequence in self._works)
        return self.tokens - num_batch, num_batch

    def fill(self, queue: FairQueue, limit: int) -> int:
        """Give tokens to prompts of one class until the step has `limit`. How many it has then."""
        if queue.is_active:
            self._has_denied = False
            self._by_turn(queue, limit, is_beyond=False)
            if self._has_denied:
                self._by_turn(queue, limit, is_beyond=True)
        return self.tokens

    def _by_turn(self, queue: FairQueue, limit: int, *, is_beyond: bool) -> None:
        """A chunk a turn. `is_beyond`: also to tenants that it brings beyond their share."""
        begun = [each for each in self._begun_prompts if each.request not in self._seen and queue.has(each.request)]
        turns = PromptTurns(queue, begun, self._seatless)
        while (room := min(limit, self.budget) - self.tokens) > 0 and (turn := turns.next()) is not None:
            if turn.begun is not None:
                # It may have given way since.
                given, missed = 0 if turn.begun.request in self._seen else self._chunk(turn.begun, room), 0
            else:
                given, missed = self._look(turn.requests, room, is_beyond=is_beyond)
            turns.end(turn, given, missed)
        turns.close()

    def _look(self, requests: Iterator[Request], room: int, *, is_beyond: bool) -> tuple[int, int]:
        """Begin with one of a tenant's requests. How many tokens it gets, and how many could not begin."""
        missed = 0
        for number, request in enumerate(requests):
            is_text = request.row.generate is not None
            if (
                request.status is Status.QUEUED
                and request not in self._seen
                and not (is_text and request.row.tenant in self._standing)
            ):
                if given := self._admit(request, room, is_beyond=is_beyond):
                    return given, missed
                missed += 1
            if missed >= MISSES or number >= 2 * MISSES:
                break
        return 0, missed

    def _chunk(self, sequence: Sequence, room: int) -> int:
        """Go on with a prompt that is begun. How many of its tokens the step computes."""
        num_new, pages = min(sequence.num_pending, self._chunk_tokens, room), self._pages
        if self._running.is_oldest(sequence):
            self._make_room(sequence, num_new)
        else:
            missing = pages.needed(sequence.num_computed + num_new) - len(sequence.pages)
            if not self._find_pages(sequence.request.row.tenant, missing):
                spare = max(pages.num_available - len(self._running), 0)
                num_new = (len(sequence.pages) + spare) * pages.page_tokens - sequence.num_computed
                if num_new <= 0:
                    return 0
            self._running.grow(sequence, num_new)
        self._add(sequence, num_new)
        return num_new

    def _admit(self, request: Request, room: int, *, is_beyond: bool) -> int:
        """Begin with a request, if it finds a seat and pages. How many tokens the step computes of it."""
        row, running, pages = request.row, self._running, self._pages
        is_text = row.generate is not None
        if is_text and not self._may_sit(request, is_beyond=is_beyond):
            return 0
        if not self._can_take(row.digest):
            return 0
        sequence = self._sequence_of(request)
        # A head may need what is behind every token.
        found = running.found(sequence) if is_text else []
        num_found = len(found) * pages.page_tokens
        if is_text:
            room = min(room, max(self._bounds.text_tokens - self.tokens, self._bounds.chunk_tokens))
        num_new = min(sequence.num_tokens - num_found, self._chunk_tokens, room)
        # What gave way before is to come to its end now: so it has pages for all of it.
        reach = sequence.num_tokens if sequence.preemptions else num_found + num_new
        num_pages = pages.needed(reach) - len(found) + sum(map(pages.is_idle, found))
        if not self._may_have(request, num_pages, found, is_beyond=is_beyond):
            return 0
        if is_text and running.num_seats >= running.max_seats:
            if (giver := self._precedence.seat_giver(row.tenant)) is None:
                return 0
            self._give_way(giver)
        # What it had computed itself before it gave way was not given to it.
        sequence.num_cached = min(sequence.num_cached, num_found) if sequence.preemptions else num_found
        request.status, request.passed = Status.RUNNING, 0
        running.add(sequence, found)
        running.grow(sequence, num_new)
        self.begun.append(sequence)
        self._add(sequence, num_new)
        if is_text:
            self.budget = min(self.budget, max(self._bounds.text_tokens, self.tokens))
        return num_new

    def _may_sit(self, request: Request, *, is_beyond: bool) -> bool:
        """Whether a text may have a seat now, be it one that is free or another's."""
        tenant, digest, running = request.row.tenant, request.row.digest, self._running
        if not self._precedence.can_sit(tenant):
            self._standing.add(tenant)
            return False
        if not is_beyond and not self._precedence.is_within_seats(tenant):
            self._has_denied = True
            return False
        if self._bounds.needs_slot and not request.hold.has_slot:
            return False
        most, held = self._bounds.adapters, running.text_adapters
        return most is None or not digest or digest in held or len(held) < most

    def _may_have(self, request: Request, num_pages: int, found: Collection[int], *, is_beyond: bool) -> bool:
        """Whether a request may have so many pages beside those it has `found`; if so, they are there."""
        tenant = request.row.tenant
        is_within = self._precedence.is_within_pages(tenant, num_pages)
        if not is_within and not is_beyond:
            self._has_denied = True
            return False
        is_scarce = self._scarce_pages < self._pages.count
        if is_scarce and (not is_within or self._precedence.is_batch(tenant)):
            return False
        if num_pages < self._scarce_pages and self._find_pages(tenant, num_pages):
            return True
        if is_within:
            self._scarce_pages = min(self._scarce_pages, num_pages)
            request.passed += 1
            return request.passed > MOST_PASSED and self._take_from_younger(request, num_pages, found)
        return False

    def _can_take(self, digest: str) -> bool:
        """Whether the step may come to need this adapter."""
        if not digest or digest in self._digests:
            return True
        if digest in self.lost or not self._is_ready(digest):
            self.lost.add(digest)
            return False
        return True

    def _find_pages(self, tenant: str, num_pages: int) -> bool:
        """Whether so many pages can be taken, and one is left for each that runs.

        If not, who has more than its share gives way to a tenant that stays within its own.
        """
        if num_pages <= 0:
            return True
        while (lacking := num_pages + len(self._running) - self._pages.num_available) > 0:
            if not self._precedence.is_within_pages(tenant, num_pages):
                return False
            if (giver := self._precedence.page_giver(tenant, lacking)) is None:
                return False
            self._give_way(giver)
        return True

    def _take_from_younger(self, request: Request, num_pages: int, found: Collection[int]) -> bool:
        """Pages for one that was passed over for long, from those that came after it, if they have enough."""
        lacking = num_pages + len(self._running) - self._pages.num_available
        givers: list[Sequence] = []
        for sequence in self._running.younger(request):
            if lacking <= 0:
                break
            givers.append(sequence)
            # What it has found is not to be taken, and what others have, too, does not become free.
            lacking -= 1 + sum(page not in found and not self._pages.is_shared(page) for page in sequence.pages)
        if lacking > 0:
            return False
        for giver in givers:
            self._give_way(giver)
        return True

    def _make_room(self, sequence: Sequence, num_new: int) -> bool:
        """Pages for a sequence that is to go on, whoever gives way; False if it was the sequence itself."""
        while not self._running.grow(sequence, num_new):
            giver = self._precedence.gives_way(sequence)
            self._give_way(giver)
            if giver is sequence:
                return False
        return True

    def _give_way(self, sequence: Sequence) -> None:
        """Take away its work, its seat and its pages."""
        self.tokens -= self._works.pop(sequence, 0)
        self._seen.add(sequence.request)
        self.gave_way.append(sequence)
        self._running.remove(sequence)
        sequence.preemptions += 1
        sequence.request.status = Status.QUEUED

    def _add(self, sequence: Sequence, num_new: int) -> None:
        self._works[sequence] = num_new
        self.tokens += num_new
        self._digests.add(sequence.request.row.digest)
        self._seen.add(sequence.request)
