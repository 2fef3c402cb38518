"""Steps of a decoder: texts that run get a token each, prompts are computed in chunks beside them.

A step is planned (`decoder_scheduler.py`), computed (`decoder_runner.py`), drawn from (`sampler.py`) and taken in; what
is new of each text goes to its front end at once. What fails in it ends alone, with its pages.
"""

import time
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from adamix.answers import output_not_finite
from adamix.errors import AdamixError, Cancelled, DeadlineExceeded, FailedPrecondition, InvalidRequest, Overloaded
from adamix_server.channel.engine_frames import Finish, Limits, Row, Timing
from adamix_server.engine.decoder_runner import DecoderRunner
from adamix_server.engine.decoder_scheduler import DecoderScheduler
from adamix_server.engine.desk import Desk
from adamix_server.engine.request import NOT_RUN, Request
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.sampler import Drawn, Sampler
from adamix_server.engine.sequence import Sequence as TokenSequence
from adamix_server.engine.sequence import Work, ending
from adamix_server.engine.steps import Step, compute, failed_alone
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder

_NOT_FINITE = output_not_finite()
_Ending = Literal["eos", "stop", "length"]
# What a step gave a work: a token, the output of its head, an error; None while its prompt is not complete.
_Given = Drawn | NDArray[np.float32] | AdamixError | None


