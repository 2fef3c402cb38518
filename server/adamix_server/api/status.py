"""Errors of `adamix.errors` -> `google.rpc.Status` and the trailers of a gRPC call. `adamix_client.status` reads them.

Knows no servicer and no channel.
"""

import math
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from adamix.errors import AdamixError, Code, InternalError, QuotaExceeded
from adamix_client.status import DETAILS_KEY, DOMAIN, clip
from adamix_server import retry
from adamix_server.access.redaction import without_secrets

PUSHBACK_KEY = "grpc-retry-pushback-ms"
# What is no number of milliseconds, or below 0, ends the retries of a client's library.
_NEVER = "-1"
MAX_ERROR_BYTES = 512

_GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: AdamixError, resource: str = "") -> Any:
    """The google.rpc.Status of an error.

    ErrorInfo always, of a quota with its `subject`, `limit` and what is `used`; BadRequest when a field is to blame;
    RetryInfo when waiting helps, with the error's estimate up to a fifth longer or shorter (of a quota never shorter:
    there it is no estimate), so that those refused together do not come back together; QuotaFailure on
    RESOURCE_EXHAUSTED; ResourceInfo, naming `resource` as the caller did, on NOT_FOUND. No text has a key or a token in
    it, also where a caller wrote it.
    """
    message = clip(without_secrets(error.message), MAX_ERROR_BYTES)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    if isinstance(error, QuotaExceeded):
        info.metadata.update({"subject": error.subject, "limit": str(error.limit), "used": str(error.used)})
    details: list[Any] = [info]
    if error.field is not None and error.code is Code.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        vary = retry.delayed if isinstance(error, QuotaExceeded) else retry.jittered
        delay.FromMilliseconds(max(1, math.ceil(vary(error.retry_after_s) * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.code is Code.RESOURCE_EXHAUSTED:
        subject = error.subject if isinstance(error, QuotaExceeded) else error.reason
        shortage = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)
        details.append(error_details_pb2.QuotaFailure(violations=[shortage]))
    if error.code is Code.NOT_FOUND:
        name, kind = clip(without_secrets(resource), MAX_ERROR_BYTES), _kind_of(resource)
        details.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=message))
    status = status_pb2.Status(code=int(error.code), message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _kind_of(resource: str) -> str:
    """The type of what has this name."""
    if "/versions/" in resource:
        return "adamix.v1/Version"
    if "/keys/" in resource:
        return "adamix.v1/Key"
    is_tenant = resource.startswith("tenants/") and resource.count("/") == 1
    return "adamix.v1/Tenant" if is_tenant else "adamix.v1/Task"


def to_trailers(error: AdamixError, status: Any) -> list[tuple[str, str | bytes]]:
    """The trailing metadata that carries `status`, with the retry push-back of gRFC A6: as long as its RetryInfo.

    RESOURCE_EXHAUSTED without one (too many pins) passes by nothing that a client does: its library
    is told not to try again. UNAVAILABLE without one may pass, nobody knows when: the library's own policy decides.
    """
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if (delay_ms := _retry_delay_ms(status)) is not None:
        trailers.append((PUSHBACK_KEY, str(delay_ms)))
    elif error.code is Code.RESOURCE_EXHAUSTED:
        trailers.append((PUSHBACK_KEY, _NEVER))
    return trailers


def _retry_delay_ms(status: Any) -> int | None:
    found = error_details_pb2.RetryInfo()
    delays = (found.retry_delay.ToMilliseconds() for detail in status.details if detail.Unpack(found))
    return next(delays, None)


def grpc_code(error: AdamixError) -> grpc.StatusCode:
    """The code of an error in grpc's own enum."""
    return _GRPC_CODES[int(error.code)]


def unimplemented(method: str) -> AdamixError:
    """The answer for a method that does not exist, or not yet."""
    error = AdamixError(f"this server does not implement {clip(method, 128)}", reason="UNIMPLEMENTED")
    error.code = Code.UNIMPLEMENTED
    return error


def internal(request_id: str, cause: AdamixError | None = None) -> InternalError:
    """The answer to a bug: nothing but the id under which the log has the details."""
    return InternalError(f"internal error, id={request_id}", reason=cause.reason if cause else None)
