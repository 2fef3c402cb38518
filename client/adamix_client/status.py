"""What a `google.rpc.Status`, or the end of a gRPC call, says: the error of `adamix_client.errors` that it stands for.

The server writes them (`adamix_server.api.status`). Knows no method and no channel.
"""

from typing import Any

from google.rpc import error_details_pb2, status_pb2

from adamix_client.errors import (
    Aborted,
    AdamixError,
    Cancelled,
    Code,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    StoreFull,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "adamix"
DETAILS_KEY = "grpc-status-details-bin"

_CLASSES: dict[Code, type[AdamixError]] = {
    Code.CANCELLED: Cancelled,
    Code.INVALID_ARGUMENT: InvalidInput,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.NOT_FOUND: NotFound,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.ABORTED: Aborted,
    Code.INTERNAL: InternalError,
    Code.UNAVAILABLE: Unavailable,
    Code.DATA_LOSS: DataLoss,
    Code.UNAUTHENTICATED: Unauthenticated,
}


def from_status(status: Any) -> AdamixError:
    """The error a google.rpc.Status stands for; Unknown details are ignored."""
    reason: str | None = None
    field: str | None = None
    retry_after_s: float | None = None
    limits: dict[str, str] = {}
    for detail in status.details:
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason = info.reason
            limits = dict(info.metadata) if status.code == Code.RESOURCE_EXHAUSTED else {}
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if limits.keys() >= {"subject", "limit", "used"}:
        return QuotaExceeded(
            status.message,
            reason=reason,
            retry_after_s=retry_after_s,
            subject=limits["subject"],
            limit=_to_int(limits["limit"]),
            used=_to_int(limits["used"]),
        )
    return build(status.code, status.message, reason, field, retry_after_s)


def _to_int(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def from_rpc_error(error: Any) -> AdamixError:
    """The error that a `grpc.RpcError` of a call stands for, from its trailers where the server sent any."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return from_status(status_pb2.Status.FromString(value))
    # Without details the status was made by the transport: no connection, message too large, deadline, cancelled.
    code = error.code()
    return build(code.value[0], error.details() or code.name, None, None, None)


def build(code: int, message: str, reason: str | None, field: str | None, retry_after_s: float | None) -> AdamixError:
    """An instance of the class that fits a wire status; InternalError for a code that the server never sends."""
    known = Code(code) if code in set(Code) else Code.INTERNAL
    kind = _CLASSES.get(known, AdamixError)
    if known is Code.INVALID_ARGUMENT and field is not None:
        kind = InvalidRequest
    if reason == StoreFull.default_reason:
        kind = StoreFull
    error = kind(message, reason=reason, field=field, retry_after_s=retry_after_s)
    error.code = known
    return error


def clip(text: str, max_bytes: int) -> str:
    """`text`, cut to at most `max_bytes` bytes of UTF-8 at a character boundary."""
    if 4 * len(text) <= max_bytes:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    return data[: max_bytes - 3].decode("utf-8", "ignore") + "…"
