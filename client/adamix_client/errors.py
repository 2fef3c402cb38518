"""The one error tree of the project. Every error knows the status it becomes on the wire.

::

    AdamixError                      INTERNAL unless a subclass says otherwise
    ├── InvalidInput                 INVALID_ARGUMENT       the caller's fault; never retry unchanged
    │   ├── InvalidConfig                                   a setting out of range (also: command-line usage)
    │   ├── InvalidData                                     a training or evaluation file
    │   ├── InvalidAdapter                                  an adapter file; `reason` says which check it failed
    │   └── InvalidRequest                                  a field of a request; `field` names it
    ├── NotFound                     NOT_FOUND              unknown, or not the caller's to see: one answer for both
    ├── FailedPrecondition           FAILED_PRECONDITION    right request, wrong state
    ├── Aborted                      ABORTED                lost a compare-and-swap (stale etag)
    ├── Unauthenticated              UNAUTHENTICATED        no or bad credential: the same words for every cause
    ├── PermissionDenied             PERMISSION_DENIED      known caller, missing right on something of its own
    ├── Overloaded                   RESOURCE_EXHAUSTED     queue, slots or memory; `retry_after_s`
    │   └── QuotaExceeded                                   a tenant's limit; the reason names it
    ├── StoreFull                    RESOURCE_EXHAUSTED     no room on the disk
    ├── Unavailable                  UNAVAILABLE            draining or restarting; `retry_after_s`
    ├── DeadlineExceeded             DEADLINE_EXCEEDED
    ├── Cancelled                    CANCELLED
    ├── DataLoss                     DATA_LOSS              stored bytes no longer have their hash
    └── InternalError                INTERNAL               a bug; carries no detail on the wire

`str(error)` of any class here is written for the person who gets it and is safe to send: it never holds a path of
the server, a stack or another tenant's name. Text of any other exception never leaves the process.

This module imports nothing, so that every process and floor can.
"""

from enum import IntEnum


class Code(IntEnum):
    """The status codes of gRPC this project uses, by their wire numbers (grpc itself is not imported here)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class AdamixError(Exception):
    """Root of the tree.

    Args:
        message: one sentence for the reader: what is wrong and, where there is one, the way out.
        reason: UPPER_SNAKE_CASE constant for programs (`google.rpc.ErrorInfo.reason`).
        field: path of the offending request field, where there is one.
        retry_after_s: seconds after which the same call may succeed; None where retrying does not help.
    """

    code: Code = Code.INTERNAL
    default_reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidInput(AdamixError):
    code = Code.INVALID_ARGUMENT
    default_reason = "INVALID_INPUT"


class InvalidConfig(InvalidInput):
    default_reason = "INVALID_CONFIG"


class InvalidData(InvalidInput):
    default_reason = "INVALID_DATA"


class InvalidAdapter(InvalidInput):
    default_reason = "INVALID_ADAPTER"


class InvalidRequest(InvalidInput):
    default_reason = "INVALID_REQUEST"


class NotFound(AdamixError):
    code = Code.NOT_FOUND
    default_reason = "NOT_FOUND"


class FailedPrecondition(AdamixError):
    code = Code.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Aborted(AdamixError):
    code = Code.ABORTED
    default_reason = "STALE_ETAG"


class Unauthenticated(AdamixError):
    code = Code.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(AdamixError):
    code = Code.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class Overloaded(AdamixError):
    code = Code.RESOURCE_EXHAUSTED
    default_reason = "OVERLOADED"


class QuotaExceeded(Overloaded):
    """A tenant has what it may have.

    Args:
        subject: whose limit it is, e.g. `tenants/acme`.
        limit: the quota.
        used: what is used of it without this call.
    """

    default_reason = "QUOTA_EXCEEDED"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
        subject: str = "",
        limit: int = 0,
        used: int = 0,
    ) -> None:
        super().__init__(message, reason=reason, field=field, retry_after_s=retry_after_s)
        self.subject = subject
        self.limit = limit
        self.used = used

    @classmethod
    def of(
        cls, quota: str, tenant: str, *, limit: int, used: int, retry_after_s: float | None = None
    ) -> "QuotaExceeded":
        """The error for a quota by its name, e.g. `max_tasks`; `QUOTA_MAX_TASKS` is its reason."""
        return cls(
            f"tenant {tenant} has reached its quota {quota}: {used:,} of {limit:,} are used",
            reason=f"QUOTA_{quota.upper()}",
            retry_after_s=retry_after_s,
            subject=f"tenants/{tenant}",
            limit=limit,
            used=used,
        )


class StoreFull(AdamixError):
    code = Code.RESOURCE_EXHAUSTED
    default_reason = "STORE_FULL"


class Unavailable(AdamixError):
    code = Code.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceeded(AdamixError):
    code = Code.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(AdamixError):
    code = Code.CANCELLED
    default_reason = "CANCELLED"


class DataLoss(AdamixError):
    code = Code.DATA_LOSS
    default_reason = "BLOB_CORRUPT"


class InternalError(AdamixError):
    code = Code.INTERNAL
    default_reason = "INTERNAL"
