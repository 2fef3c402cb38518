"""What came of `Generate` -> choices of OpenAI's two shapes, whole or in pieces. Pure; knows no call.

A piece has what came since the last one; a whole answer is one piece. So both are said by the same functions.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from adamix.errors import Cancelled
from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.http.open_ai.token_texts import TokenText, TokenTexts

# As OpenAI says of a token that is not likely at all.
_LEAST_LOGPROB = -9999.0
_REASONS = {
    inference_pb2.FINISH_REASON_EOS: "stop",
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
}
# Figures of a digest that tell versions apart for people.
_SHORT = 12


@dataclass
class Text:
    """One answer on its way: what came and was not said yet.

    Attributes:
        index: of its prompt.
        version: the digest that answers; known with the first message.
        usage: known with the last.
        has_begun: something was said of it.
    """

    index: int
    version: str = ""
    said: str = ""
    logprobs: list[inference_pb2.TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    usage: inference_pb2.Usage = field(default_factory=inference_pb2.Usage)
    has_begun: bool = False
    # Characters of its tokens up to now, as far as they are known.
    _length: int = 0
    _characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add(self, message: inference_pb2.GenerateResponse) -> None:
        """Raises Cancelled: somebody else has ended it."""
        self.version = message.version or self.version
        self.said += message.text_delta
        self.logprobs.extend(message.logprobs)
        if message.finish_reason:
            if message.finish_reason not in _REASONS:
                raise Cancelled("the answer was ended before its time")
            self.finish = _REASONS[message.finish_reason]
            self.usage = message.usage

    def take(self) -> tuple[str, list[inference_pb2.TokenLogprob]]:
        """What is said now, once."""
        said, logprobs = self.said, self.logprobs
        self.said, self.logprobs = "", []
        return said, logprobs

    def offset(self, raw: bytes) -> int:
        """Where a token begins that has these bytes, in characters."""
        at = self._length
        self._length += len(self._characters.decode(raw))
        return at


class Shape(Protocol):
    """One of the two routes: what its answers and their pieces are called, and what a choice is."""

    @property
    def prefix(self) -> str:
        """Of the id."""

    @property
    def whole(self) -> str:
        """What a whole answer is an `object` of."""

    @property
    def piece(self) -> str:
        """What a piece is."""

    def choice(self, text: Text) -> dict[str, Any]:
        """What has come of one answer, all of it."""

    def begin(self, text: Text, /) -> list[dict[str, Any]]:
        """The choices before the first piece."""

    def pieces(self, text: Text) -> list[dict[str, Any]]:
        """The choices in which what has come since is said, the end included."""


@dataclass(frozen=True)
class Completions:
    """`/v1/completions`. `top` is how many likelier tokens are told; None where no probabilities are."""

    top: int | None
    tokens: TokenTexts
    prefix: str = "cmpl"
    whole: str = "text_completion"
    piece: str = "text_completion"

    def choice(self, text: Text) -> dict[str, Any]:
        said, logprobs = text.take()
        told = None if self.top is None else self._logprobs(text, logprobs, self.top)
        return {"index": text.index, "text": said, "logprobs": told, "finish_reason": text.finish}

    def begin(self, _: Text) -> list[dict[str, Any]]:
        return []

    def pieces(self, text: Text) -> list[dict[str, Any]]:
        return [self.choice(text)]

    def _logprobs(self, text: Text, logprobs: Sequence[inference_pb2.TokenLogprob], top: int) -> dict[str, Any]:
        tokens = [self.tokens.of(each.token_id) for each in logprobs]
        likely = []
        for chosen, each in zip(tokens, logprobs, strict=True):
            others = each.alternatives[:top]
            found = {_name(self.tokens.of(other.token_id)): _value(other) for other in others}
            likely.append(found | {_name(chosen): _value(each)})
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": [_value(each) for each in logprobs],
            "top_logprobs": likely if top else None,
            "text_offset": [text.offset(token.raw) for token in tokens],
        }


@dataclass(frozen=True)
class Chats:
    """`/v1/chat/completions`. `top` is how many likelier tokens are told; None where no probabilities are."""

    top: int | None
    tokens: TokenTexts
    prefix: str = "chatcmpl"
    whole: str = "chat.completion"
    piece: str = "chat.completion.chunk"

    def choice(self, text: Text) -> dict[str, Any]:
        said, logprobs = text.take()
        message = {"role": "assistant", "content": said, "refusal": None}
        return {
            "index": text.index,
            "message": message,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": text.finish,
        }

    def begin(self, text: Text) -> list[dict[str, Any]]:
        return [self._piece(text, {"role": "assistant", "content": ""}, None, None)]

    def pieces(self, text: Text) -> list[dict[str, Any]]:
        said, logprobs = text.take()
        pieces = []
        if said or logprobs:
            pieces.append(self._piece(text, {"content": said}, self._logprobs(logprobs), None))
        if text.finish is not None:
            pieces.append(self._piece(text, {}, None, text.finish))
        return pieces

    def _piece(self, text: Text, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": text.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, logprobs: Sequence[inference_pb2.TokenLogprob]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        content = [
            {**self._token(each), "top_logprobs": [self._token(other) for other in each.alternatives[: self.top]]}
            for each in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, each: inference_pb2.TokenLogprob) -> dict[str, Any]:
        token = self.tokens.of(each.token_id)
        return {"token": token.text, "logprob": _value(each), "bytes": list(token.raw)}


@dataclass(frozen=True)
class Frame:
    """What every answer to one request, and each of its pieces, says beside its choices."""

    shape: Shape
    id: str
    created: int
    model: str

    def whole(self, texts: Sequence[Text]) -> dict[str, Any]:
        choices = [self.shape.choice(text) for text in texts]
        return {**self._head(self.shape.whole, texts[0].version), "choices": choices, "usage": usage(texts)}

    def piece(self, version: str, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head(self.shape.piece, version), "choices": choices, **more}

    def _head(self, kind: str, version: str) -> dict[str, Any]:
        return {
            "id": f"{self.shape.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": version[:_SHORT],
        }


def usage(texts: Sequence[Text]) -> dict[str, Any]:
    """Of several answers together."""
    prompt = sum(text.usage.prompt_tokens for text in texts)
    generated = sum(text.usage.generated_tokens for text in texts)
    cached = sum(text.usage.cached_tokens for text in texts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _name(token: TokenText) -> str:
    """A token as completions call it: with a mark where its bytes are no text, as OpenAI has it."""
    return token.text if token.is_whole else f"bytes:{token.text}"


def _value(each: inference_pb2.TokenLogprob) -> float:
    return max(each.logprob, _LEAST_LOGPROB)
