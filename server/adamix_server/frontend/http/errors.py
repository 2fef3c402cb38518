"""Errors of `adamix.errors` -> what HTTP says of them: a status, headers, and a body in this project's own shape.

The status is that of google.rpc's mapping, but for what HTTP itself has words for. The body is
`{"error": {"code", "status", "reason", "message", "field", "retry_after_s"}}`: `code` is the HTTP status as a number,
`status` the name of gRPC's code, `reason` the constant for programs; `field` and `retry_after_s` may be null.

For faces with a shape of their own: `status_of(error)` and `headers_of(error)`. Knows no route and no call.
"""

import math

import msgspec

from adamix.errors import AdamixError, Code, InvalidRequest, NotFound, Overloaded
from adamix_server.frontend.http.reply import Reply

_STATUS: dict[Code, int] = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
# What is wrong with the request as HTTP, and not with what it asks for.
_STATUS_OF_REASON: dict[str, int] = {
    "BODY_TOO_LARGE": 413,
    "CONTENT_TYPE_UNSUPPORTED": 415,
    "CONTENT_ENCODING_UNSUPPORTED": 415,
    "HEADERS_TOO_LARGE": 431,
    "METHOD_NOT_ALLOWED": 405,
}


class MethodNotAllowed(AdamixError):
    """The path is known, its method is not; `allowed` are those that are."""

    code = Code.UNIMPLEMENTED
    default_reason = "METHOD_NOT_ALLOWED"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not allowed here; use {' or '.join(allowed)}")
        self.allowed = allowed


def route_unknown() -> NotFound:
    """The answer for a path that there is not."""
    return NotFound("there is no such path; /openapi.json lists those there are", reason="ROUTE_UNKNOWN")


def body_too_large(most: int) -> Overloaded:
    return Overloaded(f"the body is over {most:,} bytes", reason="BODY_TOO_LARGE")


def headers_too_large(most: int) -> Overloaded:
    return Overloaded(f"the request's line and headers are over {most:,} bytes", reason="HEADERS_TOO_LARGE")


def content_type_unsupported(wanted: str) -> InvalidRequest:
    return InvalidRequest(f"the body must come with content-type: {wanted}", reason="CONTENT_TYPE_UNSUPPORTED")


def content_encoding_unsupported() -> InvalidRequest:
    return InvalidRequest("send the body without a content-encoding", reason="CONTENT_ENCODING_UNSUPPORTED")


def status_of(error: AdamixError) -> int:
    """The HTTP status of an error."""
    return _STATUS_OF_REASON.get(error.reason) or _STATUS.get(error.code, 500)


def headers_of(error: AdamixError) -> tuple[tuple[str, str], ...]:
    """The headers that an error comes with, whatever the shape of its body."""
    headers: list[tuple[str, str]] = []
    if error.retry_after_s is not None:
        # Whole seconds are all that HTTP knows.
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    if error.code is Code.UNAUTHENTICATED:
        headers.append(("www-authenticate", "Bearer"))
    if error.reason == "DRAINING":
        # The next request is to go elsewhere.
        headers.append(("connection", "close"))
    if isinstance(error, MethodNotAllowed):
        headers.append(("allow", ", ".join(error.allowed)))
    return tuple(headers)


def to_reply(error: AdamixError) -> Reply:
    """The whole answer, in this project's own shape."""
    status = status_of(error)
    body = {
        "code": status,
        "status": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "field": error.field,
        "retry_after_s": error.retry_after_s,
    }
    return Reply(msgspec.json.encode({"error": body}), status, headers=headers_of(error))
