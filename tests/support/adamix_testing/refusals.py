"""How a call over gRPC failed: its code, and the details of its status by the name of their type."""

from collections.abc import Awaitable, Iterable
from typing import Any, cast

import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """(code, reason) of a call that must fail; what the transport itself ended has no reason."""
    error = await failure(call)
    code: grpc.StatusCode = error.code()
    status = _status(error)
    return code, "" if status is None else reason(status)


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The status with its details, as the front end gives it to every call that it refuses."""
    status = _status(error)
    assert status is not None, f"no details: {error}"
    return status


def details(status: status_pb2.Status) -> dict[str, Any]:
    """`ErrorInfo`, `BadRequest`, `RetryInfo`, … -> the message of that type, in the order of the status."""
    found = {}
    for packed in status.details:
        message = getattr(error_details_pb2, packed.type_url.rsplit(".", 1)[1])()
        assert packed.Unpack(message)
        found[type(message).__name__] = message
    return found


def reason(status: status_pb2.Status) -> str:
    """The reason of our own error tree: it comes first in every status."""
    kind, info = next(iter(details(status).items()))
    assert (kind, info.domain) == ("ErrorInfo", "adamix")
    return str(info.reason)


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    # The stubs know the metadata of the synchronous API alone; those of grpc.aio are pairs.
    metadata: Iterable[tuple[str, Any]] = cast("Any", error.trailing_metadata())
    packed = dict(metadata).get("grpc-status-details-bin")
    return None if packed is None else status_pb2.Status.FromString(packed)
