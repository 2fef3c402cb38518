"""A decoder's engine without a model: everything is real but the arithmetic, the files and the wire.

`FakeRunner` computes for each token a number that depends on the tenant, the adapter and all tokens up to it, keeps it
in the pages that it was given, and looks at those of all tokens before; so each text is what `text_alone` of
`paged_texts.py` says, or something was computed that should not have been. Some tokens make a step fail.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adamix.errors import DataLoss
from adamix.generation.sampling import Sampling
from adamix_server.channel.codec import FromEngine, ToEngine
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    Event,
    Finish,
    GenerateParams,
    Hello,
    Limits,
    Op,
    Quarantined,
    Reply,
    Row,
    Submit,
)
from adamix_server.engine.decoder_runner import StepResult
from adamix_server.engine.decoder_scheduler import DecoderScheduler
from adamix_server.engine.decoding import Decoding
from adamix_server.engine.engine import Engine
from adamix_server.engine.pages import Pages
from adamix_server.engine.request import Request
from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.residency.slots import Slots
from adamix_server.engine.sampler import Sampler
from adamix_server.engine.sequence import Work
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.manifests import no_model_spec
from adamix_testing.paged_texts import EOS, VOCABULARY, first_state, next_state

ENGINE_ID = "0"
PEER = b"front end"
PAGE_TOKENS = 4
WINDOW = 128
# Tokens of prompts whose step raises, has too little memory, or gives values that are not finite.
BROKEN, TOO_LARGE, NOT_FINITE = range(VOCABULARY, VOCABULARY + 3)


@dataclass(frozen=True)
class Packed:
    digest: str
    num_bytes: int = 256


class AtOnce(Executor):
    """Reads what is to be read before anybody waits for it."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        function(*args, **kwargs)
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class Bank:
    """Knows which adapter is in which slot."""

    def __init__(self) -> None:
        self.digests: dict[int, str] = {0: ""}

    def write(self, slot: int, _offset: int, packed: Packed) -> None:
        assert slot not in self.digests
        self.digests[slot] = packed.digest

    def clear(self, slot: int) -> None:
        del self.digests[slot]


