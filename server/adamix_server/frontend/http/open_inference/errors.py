"""Errors in the protocol's shape: their message under `error`, and beside it what this project says of every error."""

import msgspec

from adamix.errors import AdamixError
from adamix_server.frontend.http.errors import headers_of, status_of
from adamix_server.frontend.http.reply import Reply


def to_reply(error: AdamixError) -> Reply:
    """The whole answer."""
    return Reply(to_body(error), status_of(error), headers=headers_of(error))


def to_body(error: AdamixError) -> bytes:
    """`{"error": MESSAGE, "code", "status", "reason", "field", "retry_after_s"}`."""
    return msgspec.json.encode(
        {
            "error": error.message,
            "code": status_of(error),
            "status": error.code.name,
            "reason": error.reason,
            "field": error.field,
            "retry_after_s": error.retry_after_s,
        }
    )