class Decoding:
    """See `steps.Steps`.

    Args:
        limits: as front ends know them.
        window: tokens that a text may have, with its prompt.
        leaving_rate: at which the tokens of prompts leave the queue while it has some. They are computed much faster,
            but have to wait until texts before them have ended.
    """

    def __init__(
        self,
        runner: DecoderRunner,
        sampler: Sampler,
        scheduler: DecoderScheduler,
        limits: Limits,
        window: int,
        leaving_rate: TokenRate,
    ) -> None:
        self.runner = runner
        self.queue = scheduler
        self._sampler = sampler
        self._limits = limits
        self._window = window
        self._leaving_rate = leaving_rate
        # Of texts, while others wait for a slot.
        self._most_adapters = max(limits.slots // 2, 1)
        self._num_preempted = 0

    @property
    def num_queued(self) -> int:
        return len(self.queue) - self.queue.num_running

    @property
    def used_pages(self) -> int:
        return self.queue.pages.num_referenced

    def refusal(self, row: Row) -> AdamixError | None:
        num_prompt = len(row.token_ids) // 4
        num_new = 0 if row.generate is None else row.generate.max_new_tokens
        if not num_prompt:
            return InvalidRequest("there is no token to begin with", reason="TEXT_EMPTY")
        if row.generate is None and not row.digest:
            return FailedPrecondition("the backbone alone has no head that could answer")
        if num_prompt + num_new > self._window:
            return InvalidRequest(
                f"{num_prompt} tokens, and {num_new} new ones, are over the backbone's {self._window}",
                reason="PROMPT_TOO_LONG",
            )
        if num_prompt + num_new > (most := self._limits.pages * self._limits.page_tokens):
            # No hint when to try again: waiting does not help.
            return Overloaded(
                f"{num_prompt} tokens, and {num_new} new ones, are over the {most} that this server can keep; ask for "
                "fewer, or raise --kv-bytes",
                reason="KV_TOO_SMALL",
            )
        return None

    def add(self, request: Request) -> None:
        self.queue.add(request)

    def cancel(self, request: Request, desk: Desk) -> None:
        if (sequence := self._generated(request)) is not None:
            desk.end_text(request, _finish(sequence, "cancelled"))
        else:
            desk.end(request, Cancelled("the caller is gone"))

    def expire(self, request: Request, desk: Desk) -> None:
        when = "before the request ran" if self._generated(request) is None else "while the text was generated"
        desk.end(request, DeadlineExceeded(f"the deadline passed {when}"))

    def kept(self) -> Collection[str]:
        return {sequence.request.row.digest for sequence in self.queue.running}

    def arrange(self, order: list[str], adapters: AdapterLoader, /) -> list[str]:
        if len(self._texts()) < self._most_adapters:
            return order
        waiting, held = order or adapters.waiting(), adapters.held()
        # With a slot they would have to wait all the same.
        texts = {digest for digest in (*waiting, *held) if self._is_for_texts(digest)}
        order = sorted(waiting, key=texts.__contains__)
        if order and order[0] not in texts and adapters.residency(order[0]) == "host":
            kept = self.kept()
            if (giving_way := next((each for each in held if each in texts and each not in kept), None)) is not None:
                for request in self.queue.of(giving_way):
                    adapters.give_way(request.hold)
        return order

    def take(self, desk: Desk, rate: TokenRate) -> Step | None:
        adapters = desk.adapters
        waiting = adapters.waiting() if adapters.is_blocked else ()
        adapters.expect_to_last(self._texts(), set(filter(self._is_for_texts, waiting)))
        # A text keeps its slot until it is complete, so texts leave some slots to others that wait for one.
        self.queue.max_adapters = self._most_adapters if adapters.is_blocked else None
        self.queue.needs_slot = adapters.is_blocked
        works = self.queue.next_step(adapters.is_ready, time.monotonic(), rate.tokens_per_s)
        if not works:
            return None
        is_behind = self.queue.is_behind
        started = time.monotonic()
        for work in works:
            request = work.sequence.request
            request.slot = adapters.slot_for(request.hold)
            if request.timing is NOT_RUN:
                request.timing = Timing(queue_s=started - request.arrived, load_s=request.hold.waited_s)
                desk.recorder.observe("adamix_queue_seconds", value=request.timing.queue_s)
        given = self._compute(works, desk, rate)
        ended = time.monotonic()
        batch = Timing(
            batch_requests=len(works),
            batch_tokens=sum(work.num_new for work in works),
            batch_tasks=len({work.sequence.request.row.digest for work in works}),
        )
        num_left = self._hand_out(works, given, desk, batch, ended)
        self._leaving_rate.add(num_left, ended - started, is_behind=is_behind)
        _record(desk.recorder, batch, ended - started)
        # Few tokens say nothing of how fast many are: that others wait for the end of texts makes no difference.
        return Step(len(works), batch.batch_tokens, is_full=False)

    def leaving_per_s(self, _rate: TokenRate, /) -> float:
        return self._leaving_rate.tokens_per_s

    def report(self, recorder: Recorder) -> None:
        pages = self.queue.pages
        recorder.set("adamix_kv_pages", "used", value=pages.num_referenced)
        recorder.set("adamix_kv_pages", "idle", value=pages.num_idle)
        recorder.set("adamix_kv_pages", "free", value=pages.num_free)
        recorder.set("adamix_kv_cache_usage_ratio", value=pages.num_referenced / self._limits.pages)
        before, self._num_preempted = self._num_preempted, self.queue.num_preempted
        recorder.inc("adamix_preemptions_total", by=self._num_preempted - before)

    def _texts(self) -> set[str]:
        """The adapters of the texts that run."""
        return {each.request.row.digest for each in self.queue.running if each.params is not None} - {""}

    def _is_for_texts(self, digest: str) -> bool:
        """Whether nothing but texts waits for an adapter."""
        queued = self.queue.of(digest)
        return bool(queued) and all(request.row.generate is not None for request in queued)

    def _generated(self, request: Request) -> TokenSequence | None:
        """What there is of a text that has begun; None if it has no token yet."""
        sequence = self.queue.sequence_of(request)
        return sequence if sequence is not None and sequence.num_generated else None

    def _compute(self, works: Sequence[Work], desk: Desk, rate: TokenRate) -> list[_Given]:
        def alone(work: Work, error: Exception) -> AdamixError:
            # What takes the memory now is no longer there when all that waits has been computed.
            retry_after_s = rate.seconds(self.queue.queued_tokens + work.num_new)
            return failed_alone(work.sequence.request, error, self.runner, retry_after_s)

        return compute(self._run, works, alone, desk.progress)

    def _run(self, works: Sequence[Work]) -> list[_Given]:
        """May be called again with some of the works: nothing is taken in before all have ended well."""
        result = self.runner.run(works)
        given: list[_Given] = [result.outputs.get(number) for number in range(len(works))]
        texts = [number for number, work in enumerate(works) if work.is_complete and work.sequence.params is not None]
        if texts:
            drawn = self._sampler.draw(result.logits, [works[number].sequence for number in texts])
            for number, token in zip(texts, drawn, strict=True):
                given[number] = _NOT_FINITE if token is None else token
        return given

    def _hand_out(self, works: Sequence[Work], given: Sequence[_Given], desk: Desk, batch: Timing, ended: float) -> int:
        """Take in what a step gave, and tell it. Returns the tokens of requests that have their first event by it."""
        pairs = list(zip(works, given, strict=True))
        tokens = {work.sequence: each.token for work, each in pairs if isinstance(each, Drawn)}
        # What has no token though it is complete is found by nobody any more.
        self.queue.take_in(
            [work for work, each in pairs if not isinstance(each, AdamixError) or each is _NOT_FINITE], tokens
        )
        num_first = num_generated = 0
        judged: list[tuple[Request, NDArray[np.float32] | AdamixError]] = []
        for work, each in pairs:
            if each is None:
                continue
            sequence, request = work.sequence, work.sequence.request
            if not request.num_events:
                num_first += request.num_tokens
            if isinstance(each, Drawn):
                reason = ending(sequence)
                if reason is not None:
                    _time(request, batch, ended)
                num_generated += self._tell(sequence, each, reason, desk)
            else:
                _time(request, batch, ended)
                desk.end(request, each)
                if request.row.digest:
                    judged.append((request, each))
        desk.recorder.inc("adamix_generated_tokens_total", by=num_generated)
        if judged:
            desk.judge(*zip(*judged, strict=True))
        return num_first

    def _tell(self, sequence: TokenSequence, drawn: Drawn, reason: _Ending | None, desk: Desk) -> bool:
        """Tell a token, and why the text ends with it if it does. Whether it is a part of the text."""
        is_text = reason not in ("eos", "stop")
        tokens = drawn.token.to_bytes(4, "little") if is_text else b""
        logprobs = drawn.logprobs if is_text else b""
        if sequence.num_generated == 1:
            desk.recorder.inc("adamix_prefix_tokens_total", "hit", by=sequence.num_cached)
            desk.recorder.inc("adamix_prefix_tokens_total", "miss", by=sequence.num_prompt - sequence.num_cached)
        sequence.num_sent = sequence.num_text
        if reason is None:
            desk.go_on(sequence.request, tokens, logprobs)
        else:
            desk.end_text(sequence.request, _finish(sequence, reason), tokens, logprobs)
        return is_text


def _finish(sequence: TokenSequence, reason: _Ending | Literal["cancelled"]) -> Finish:
    return Finish(reason=reason, num_tokens=sequence.num_text, cached_tokens=sequence.num_cached, seed=sequence.seed)


def _time(request: Request, batch: Timing, ended: float) -> None:
    """Note where a request's time went so far, and the step it was computed in last."""
    queue_s = request.timing.queue_s
    request.timing = msgspec.structs.replace(
        batch, queue_s=queue_s, load_s=request.timing.load_s, compute_s=ended - request.arrived - queue_s
    )


def _record(recorder: Recorder, batch: Timing, compute_s: float) -> None:
    recorder.observe("adamix_batch_tokens", value=batch.batch_tokens)
    recorder.observe("adamix_batch_requests", value=batch.batch_requests)
    recorder.observe("adamix_batch_tasks", value=batch.batch_tasks)
    recorder.observe("adamix_compute_seconds", value=compute_s)
