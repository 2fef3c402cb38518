"""`POST /v1/completions` and `/v1/chat/completions`: one `Generate` for each prompt, one after the other.

The first of them reads the body, as any call reads its message: so who asks is judged before it is. A stream is begun
with its first token, because until then an error has a status of its own; what goes wrong later is the last event.
Knows calls and requests; what is asked and said is `asking.py`, `saying.py`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from adamix.errors import AdamixError
from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.boundary import call as boundary
from adamix_server.frontend.http.bodies import check_json
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.open_ai import asking, bodies, errors
from adamix_server.frontend.http.open_ai.answer_room import LOGPROB_BYTES, AnswerRoom, no_room
from adamix_server.frontend.http.open_ai.bodies import ChatBody, CompletionBody, TextBody
from adamix_server.frontend.http.open_ai.models import Model, Models
from adamix_server.frontend.http.open_ai.saying import Chats, Completions, Frame, Shape, Text, usage
from adamix_server.frontend.http.open_ai.token_texts import TokenTexts
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.limits.generation import DEFAULT_NEW_TOKENS

_GENERATE = "/adamix.v1.InferenceService/Generate"
_EVENTS = "text/event-stream; charset=utf-8"
_NOT_KEPT = (("cache-control", "no-store"), ("x-accel-buffering", "no"))
B = TypeVar("B", bound=TextBody)


@dataclass(frozen=True)
class Route(Generic[B]):
    """What is peculiar to one of the two routes.

    Attributes:
        kind: of its body.
        asked: what a body asks of a model, a request for each prompt.
        shape: of the answer to a body.
    """

    kind: type[B]
    asked: Callable[[B, Model], list[inference_pb2.GenerateRequest]]
    shape: Callable[[B], Shape]


def completions(tokens: TokenTexts) -> Route[CompletionBody]:
    return Route(CompletionBody, asking.completions, lambda body: Completions(body.logprobs, tokens))


def chats(tokens: TokenTexts) -> Route[ChatBody]:
    def shape(body: ChatBody) -> Chats:
        return Chats((body.top_logprobs or 0) if body.logprobs else None, tokens)

    return Route(ChatBody, lambda body, model: [asking.chat(body, model)], shape)


@dataclass(frozen=True)
class Generating(Generic[B]):
    """Answers one of the two routes."""

    calls: Calls
    models: Models
    room: AnswerRoom
    route: Route[B]

    async def __call__(self, request: Request) -> Reply | None:
        asked = _Asked(self.models, self.room, self.route)
        try:
            reply = await self._answer(request, asked)
            request.ends.append(asked.give)
        except BaseException as error:
            asked.give()
            if not isinstance(error, AdamixError):
                raise
            if not request.has_begun:
                return errors.to_reply(error, asked.words)
            # In the middle of a stream.
            await request.write(_event(errors.to_json(error, asked.words)))
            return None
        return reply

    async def _answer(self, request: Request, asked: "_Asked[B]") -> Reply | None:
        texts: list[Text] = []
        while not texts or len(texts) < len(asked.requests):
            text = Text(len(texts))
            texts.append(text)
            messages = self.calls.many(request, _GENERATE, asked.read, inference_pb2.GenerateResponse)
            async with aclosing(messages):
                async for message in messages:
                    text.add(message)
                    if asked.is_streamed:
                        await self._tell(request, asked, text)
        if not asked.is_streamed:
            return Reply(msgspec.json.encode(asked.frame.whole(texts)))
        await self._end(request, asked, texts)
        return None

    async def _tell(self, request: Request, asked: "_Asked[B]", text: Text) -> None:
        """What has come of a text since the last time."""
        frame, shape = asked.frame, asked.frame.shape
        choices = [] if text.has_begun else shape.begin(text)
        choices += shape.pieces(text)
        if not request.has_begun:
            await request.begin(_EVENTS, headers=_NOT_KEPT)
        text.has_begun = True
        events = [_event(msgspec.json.encode(frame.piece(text.version, [choice], **asked.more))) for choice in choices]
        await request.write(b"".join(events))

    async def _end(self, request: Request, asked: "_Asked[B]", texts: Sequence[Text]) -> None:
        if asked.with_usage:
            piece = asked.frame.piece(texts[-1].version, [], usage=usage(texts))
            await request.write(_event(msgspec.json.encode(piece)))
        await request.write(_event(b"[DONE]"))


@dataclass
class _Asked(Generic[B]):
    """One request, known as far as its body has been read."""

    models: Models
    room: AnswerRoom
    route: Route[B]
    give: Callable[[], None] = no_room
    requests: list[inference_pb2.GenerateRequest] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=lambda: dict(errors.WORDS))
    is_streamed: bool = False
    with_usage: bool = False
    _frame: Frame | None = None
    _next: int = 0

    @property
    def frame(self) -> Frame:
        if self._frame is None:
            raise RuntimeError("an answer to a body that was not read")
        return self._frame

    @property
    def more(self) -> dict[str, Any]:
        """What every piece has, where the last one is to have the usage."""
        return {"usage": None} if self.with_usage else {}

    async def read(self, request: Request) -> inference_pb2.GenerateRequest:
        """The request of the next call."""
        if self._frame is None:
            check_json(request)
            self._learn(await request.body())
        message = self.requests[self._next]
        self._next += 1
        return message

    def _learn(self, raw: bytes) -> None:
        call = boundary.current()
        model = self.models.find(bodies.read_model(raw), call)
        model.check_head("causal_lm", instead="which writes no text; ask /classify, /v1/embeddings or /v1/predict")
        body = bodies.read_body(raw, self.route.kind)
        if body.max_completion_tokens is not None:
            self.words["max_new_tokens"] = "max_completion_tokens"
        self.requests = self.route.asked(body, model)
        self.is_streamed = bool(body.stream)
        size = 0 if self.is_streamed else sum(map(_logprob_bytes, self.requests))
        # The first call's own the boundary has counted.
        waiting = sum(each.ByteSize() for each in self.requests[1:])
        if size or waiting:
            instead = "ask for a stream, or for fewer of them"
            self.give = self.room.take(call.tenant, size, instead, "logprobs", waiting)
        options = body.stream_options
        self.with_usage = options is not None and bool(options.include_usage)
        self._frame = Frame(self.route.shape(body), call.request_id, int(time.time()), model.name)


def _logprob_bytes(request: inference_pb2.GenerateRequest) -> int:
    """What is kept of the probabilities of an answer, at most."""
    if not request.logprobs:
        return 0
    return (request.max_new_tokens or DEFAULT_NEW_TOKENS) * (1 + request.logprobs) * LOGPROB_BYTES


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
