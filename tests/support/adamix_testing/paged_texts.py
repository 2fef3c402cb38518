"""A decoder without a model: it computes what a scheduler says, checks that it may, and draws tokens of its own.

What a token's keys and values would be is here a number that depends on the tenant, the adapter and all tokens up to
it. `FakeDecoder` writes it into the pages that the scheduler gave, and looks at those of all tokens before; so a page
that was given away too early, or found by the wrong request, is noticed by whoever reads it. The next token follows
from that number alone: every text is what `text_alone` says, whatever happened on the way.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from adamix.generation.sampling import Sampling
from adamix_server.channel.engine_frames import GenerateParams, Row
from adamix_server.engine.decoder_scheduler import DecoderScheduler
from adamix_server.engine.pages import Pages
from adamix_server.engine.request import Request, Status
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.sequence import Sequence as Text
from adamix_server.engine.sequence import Work, ending

PEER = b"peer"
EOS = 7
VOCABULARY = 97


def text_request(
    number: int,
    prompt: Sequence[int],
    max_new_tokens: int | None = 8,
    *,
    tenant: str = "t",
    digest: str = "",
    deadline: float = 1e9,
    arrived: float = 0.0,
    eos_ids: Sequence[int] = (EOS,),
) -> Request:
    """A request whose prompt is gone on with, or (without `max_new_tokens`) answered by a head."""
    generate = None
    if max_new_tokens is not None:
        generate = GenerateParams(max_new_tokens=max_new_tokens, sampling=Sampling(seed=1), eos_ids=list(eos_ids))
    row = Row(
        id=number,
        tenant=tenant,
        digest=digest,
        token_ids=np.asarray(prompt, "<i4").tobytes(),
        deadline=deadline,
        generate=generate,
    )
    return Request(row, PEER, arrived=arrived, hold=Hold(digest, since=arrived))


def text_alone(request: Request) -> list[int]:
    """The tokens of its text, computed by nobody's help. With the one that ends it."""
    params, state, drawn = request.row.generate, first_state(request), list[int]()
    assert params is not None
    for token in request.token_ids:
        state = next_state(state, int(token))
    while len(drawn) < params.max_new_tokens:
        drawn.append(state % VOCABULARY)
        if drawn[-1] in params.eos_ids:
            break
        state = next_state(state, drawn[-1])
    return drawn


class FakeDecoder:
    """Runs a scheduler, step by step.

    Args:
        is_thorough: look at every token of the context, which takes long where there are many.

    Attributes:
        texts: the tokens of each request that was generated and has ended, with the one that ended it.
        answered: the requests that were answered by a head.
        first_step: the number of the step that gave each request its first token, or its answer.
        given: tokens of prompts that were computed for each tenant, and twice those that were generated.
        steps: how many there were.
    """

    def __init__(
        self,
        pages: int = 64,
        page_tokens: int = 4,
        *,
        budget: int = 64,
        max_running: int = 8,
        chunk: int = 8,
        is_ready: Callable[[str], bool] = lambda _: True,
        is_thorough: bool = True,
    ) -> None:
        self.pages = Pages(pages, page_tokens)
        self.scheduler = DecoderScheduler(budget, self.pages, max_running, chunk)
        self.is_ready = is_ready
        self.is_thorough = is_thorough
        self.texts: dict[int, list[int]] = {}
        self.answered: set[int] = set()
        self.first_step: dict[int, int] = {}
        self.given: Counter[str] = Counter()
        self.steps = 0
        self.now = 0.0
        self._states = np.zeros((pages, page_tokens), np.int64)

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)

    def step(self) -> list[Work]:
        """One step; ends what has come to its end."""
        works = self.scheduler.next_step(self.is_ready, self.now, 1e6)
        if self.is_thorough:
            self.check(works)
        self.steps += 1
        drawn: dict[Text, int] = {}
        for work in works:
            state = self._compute(work)
            is_text = work.sequence.params is not None
            if work.is_complete and is_text:
                drawn[work.sequence] = state % VOCABULARY
            is_prompt = work.num_new > 1 or not work.sequence.num_generated
            self.given[work.sequence.request.row.tenant] += is_prompt * work.num_new + 2 * (work.sequence in drawn)
        complete = [work.sequence for work in works if work.is_complete]
        self.scheduler.take_in(works, drawn)
        for sequence in complete:
            request = sequence.request
            self.first_step.setdefault(request.row.id, self.steps)
            if sequence.params is None:
                self.answered.add(request.row.id)
                self.scheduler.end(request)
            elif ending(sequence) is not None:
                self.texts[request.row.id] = sequence.generated.tolist()
                self.scheduler.end(request)
        return works

    def run(self, most: int = 10_000) -> None:
        """Until nothing is left."""
        for _ in range(most):
            if not len(self.scheduler):
                return
            assert self.step(), "nothing runs, and something is left"
        raise AssertionError("requests are stuck")

    def check(self, works: Iterable[Work]) -> None:
        """What must hold before every step is computed."""
        works, scheduler, pages = list(works), self.scheduler, self.pages
        running = [request for request in scheduler if request.status is Status.RUNNING]
        sequences = [sequence for request in running if (sequence := scheduler.sequence_of(request)) is not None]
        assert len(sequences) == len(running) == scheduler.num_running
        assert len({id(work.sequence) for work in works}) == len(works)
        assert {id(work.sequence) for work in works} <= {id(sequence) for sequence in sequences}
        assert sum(sequence.params is not None for sequence in sequences) <= scheduler._running.max_seats
        references = Counter(page for sequence in sequences for page in sequence.pages)
        assert dict(references) == {page: count for page, count in enumerate(pages._references) if count}
        assert 0 not in references
        assert pages.num_free + pages.num_idle + pages.num_referenced == pages.count - 1
        for tenant in {sequence.request.row.tenant for sequence in sequences}:
            own = {page for s in sequences if s.request.row.tenant == tenant for page in s.pages}
            assert scheduler._running.page_counts[tenant] == len(own)
        for work in works:
            assert work.num_new > 0
            assert work.num_new <= work.sequence.num_pending
            assert pages.needed(work.sequence.num_computed + work.num_new) <= len(work.sequence.pages)
        digests = [work.sequence.request.row.digest for work in works]
        assert len({*digests}) == sum(before != after for before, after in zip([None, *digests], digests, strict=False))

    def _compute(self, work: Work) -> int:
        """The state behind the last of its tokens."""
        sequence, size = work.sequence, self.pages.page_tokens
        if not self.is_thorough:
            return 0
        state = first_state(sequence.request)
        for at, token in enumerate(map(int, sequence.tokens[: sequence.num_computed + work.num_new])):
            state = next_state(state, token)
            page = sequence.pages[at // size]
            if at < sequence.num_computed:
                assert self._states[page, at % size] == state, "a page holds something else"
            else:
                self._states[page, at % size] = state
        return state


def first_state(request: Request) -> int:
    return zlib.crc32(f"{request.row.tenant}|{request.row.digest}".encode())


def next_state(state: int, token: int) -> int:
    return (state * 6_364_136_223_846_793_005 + token * 1_442_695_040_888_963_407 + 12_345) % (1 << 61)
