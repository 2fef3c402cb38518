"""What a benchmark changes on a running server, as its operator does."""

from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from adamix_protos.v1 import admin_pb2, admin_pb2_grpc
from adamix_server.api import status

_TIMEOUT_S = 20.0


def set_weight(address: str, operator_key: str, tenant: str, weight: int) -> None:
    """A tenant's weight from now on. Raises AdamixError, as a server that cannot do that does."""
    changed = admin_pb2.Tenant(name=f"tenants/{tenant}", weight=weight)
    request = admin_pb2.UpdateTenantRequest(tenant=changed, update_mask=FieldMask(paths=["weight"]))
    _ask(address, operator_key, "UpdateTenant", request)


def revoke(address: str, operator_key: str, key_id: str) -> None:
    """Revoke a key; returns when no front end takes it any more. Raises AdamixError."""
    _ask(address, operator_key, "RevokeKey", admin_pb2.RevokeKeyRequest(key=key_id))


def _ask(address: str, operator_key: str, method: str, request: Any) -> None:
    with grpc.insecure_channel(address) as channel:
        call = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
        try:
            call(request, timeout=_TIMEOUT_S, metadata=(("authorization", f"Bearer {operator_key}"),))
        except grpc.RpcError as error:
            raise status.from_rpc_error(error) from None
