"""Errors in OpenAI's shape: status, type, code, and the field in its caller's words."""

import json
from typing import Any

import pytest

from adamix.errors import (
    AdamixError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
)
from adamix_server.frontend.http.open_ai import errors

QUOTA = QuotaExceeded.of("input_tokens_per_s", "acme", limit=1, used=1, retry_after_s=0.2501)
SPENT = QuotaExceeded.of("concurrent_calls", "acme", limit=0, used=0)


def body(error: AdamixError, words: dict[str, str] | None = None) -> dict[str, Any]:
    found = json.loads(errors.to_json(error, words or errors.WORDS))
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"message", "type", "param", "code"}
    shaped: dict[str, Any] = found["error"]
    return shaped


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (NotFound("x"), 404, "invalid_request_error", "model_not_found", "model"),
        (Unauthenticated("x", reason="KEY_INVALID"), 401, "authentication_error", "invalid_api_key", None),
        (PermissionDenied("x", reason="RIGHT_MISSING"), 403, "permission_error", "right_missing", None),
        (InvalidRequest("x", reason="OUT_OF_RANGE"), 400, "invalid_request_error", "invalid_value", None),
        (InvalidRequest("x", reason="PROMPT_TOO_LONG"), 400, "invalid_request_error", "context_length_exceeded", None),
        (Overloaded("x", retry_after_s=1), 429, "rate_limit_error", "overloaded", None),
        (QUOTA, 429, "rate_limit_error", "rate_limit_exceeded", None),
        (SPENT, 429, "insufficient_quota", "insufficient_quota", None),
        (Unavailable("x", reason="DRAINING"), 503, "server_error", "draining", None),
        (DeadlineExceeded("x"), 504, "server_error", "deadline_exceeded", None),
        (InternalError("x"), 500, "server_error", "internal", None),
    ],
)
def test_each_class_of_errors(error: AdamixError, status: int, kind: str, code: str, param: str | None) -> None:
    found = body(error)
    assert (errors.to_reply(error).status, found["type"], found["code"], found["param"]) == (status, kind, code, param)


def test_when_to_come_back() -> None:
    headers = dict(errors.to_reply(QUOTA).headers)
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "251")
    assert dict(errors.to_reply(SPENT).headers)["x-should-retry"] == "false"
    assert dict(errors.to_reply(Unavailable("x")).headers) == {}


@pytest.mark.parametrize(
    ("field", "message", "param", "said"),
    [
        ("sampling.temperature", "temperature must be in 0..5", "temperature", "temperature must be in 0..5"),
        ("max_new_tokens", "max_new_tokens must be in 0..9", "max_tokens", "max_tokens must be in 0..9"),
        ("chat.messages[3].role", "a message needs a role", "messages[3].role", "a message needs a role"),
        ("token_ids", "token_ids is empty", "prompt", "prompt is empty"),
        ("task", "task is missing", "model", "model is missing"),
        ("stop[1]", "a stop has 1 to 64 bytes", "stop[1]", "a stop has 1 to 64 bytes"),
    ],
)
def test_fields_have_their_callers_names(field: str, message: str, param: str, said: str) -> None:
    found = body(InvalidRequest(message, field=field))
    assert (found["param"], found["message"]) == (param, said)
