"""One `Generate` call: from a request to the messages of its answer.

The way in is that of every input (`stages.py`): which version, room in the queue, ids, quotas. What comes back is a
stream of events, told as fast as its reader reads; whatever ends the call before its answer, the reader's leaving first
of all, ends the work for it. Knows neither devices nor how texts are cut into tokens.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from adamix.errors import AdamixError, InternalError, InvalidConfig, InvalidRequest, Overloaded
from adamix.prompts.chat import ChatRenderer
from adamix.prompts.prompts import Prompts
from adamix.prompts.vocabulary import Vocabulary
from adamix_protos.v1 import inference_pb2
from adamix_server.catalog.rows import VersionRow, Writing
from adamix_server.channel.engine_frames import Event, Finish, GenerateParams
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.boundary.quota import Quota, Reservation
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.event_stream import EventStream
from adamix_server.frontend.inference import generate_fields
from adamix_server.frontend.inference.answer import Answer
from adamix_server.frontend.inference.detokenization import Detokenizer
from adamix_server.frontend.inference.prompting import Prompting, read_content
from adamix_server.frontend.inference.stages import Item, Stages, abandon
from adamix_server.frontend.inference.tokenization import Tokenizer
from adamix_server.limits.generation import DEFAULT_NEW_TOKENS, MAX_EVENTS_PER_MESSAGE
from adamix_server.telemetry.metrics import Recorder

Messages = AsyncGenerator[inference_pb2.GenerateResponse, None]


@dataclass(frozen=True)
class Generation:
    """Answers `Generate`, by the parts of the front end that it needs.

    `capacity` is how many tokens of one text the engine that there is now can keep; `close` ends what renders chats.
    """

    stages: Stages
    prompting: Prompting
    detokenizer: Detokenizer
    quota: Quota
    recorder: Recorder
    capacity: Callable[[], int]
    close: Callable[[], None]

    def messages(self, request: inference_pb2.GenerateRequest, call: Call) -> Messages:
        """The messages of one answer. To be closed when nobody reads on.

        Raises:
            InvalidRequest: a field is wrong; the error names it.
            NotFound, FailedPrecondition, InvalidAdapter: as `Stages.resolve`; or it asks for what is not served.
            QuotaExceeded, Overloaded, Unavailable, DeadlineExceeded: as `Stages.admit`; and after some messages, what
                became of the engine or of the time.
        """
        return _Generating(self, call, request.task).messages(request)


def open_generation(
    directory: Path, stages: Stages, tokenizer: Tokenizer, link: EngineLink, quota: Quota, recorder: Recorder
) -> Generation | None:
    """What answers `Generate`; None where the engine's backbone writes no texts. Blocks.

    Args:
        directory: where the engine has put `generation.json`.

    Raises:
        InvalidConfig: that cannot be read.
    """

    def capacity() -> int:
        limits = None if link.hello is None else link.hello.limits
        return 0 if limits is None else limits.pages * limits.page_tokens

    if not capacity():
        return None
    try:
        vocabulary = Vocabulary.read(directory / "generation.json")
    except OSError as error:
        raise InvalidConfig(f"generation.json cannot be read ({error.strerror})") from None
    renderer = ChatRenderer()
    prompts = Prompts(tokenizer.backend, vocabulary, renderer)
    # The first text has its tokenizer made.
    prompts.text("a")
    spec = stages.view.spec
    prompting = Prompting(tokenizer, prompts, vocabulary, spec.vocab_size, spec.max_tokens)
    return Generation(stages, prompting, Detokenizer(tokenizer.backend), quota, recorder, capacity, renderer.close)


class _Generating:
    """One call, and how far it came."""

    def __init__(self, parts: Generation, call: Call, task: str) -> None:
        self._parts = parts
        self._call = call
        self._item = Item.of(task, call.deadline)
        self._began = time.monotonic()
        # When the last event with tokens came.
        self._last_tokens: float | None = None
        # Keeps the bytes of the version, until the engine has them.
        self._reading = ExitStack()

    async def messages(self, request: inference_pb2.GenerateRequest) -> Messages:
        """See `Generation.messages`."""
        item, stages = self._item, self._parts.stages
        answer: Answer | None = None
        try:
            async with AsyncExitStack() as held:
                answer, stream, reservation = await self._begin(request, held)
                # As much as its text.
                del request
                last: Event | None = None
                while last is None:
                    last = await self._more(stream, answer, reservation)
                    if (last is None or last.finish is None) and (message := answer.message()) is not None:
                        yield message
                yield answer.end(await self._finish(last, stream, answer), item.num_tokens)
        except AdamixError as error:
            item.error = error
            self._call.resource = item.resource
            raise
        finally:
            self._reading.close()
            seconds = time.monotonic() - self._began
            num_generated = 0 if answer is None else answer.num_tokens
            stages.record([item], self._call.tenant, seconds, num_generated=num_generated)

    async def _begin(
        self, request: inference_pb2.GenerateRequest, held: AsyncExitStack
    ) -> tuple[Answer, EventStream, Reservation]:
        """Send what is asked to the engine. What is to be given back at the end goes to `held`."""
        parts, call, item, stages = self._parts, self._call, self._item, self._parts.stages
        spec = stages.view.spec
        asked = generate_fields.read(request, vocab_size=spec.vocab_size, window=spec.max_tokens)
        content = read_content(request, spec.vocab_size, spec.max_tokens)
        self._reading.enter_context(stages.view.reading())
        version = stages.resolve(item, request.version, call.principal, "task", "version", generates=True)
        writing = _writing(version)
        item.text, item.tokens = content.likely(spec.max_tokens), content.tokens
        with stages.admit([item], call.tenant) as place:
            _check(item)
            item.tokens = await parts.prompting.tokens(content, writing, call.tenant)
            item.text, item.num_tokens = None, len(item.tokens)
            num_new = self._room(asked.max_new_tokens, item.num_tokens, content.field)
            reservation = await held.enter_async_context(parts.quota.reserved(call.tenant, num_new))
            await stages.charge([item], place)
            _check(item)
            params = GenerateParams(
                max_new_tokens=num_new,
                sampling=asked.sampling,
                eos_ids=list(parts.prompting.ends(content, writing)),
                stop_ids=list(asked.stop_ids),
                ignore_eos=asked.ignore_eos,
                logprobs=asked.logprobs,
            )
            stream = stages.generate(item, params, place)
        held.callback(_leave, stream, reservation)
        return Answer(asked, parts.detokenizer.begin(), version.digest), stream, reservation

    def _room(self, asked: int | None, num_prompt: int, field: str) -> int:
        """How many tokens the answer may have: if nothing was asked for, no more than fit.

        Raises:
            InvalidRequest: more than fit into the backbone's window (`PROMPT_TOO_LONG`).
            Overloaded: more than fit into all pages of the engine (`KV_TOO_SMALL`).
        """
        window, most = self._parts.stages.view.spec.max_tokens, self._parts.capacity()
        num_new = max(1, min(DEFAULT_NEW_TOKENS, window - num_prompt, most - num_prompt)) if asked is None else asked
        num_tokens = num_prompt + num_new
        if num_tokens > window:
            raise InvalidRequest(
                f"the prompt has {num_prompt} tokens, which with {num_new} new ones are over the backbone's {window}",
                reason="PROMPT_TOO_LONG",
                field=field,
            )
        if num_tokens > most:
            raise Overloaded(
                f"the prompt has {num_prompt} tokens, which with {num_new} new ones are over the {most} that this "
                "server can keep; ask for fewer, or raise --kv-bytes",
                reason="KV_TOO_SMALL",
            )
        return num_new

    async def _more(self, stream: EventStream, answer: Answer, reservation: Reservation) -> Event | None:
        """Take what comes next, as much as is told in one message.

        Returns:
            once the answer has ended, the last event that has come.
        """
        arrivals = await stream.take(MAX_EVENTS_PER_MESSAGE)
        for moment, event in arrivals:
            if event.error is None:
                # The engine has the adapter and has computed the prompt.
                self._reading.close()
                self._item.event = event
            if num_tokens := answer.add(event):
                reservation.made(num_tokens)
                self._measure(moment, num_tokens)
            if answer.is_stopped:
                break
        last = arrivals[-1][1]
        return last if last.final or answer.is_stopped else None

    def _measure(self, moment: float, num_tokens: int) -> None:
        recorder, last = self._parts.recorder, self._last_tokens
        if last is None:
            recorder.observe("adamix_time_to_first_token_seconds", value=moment - self._began)
        else:
            recorder.observe("adamix_inter_token_seconds", value=(moment - last) / num_tokens)
        self._last_tokens = moment

    async def _finish(self, last: Event, stream: EventStream, answer: Answer) -> Finish | None:
        """What the engine says of the end; None if that is not known, and the answer has ended all the same.

        Raises:
            AdamixError: the answer has ended before its time.
        """
        if not answer.is_stopped:
            if last.error is not None:
                raise last.error.to_error()
            if last.finish is None:
                raise InternalError("an answer ended and nobody said how")
            return last.finish
        try:
            if not last.final:
                self._parts.stages.stop(stream)
            while not last.final:
                last = (await stream.take(MAX_EVENTS_PER_MESSAGE))[-1][1]
        except AdamixError:
            # It has all that it was to have.
            return None
        return last.finish


def _leave(stream: EventStream, reservation: Reservation) -> None:
    """Nobody waits any more. What was not told to a reader that did not read was generated all the same."""
    reservation.made(sum(len(event.tokens) // 4 for event in stream.left()))
    abandon([stream])


def _check(item: Item) -> None:
    if item.error is not None:
        raise item.error


def _writing(version: VersionRow) -> Writing:
    if version.writing is None:
        raise InternalError("a version that generates does not say from what")
    return version.writing
