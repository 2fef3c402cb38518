"""Who may call, and what they did -> messages of `adamix.v1`. Pure functions, as those of `convert.py`."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from adamix_protos.v1 import admin_pb2
from adamix_server.access.principal import Principal
from adamix_server.access.quotas import ServiceClass
from adamix_server.access.rights import RIGHTS, Right, role_of
from adamix_server.api.resource_names import key_name, task_name, tenant_name
from adamix_server.catalog.access import GrantRow, KeyRow, TenantRow
from adamix_server.catalog.audit import EntryRow
from adamix_server.catalog.usage import UsageRow

_CLASSES: dict[ServiceClass, Any] = {
    "interactive": admin_pb2.SERVICE_CLASS_INTERACTIVE,
    "batch": admin_pb2.SERVICE_CLASS_BATCH,
}
# The last second that a timestamp can say, of the year 9999.
_MAX_TIME_S = 253_402_300_799


def to_tenant(row: TenantRow) -> admin_pb2.Tenant:
    return admin_pb2.Tenant(
        name=tenant_name(row.tenant),
        etag=row.etag,
        create_time=_timestamp(row.create_time_us),
        weight=row.weight,
        service_class=_CLASSES[row.service_class],
        quotas=row.quotas.to_map(),
    )


def to_key(row: KeyRow, last_used_date: str = "") -> admin_pb2.Key:
    """A key without its secret, which nobody has any more."""
    return admin_pb2.Key(
        name=key_name(row.tenant, row.id),
        id=row.id,
        tenant=row.tenant,
        role=role_of(row.rights),
        rights=in_order(row.rights),
        task_pattern=row.task_pattern,
        networks=row.networks,
        display_name=row.display_name,
        create_time=_timestamp(row.create_time_us),
        expire_time=_timestamp(row.expire_time_us),
        revoke_time=_timestamp(row.revoke_time_us),
        last_used_date=last_used_date,
        certificate_name=row.certificate_name,
    )


def to_grant(row: GrantRow) -> admin_pb2.Grant:
    return admin_pb2.Grant(
        task=task_name(row.owner, row.task), tenant=row.tenant, create_time=_timestamp(row.create_time_us)
    )


def to_entry(row: EntryRow) -> admin_pb2.AuditEntry:
    return admin_pb2.AuditEntry(
        id=row.id,
        time=_timestamp(row.time_us),
        principal=row.principal,
        peer=row.peer,
        method=row.what,
        resource=row.resource,
        digest=row.digest,
        code=row.code,
        reason=row.reason,
        detail=row.detail,
        hash=row.hash,
        tenant=row.tenant,
        action=row.action,
        revision=row.revision,
    )


def to_usage(row: UsageRow) -> admin_pb2.TenantUsage:
    return admin_pb2.TenantUsage(
        tenant=row.tenant,
        since=_timestamp(row.since_us),
        calls=row.calls,
        input_tokens=row.input_tokens,
        generated_tokens=row.generated_tokens,
        stored_bytes=row.stored_bytes,
        tasks=row.tasks,
        versions=row.versions,
        rejected=row.rejected,
    )


def to_identity(principal: Principal) -> admin_pb2.WhoAmIResponse:
    expires = int(principal.expire_time_s * 1e6) if principal.expire_time_s <= _MAX_TIME_S else None
    return admin_pb2.WhoAmIResponse(
        principal=principal.name,
        tenant=principal.tenant,
        rights=in_order(principal.rights),
        task_pattern=principal.task_pattern,
        expire_time=_timestamp(expires),
    )


def in_order(rights: frozenset[Right]) -> list[Right]:
    """Rights in the order in which they are always told."""
    return [right for right in RIGHTS if right in rights]


def _timestamp(time_us: int | None) -> Any:
    """None for a time that never comes, or has not come yet."""
    if time_us is None:
        return None
    result = Timestamp()
    result.FromMicroseconds(time_us)
    return result
