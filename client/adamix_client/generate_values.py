"""What the client asks a text with and what it gives of one: plain immutable values, and their messages on the wire.

No connection here, and no check of a range: the server knows what it takes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast

from adamix_client.errors import AdamixError, InvalidConfig
from adamix_protos.v1 import inference_pb2

FinishReason = Literal["", "eos", "stop", "length", "cancelled"]


@dataclass(frozen=True)
class ChatMessage:
    """One message of a chat; what roles there are, its template says."""

    role: str
    content: str


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability, before any penalty, temperature or cut.

    `alternatives` are the likeliest tokens in its place, the likeliest first, if any were asked for.
    """

    token_id: int
    logprob: float
    alternatives: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class TokenUsage:
    """What a text took. `cached_tokens`, of the prompt's, had been computed before, for an earlier call."""

    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class GenerateDelta:
    """What follows the text so far; nothing is ever taken back.

    Attributes:
        text: may be empty.
        token_ids: of the tokens since the last delta, if asked for, as are `logprobs`. A token's text may come later.
        finish_reason: empty but in the last delta: an end of text, a stop, the most tokens, or a cancel.
        usage: in the last delta.
        seed: that the text can be asked for again with; in the last delta.
        version: the digest that answers; at least in the last delta.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason = ""
    usage: TokenUsage | None = None
    seed: int | None = None
    version: str = ""


@dataclass(frozen=True)
class GeneratedText:
    """A whole text: what its deltas say together."""

    text: str
    finish_reason: FinishReason
    usage: TokenUsage
    version: str
    seed: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]

    @classmethod
    def of(cls, deltas: Iterable[GenerateDelta]) -> Self:
        """Join all deltas of a text. Raises what they raise, and AdamixError if the last one is not among them."""
        found = list(deltas)
        last = found[-1] if found else GenerateDelta("")
        if last.usage is None or last.seed is None:
            raise AdamixError("the text has no end: the server stopped without saying why")
        return cls(
            text="".join(delta.text for delta in found),
            finish_reason=last.finish_reason,
            usage=last.usage,
            version=last.version,
            seed=last.seed,
            token_ids=tuple(token_id for delta in found for token_id in delta.token_ids),
            logprobs=tuple(logprob for delta in found for logprob in delta.logprobs),
        )

    @property
    def document(self) -> dict[str, Any]:
        """As `adamix generate --json` prints it: ids and probabilities only if there are any."""
        found: dict[str, Any] = {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
            "version": self.version,
            "seed": self.seed,
        }
        if self.token_ids:
            found["token_ids"] = list(self.token_ids)
        if self.logprobs:
            found["logprobs"] = [
                {**_plain(token), "alternatives": [_plain(other) for other in token.alternatives]}
                for token in self.logprobs
            ]
        return found


def to_generate_request(
    task: str,
    prompt: str | None,
    chat: Sequence[ChatMessage | Mapping[str, str]] | None,
    token_ids: Sequence[int] | None,
    sampling: Mapping[str, float | None],
    settings: Mapping[str, Any],
) -> inference_pb2.GenerateRequest:
    """The message of a call.

    Args:
        sampling: by the names of `Sampling`'s fields; None where the server is to choose.
        settings: by the names of the other fields; None likewise.

    Raises:
        InvalidConfig: there is not exactly one of prompt, chat and token_ids, or the wire cannot carry a value.
    """
    if sum(part is not None for part in (prompt, chat, token_ids)) != 1:
        raise InvalidConfig("a text is asked for with exactly one of prompt, chat and token_ids")
    request = inference_pb2.GenerateRequest()
    _set(request, {"task": task, "prompt": prompt, **settings})
    _set(request.sampling, sampling)
    # Also empty ones are what was asked with.
    if token_ids is not None:
        request.token_ids.SetInParent()
        _set(request.token_ids, {"ids": token_ids})
    if chat is not None:
        request.chat.SetInParent()
        for message in chat:
            _set(request.chat.messages.add(), _fields(message))
    return request


def to_delta(message: inference_pb2.GenerateResponse) -> GenerateDelta:
    is_last = message.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED
    usage = message.usage
    return GenerateDelta(
        text=message.text_delta,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_to_logprob(found) for found in message.logprobs),
        finish_reason=_finish_reason(message.finish_reason) if is_last else "",
        usage=TokenUsage(usage.prompt_tokens, usage.generated_tokens, usage.cached_tokens) if is_last else None,
        seed=message.seed if is_last else None,
        version=message.version,
    )


def _plain(token: TokenLogprob) -> dict[str, Any]:
    return {"token_id": token.token_id, "logprob": token.logprob}


def _fields(message: ChatMessage | Mapping[str, str]) -> Mapping[str, Any]:
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": message.content}
    if set(message) != {"role", "content"}:
        raise InvalidConfig("a message of a chat has a role and a content, and nothing else", field="chat")
    return message


def _set(message: object, values: Mapping[str, Any]) -> None:
    """Fill fields of a message, repeated ones too. Raises InvalidConfig, which names the field."""
    for name, value in values.items():
        if value is None:
            continue
        try:
            if hasattr(getattr(message, name), "extend"):
                # One text would be taken for the list of its letters.
                getattr(message, name).extend([value] if isinstance(value, str) else value)
            else:
                setattr(message, name, value)
        except UnicodeEncodeError:
            raise InvalidConfig(f"{name} is not valid Unicode: it holds half of a surrogate pair", field=name) from None
        except (ValueError, TypeError):
            raise InvalidConfig(f"{name} is of no type or size that can be sent", field=name) from None


def _to_logprob(message: inference_pb2.TokenLogprob) -> TokenLogprob:
    alternatives = tuple(TokenLogprob(found.token_id, found.logprob) for found in message.alternatives)
    return TokenLogprob(message.token_id, message.logprob, alternatives)


def _finish_reason(number: int) -> FinishReason:
    try:
        name = inference_pb2.FinishReason.Name(number)
    except ValueError:
        raise AdamixError("the server's text has an end of a kind this client does not know") from None
    return cast("FinishReason", name.removeprefix("FINISH_REASON_").lower())
