"""What a body of OpenAI's routes may say: one struct a route, and how a body is read into it.

Each field of OpenAI's that can be sent is here: served, without meaning for the answer (`Ignored`), or refused by its
name unless it asks for what happens anyway (`Refused`). What is in no struct is refused with the nearest name that is.
Null is the same as nothing, everywhere. Knows neither tasks nor messages of protobuf.
"""

import difflib
import functools
import re
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from adamix.errors import InvalidRequest
from adamix_server.frontend.http.bodies import decode_json

# Read as far as its syntax, and otherwise left.
Ignored = msgspec.Raw | UnsetType
Refused = msgspec.Raw | UnsetType

Prompts = str | list[str | int | list[int]]
# One of each kind: it takes longer to make than to use.
_decoder = functools.cache(msgspec.json.Decoder)
S = TypeVar("S", bound=msgspec.Struct)
B = TypeVar("B", bound="Body")

# What may stand in a refused field, because it is what this server does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "annotations": ([],),
    "tool_calls": ([],),
}
_MOST_NEUTRAL_BYTES = 64
_MISSING = re.compile(r"Object missing required field `(?P<name>[a-z_]+)`")


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every route takes."""

    model: str
    user: Ignored = UNSET


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    # The bytes that would hide how long a token is are never sent.
    include_obfuscation: Ignored = UNSET


class TextBody(Body, kw_only=True):
    """What is asked of a text, whatever it is written after: OpenAI's names first, then vLLM's."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None

    metadata: Ignored = UNSET
    safety_identifier: Ignored = UNSET
    prompt_cache_key: Ignored = UNSET

    n: Refused = UNSET
    logit_bias: Refused = UNSET
    store: Refused = UNSET
    service_tier: Refused = UNSET


class CompletionBody(TextBody, kw_only=True):
    """`POST /v1/completions`."""

    prompt: Prompts
    logprobs: int | None = None

    best_of: Refused = UNSET
    echo: Refused = UNSET
    suffix: Refused = UNSET
    response_format: Refused = UNSET


class Part(msgspec.Struct, kw_only=True):
    """Of a message's content. What other kinds than text have is not looked at."""

    type: str
    text: str | None = None


class ChatTurn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message. Those that a client got as an answer have empty fields, which it sends back as they are."""

    role: str
    content: str | list[Part] | None = None

    name: Refused = UNSET
    refusal: Refused = UNSET
    annotations: Refused = UNSET
    audio: Refused = UNSET
    function_call: Refused = UNSET
    tool_calls: Refused = UNSET
    tool_call_id: Refused = UNSET
    reasoning_content: Refused = UNSET


class ChatBody(TextBody, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatTurn]
    logprobs: bool | None = None
    top_logprobs: int | None = None

    audio: Refused = UNSET
    function_call: Refused = UNSET
    functions: Refused = UNSET
    modalities: Refused = UNSET
    moderation: Refused = UNSET
    parallel_tool_calls: Refused = UNSET
    prediction: Refused = UNSET
    prompt_cache_options: Refused = UNSET
    prompt_cache_retention: Refused = UNSET
    reasoning_effort: Refused = UNSET
    response_format: Refused = UNSET
    tool_choice: Refused = UNSET
    tools: Refused = UNSET
    verbosity: Refused = UNSET
    web_search_options: Refused = UNSET


class InputBody(Body, kw_only=True):
    """`POST /classify`, and what it has in common with embeddings. vLLM's `truncate_prompt_tokens` of -1 cuts a text
    that is longer than its task takes."""

    input: Prompts
    truncate_prompt_tokens: int | None = None


class EmbeddingBody(InputBody, kw_only=True):
    """`POST /v1/embeddings`."""

    encoding_format: str | None = None
    dimensions: int | None = None


class _Model(msgspec.Struct):
    model: str


_model = msgspec.json.Decoder(_Model)


def read_model(raw: bytes) -> str:
    """The model that a body names, whatever else is wrong with it. Raises InvalidRequest."""
    try:
        return _model.decode(raw).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Once more, for what is said of it.
        return _decoded(raw, _Model).model


def read_body(raw: bytes, kind: type[B]) -> B:
    """A body of a route. Raises InvalidRequest, whose field is as its caller knows it."""
    body = _decoded(raw, kind)
    refuse(body)
    return body


def refuse(struct: msgspec.Struct, at: str = "") -> None:
    """Raises InvalidRequest (`PARAMETER_UNSUPPORTED`) for what a struct asks for that is not served.

    Args:
        at: where the struct stands, as `messages[0].`.
    """
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, msgspec.Raw) and name not in _IGNORED and not _is_neutral(name, bytes(value)):
            raise unsupported(at + name)


def unsupported(field: str, what: str = "") -> InvalidRequest:
    """What is said of a field that would ask for what this server does not do."""
    return InvalidRequest(
        f"{field}: {what or 'this server does not support it; leave it out'}",
        reason="PARAMETER_UNSUPPORTED",
        field=field,
    )


def _is_neutral(name: str, raw: bytes) -> bool:
    if len(raw) > _MOST_NEUTRAL_BYTES:
        return False
    value = msgspec.json.decode(raw)
    # True is 1, and nobody means it.
    return value is None or any(type(value) is type(each) and value == each for each in _NEUTRAL.get(name, ()))


_IGNORED = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "include_obfuscation"})


def _decoded(raw: bytes, kind: type[S]) -> S:
    decoder: msgspec.json.Decoder[S] = _decoder(kind)
    try:
        return decode_json(raw, decoder)
    except InvalidRequest as error:
        raise _in_words(error, kind.__struct_fields__) from None


def _in_words(error: InvalidRequest, known: tuple[str, ...]) -> InvalidRequest:
    """The same, with the nearest name for one that there is not, and the name of a field that is missing."""
    field, message = error.field, error.message
    if error.reason == "UNKNOWN_FIELD" and field is not None and "." not in field:
        if near := difflib.get_close_matches(field, known, n=1):
            message += f"; did you mean {near[0]}?"
        return InvalidRequest(message, reason=error.reason, field=field)
    if (missing := _MISSING.search(message)) is not None:
        field = f"{field}.{missing['name']}" if field else missing["name"]
        return InvalidRequest(f"{field} is missing", reason="FIELD_MISSING", field=field)
    return InvalidRequest(message.replace("`", "").replace(" | null", ""), reason=error.reason, field=field)
