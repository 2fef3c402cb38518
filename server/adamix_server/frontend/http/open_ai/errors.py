"""Errors -> OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

The HTTP status is that of every face, so that OpenAI's libraries raise the class that fits. `code` is OpenAI's own word
where it has one, else this server's reason in small letters; `param` is the field as this face calls it. Knows no
route.
"""

import math
import re
from collections.abc import Mapping

import msgspec

from adamix.errors import AdamixError, Code, QuotaExceeded
from adamix_server.frontend.http.errors import headers_of, status_of
from adamix_server.frontend.http.reply import Reply

# What a field of a message is called by callers of this face, where it is another word.
WORDS: Mapping[str, str] = {
    "task": "model",
    "version": "model",
    "token_ids": "prompt",
    "max_new_tokens": "max_tokens",
    "chat": "messages",
}
# Which a sentence has for other reasons than naming a field.
_WORDS_OF_SENTENCES = {"chat"}
_PARENTS = ("sampling.", "chat.")
_NAME = re.compile(r"\w+")

_CODES = {
    "NOT_FOUND": "model_not_found",
    "KEY_INVALID": "invalid_api_key",
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "TEXT_TOO_LONG": "context_length_exceeded",
    "OUT_OF_RANGE": "invalid_value",
    "FIELD_INVALID": "invalid_type",
    "FIELD_MISSING": "missing_required_parameter",
    "UNKNOWN_FIELD": "unknown_parameter",
    "PARAMETER_UNSUPPORTED": "unsupported_parameter",
    "MALFORMED_MESSAGE": "invalid_json",
}
# What these are about, where no field is named.
_PARAMS = {
    "NOT_FOUND": "model",
    "WRONG_HEAD": "model",
    "NOT_GENERATIVE": "model",
    "BACKBONE_CHANGED": "model",
    "NO_LIVE_VERSION": "model",
    "ADAPTER_QUARANTINED": "model",
    "NO_CHAT_TEMPLATE": "messages",
    "CHAT_TEMPLATE_INVALID": "messages",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 499: "cancelled_error"}
# Those that end by waiting say for how long; the others are not tried again.
_PATIENCE = frozenset({Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})


def to_reply(error: AdamixError, words: Mapping[str, str] = WORDS) -> Reply:
    """The whole answer. `words` are those of the route."""
    headers = [*headers_of(error)]
    if error.retry_after_s is not None:
        # What OpenAI's libraries look at first.
        headers.append(("retry-after-ms", str(max(1, math.ceil(error.retry_after_s * 1000)))))
    elif error.code in _PATIENCE:
        headers.append(("x-should-retry", "false"))
    return Reply(to_json(error, words), status_of(error), headers=tuple(headers))


def to_json(error: AdamixError, words: Mapping[str, str] = WORDS) -> bytes:
    """The body alone, which is also what ends a stream."""
    field = error.field
    message = error.message
    if field is not None:
        own = _own(field, words)
        for wire in {field, field.rpartition(".")[2]} - _WORDS_OF_SENTENCES:
            message = re.sub(rf"(?<![\w.]){re.escape(wire)}(?!\w)", _own(wire, words), message)
        field = own
    else:
        field = _PARAMS.get(error.reason)
    body = {"message": message, "type": _type(error), "param": field, "code": _code(error)}
    return msgspec.json.encode({"error": body})


def _own(field: str, words: Mapping[str, str]) -> str:
    for parent in _PARENTS:
        field = field.removeprefix(parent)
    name = _NAME.match(field)
    known = "" if name is None else name[0]
    return words.get(known, known) + field[len(known) :]


def _type(error: AdamixError) -> str:
    if isinstance(error, QuotaExceeded) and error.retry_after_s is None:
        return "insufficient_quota"
    status = status_of(error)
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def _code(error: AdamixError) -> str:
    if isinstance(error, QuotaExceeded):
        return "insufficient_quota" if error.retry_after_s is None else "rate_limit_exceeded"
    return _CODES.get(error.reason, error.reason.lower())