class FakeRunner:
    """See the module's docstring.

    Attributes:
        steps: the works of each call, whether it failed or not.
    """

    def __init__(self, bank: Bank, num_pages: int) -> None:
        self.num_pages = num_pages
        self.steps: list[list[Work]] = []
        self.is_well_without_adapter = True
        self._bank = bank
        self._states = np.zeros((num_pages, PAGE_TOKENS), np.int64)

    def run(self, works: Sequence[Work]) -> StepResult:
        self.steps.append(list(works))
        for work in works:
            request = work.sequence.request
            assert self._bank.digests[request.slot] == request.row.digest
            computed = work.sequence.tokens[work.sequence.num_computed :][: work.num_new]
            if BROKEN in computed:
                raise RuntimeError("a broken token")
            if TOO_LARGE in computed:
                raise MemoryError
        logits: list[NDArray[np.float32]] = []
        outputs = {}
        for number, work in enumerate(works):
            state = self._compute(work)
            if not work.is_complete:
                continue
            is_finite = NOT_FINITE not in work.sequence.tokens
            if work.sequence.params is None:
                outputs[number] = np.full(2, state % VOCABULARY if is_finite else np.nan, np.float32)
            else:
                logits.append(np.eye(VOCABULARY, dtype=np.float32)[state % VOCABULARY] * (1 if is_finite else np.nan))
        return StepResult(torch.from_numpy(np.array(logits, np.float32).reshape(-1, VOCABULARY)), outputs)

    def is_finite_without_adapter(self, _: Request, progress: Callable[[], None]) -> bool:
        progress()
        return self.is_well_without_adapter

    def check_device(self) -> None: ...

    def _compute(self, work: Work) -> int:
        sequence = work.sequence
        state = first_state(sequence.request)
        for at, token in enumerate(sequence.tokens[: sequence.num_computed + work.num_new].tolist()):
            state = next_state(state, token)
            page = sequence.pages[at // PAGE_TOKENS]
            assert 0 < page < self.num_pages
            if at < sequence.num_computed:
                assert self._states[page, at % PAGE_TOKENS] == state, "a page holds something else"
            else:
                self._states[page, at % PAGE_TOKENS] = state
        return state


@dataclass(eq=False)
class Answer:
    """What came back for one row."""

    events: list[Event] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return bool(self.events) and self.events[-1].final

    @property
    def tokens(self) -> list[int]:
        return [int(token) for event in self.events for token in np.frombuffer(event.tokens, "<i4")]

    @property
    def finish(self) -> Finish:
        finish = self.events[-1].finish
        assert finish is not None
        return finish

    @property
    def reason(self) -> str:
        """Of the error that it ended with; empty without."""
        error = self.events[-1].error
        return "" if error is None else error.reason


class FrontEnds:
    """Those that ask an engine whose steps the test makes.

    Attributes:
        engine: to be set by who makes one.
        answers: of each row by its number.
        emits: with whom each was sent to.
        credit: inputs and tokens that were granted, by front end.
        gone: the front ends that no longer get anything.
    """

    engine: Engine

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.emits: list[tuple[bytes, Emit]] = []
        self.credit: dict[bytes, Counter[str]] = {}
        self.quarantined: list[str] = []
        self.gone: set[bytes] = set()
        self.replies: list[Reply] = []
        self._numbers = itertools.count()
        self._inbox: list[tuple[bytes, ToEngine]] = []

    # The engine's end of a channel.

    def poll(self, timeout_s: float) -> list[tuple[bytes, ToEngine]]:
        arrived, self._inbox = self._inbox, []
        return arrived

    def send(self, peer: bytes, frame: FromEngine) -> bool:
        if peer in self.gone:
            return False
        match frame:
            case Emit():
                self.emits.append((peer, frame))
                credit = self.credit.setdefault(peer, Counter())
                credit["inputs"] += frame.credit_inputs
                credit["tokens"] += frame.credit_tokens
                for event in frame.events:
                    answer = self.answers[event.id]
                    assert not answer.is_over, "an event behind the final one"
                    assert event.seq == len(answer.events)
                    answer.events.append(event)
            case Quarantined(versions=versions):
                self.quarantined = [version.digest for version in versions]
            case Credit(inputs=inputs, tokens=tokens):
                self.credit.setdefault(peer, Counter()).update(inputs=inputs, tokens=tokens)
            case Reply():
                self.replies.append(frame)
        return True

    def wake(self) -> None: ...

    def close(self) -> None: ...

    # What front ends do.

    def ask(
        self,
        prompt: Sequence[int],
        max_new_tokens: int | None = 8,
        *,
        digest: str = "a",
        tenant: str = "t",
        deadline: float = 1e18,
        peer: bytes = PEER,
        **params: Any,
    ) -> Answer:
        """Submit a row; without `max_new_tokens` one that is answered by a head."""
        number = next(self._numbers)
        generate = None
        if max_new_tokens is not None:
            params = {"sampling": Sampling(seed=1), "eos_ids": [EOS], **params}
            generate = GenerateParams(max_new_tokens=max_new_tokens, **params)
        row = Row(
            id=number,
            tenant=tenant,
            digest=digest,
            token_ids=np.asarray(prompt, "<i4").tobytes(),
            deadline=deadline,
            generate=generate,
        )
        self.answers[number] = answer = Answer()
        self._inbox.append((peer, Submit(engine_id=ENGINE_ID, generation=1, rows=[row])))
        return answer

    def cancel(self, *answers: Answer, peer: bytes = PEER) -> None:
        ids = [number for number, answer in self.answers.items() if any(answer is each for each in answers)]
        self._inbox.append((peer, Cancel(engine_id=ENGINE_ID, generation=1, ids=ids)))

    def control(self, op: Op, digest: str = "", peer: bytes = PEER) -> Reply | None:
        frame = Control(engine_id=ENGINE_ID, generation=1, call=1, op=op, digest=digest, tenant="t")
        self._inbox.append((peer, frame))
        before = len(self.replies)
        self.step()
        return self.replies[-1] if len(self.replies) > before else None

    def introduce(self, peer: bytes = PEER) -> None:
        self._inbox.append((peer, Control(engine_id=ENGINE_ID, generation=1, call=0, op="hello")))
        self.step()

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.engine.step()

    def until_answered(self, most: int = 3000) -> None:
        """Until everything is answered."""
        for _ in range(most):
            if all(answer.is_over for answer in self.answers.values()) and not self._inbox:
                return
            self.step()
        raise AssertionError("requests are stuck")


class TextEngine(FrontEnds):
    """An engine over fakes, and those that ask it."""

    def __init__(
        self,
        *,
        pages: int = 64,
        max_running: int = 8,
        max_chunk_tokens: int = 8,
        max_batch_tokens: int = 64,
        slots: int = 4,
        resident: Sequence[str] = ("a",),
        is_readable: Callable[[str], bool] = lambda _: True,
    ) -> None:
        super().__init__()
        self.recorder = Recorder()
        self._is_readable = is_readable
        self.pages, self.bank = Pages(pages + 1, PAGE_TOKENS), Bank()
        self.runner = FakeRunner(self.bank, pages + 1)
        limits = Limits(
            max_batch_tokens=max_batch_tokens,
            max_queue_inputs=4096,
            max_queue_tokens=65_536,
            slots=slots,
            pages=pages,
            page_tokens=PAGE_TOKENS,
            max_running=max_running,
        )
        self.scheduler = DecoderScheduler(max_batch_tokens, self.pages, max_running, max_chunk_tokens)
        self.slots = Slots(slots, 1 << 20)
        self.loader = AdapterLoader(
            self.slots,
            self.bank,  # type: ignore[arg-type]
            HostCache(1 << 20),
            self._read,  # type: ignore[arg-type]
            lambda: None,
            self.recorder,
            AtOnce(),
        )
        spec = no_model_spec(max_tokens=WINDOW)
        runner: Any = self.runner
        leaving_rate = TokenRate(1e6, max_batch_tokens)
        self.decoding = Decoding(runner, Sampler(VOCABULARY), self.scheduler, limits, WINDOW, leaving_rate)
        self.engine = Engine(
            self,
            self.decoding,
            self.loader,
            Hello(engine_id=ENGINE_ID, generation=1, spec=spec, limits=limits, dtype="float32", device="cpu"),
            TokenRate(1e6, max_batch_tokens),
            self.recorder,
            lambda: None,
        )
        for digest in resident:
            self.control("activate", digest)
            self.step(2)

    def settle(self) -> None:
        """Until everything is answered; then nothing must be left of it."""
        self.until_answered()
        self.check_empty()

    def check_empty(self) -> None:
        assert not len(self.scheduler)
        assert not self.scheduler.num_running
        assert not self.scheduler._sequences
        assert not self.scheduler._prepared
        assert not self.pages.num_referenced
        assert not any(slot.holds for slot in self.slots)
        assert not self.loader.waiting()

    def samples(self) -> dict[tuple[str, ...], float]:
        """What was recorded since the last call: sums of counters, values of gauges."""
        return {(sample.name, *sample.labels): sample.values[0] for sample in self.recorder.drain() if sample.values}

    def _read(self, digest: str) -> Packed:
        if not self._is_readable(digest):
            raise DataLoss("gone")
        return Packed(digest)
