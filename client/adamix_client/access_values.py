"""What the client gives of tenants, keys, grants, the audit and usage: plain immutable values. No connection here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from adamix_client.errors import InvalidConfig
from adamix_client.values import to_json
from adamix_protos.v1 import admin_pb2

# In place of a tenant: all of them.
ALL_TENANTS = "-"
# By their names here; of the empty one the server's default.
SERVICE_CLASSES = {
    "": admin_pb2.SERVICE_CLASS_UNSPECIFIED,
    "interactive": admin_pb2.SERVICE_CLASS_INTERACTIVE,
    "batch": admin_pb2.SERVICE_CLASS_BATCH,
}
_CLASS = "SERVICE_CLASS_"


@dataclass(frozen=True, kw_only=True)
class _Told:
    """`json` is the same in proto3 JSON, with the proto's names of fields and default-valued fields."""

    json: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Tenant(_Told):
    """One tenant. `service_class` is `interactive` or `batch`; `quotas` are its own alone, by name."""

    name: str
    etag: str
    create_time: datetime
    weight: int
    service_class: str
    quotas: Mapping[str, int]

    @property
    def tenant(self) -> str:
        """The bare id."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Key(_Told):
    """One key, without its secret. Times are None for never; `last_used_date` is `YYYY-MM-DD`, or empty for never."""

    name: str
    id: str
    tenant: str
    role: str
    rights: tuple[str, ...]
    task_pattern: str
    networks: tuple[str, ...]
    display_name: str
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None
    last_used_date: str
    certificate_name: str


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key that was just made. `secret` is the whole key as it is sent, and told this once; empty for one of a
    certificate."""

    key: Key
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Grant(_Told):
    """A task, by its name, that is lent to `tenant`."""

    task: str
    tenant: str
    create_time: datetime


@dataclass(frozen=True, kw_only=True)
class AuditEntry(_Told):
    """Who did what, and how it ended. `hash` is over this entry and the hash of the one before.

    `action` and `revision` are those of a change of the catalog, else empty and 0.
    """

    id: int
    time: datetime
    principal: str
    peer: str
    method: str
    resource: str
    digest: str
    code: str
    reason: str
    detail: str
    hash: str
    tenant: str
    action: str
    revision: int


@dataclass(frozen=True, kw_only=True)
class Usage(_Told):
    """What a tenant has used since `since`, and what it has now. `rejected` counts refusals by reason."""

    tenant: str
    since: datetime
    calls: int
    input_tokens: int
    generated_tokens: int
    stored_bytes: int
    tasks: int
    versions: int
    rejected: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Identity(_Told):
    """Who the server takes the caller for. `principal` is empty where it asks nobody; `expire_time` None for never."""

    principal: str
    tenant: str
    rights: tuple[str, ...]
    task_pattern: str
    expire_time: datetime | None


def to_tenant(message: admin_pb2.Tenant) -> Tenant:
    return Tenant(
        json=to_json(message),
        name=message.name,
        etag=message.etag,
        create_time=message.create_time.ToDatetime(UTC),
        weight=message.weight,
        service_class=admin_pb2.ServiceClass.Name(message.service_class).removeprefix(_CLASS).lower(),
        quotas=dict(message.quotas),
    )


def to_key(message: admin_pb2.Key) -> Key:
    return Key(
        json=to_json(message),
        name=message.name,
        id=message.id,
        tenant=message.tenant,
        role=message.role,
        rights=tuple(message.rights),
        task_pattern=message.task_pattern,
        networks=tuple(message.networks),
        display_name=message.display_name,
        create_time=message.create_time.ToDatetime(UTC),
        expire_time=_time(message, "expire_time"),
        revoke_time=_time(message, "revoke_time"),
        last_used_date=message.last_used_date,
        certificate_name=message.certificate_name,
    )


def to_grant(message: admin_pb2.Grant) -> Grant:
    return Grant(
        json=to_json(message),
        task=message.task,
        tenant=message.tenant,
        create_time=message.create_time.ToDatetime(UTC),
    )


def to_entry(message: admin_pb2.AuditEntry) -> AuditEntry:
    return AuditEntry(
        json=to_json(message),
        id=message.id,
        time=message.time.ToDatetime(UTC),
        principal=message.principal,
        peer=message.peer,
        method=message.method,
        resource=message.resource,
        digest=message.digest,
        code=message.code,
        reason=message.reason,
        detail=message.detail,
        hash=message.hash,
        tenant=message.tenant,
        action=message.action,
        revision=message.revision,
    )


def to_usage(message: admin_pb2.TenantUsage) -> Usage:
    return Usage(
        json=to_json(message),
        tenant=message.tenant,
        since=message.since.ToDatetime(UTC),
        calls=message.calls,
        input_tokens=message.input_tokens,
        generated_tokens=message.generated_tokens,
        stored_bytes=message.stored_bytes,
        tasks=message.tasks,
        versions=message.versions,
        rejected=dict(message.rejected),
    )


def to_identity(message: admin_pb2.WhoAmIResponse) -> Identity:
    return Identity(
        json=to_json(message),
        principal=message.principal,
        tenant=message.tenant,
        rights=tuple(message.rights),
        task_pattern=message.task_pattern,
        expire_time=_time(message, "expire_time"),
    )


def tenant_message(tenant: str, weight: int, service_class: str, quotas: Mapping[str, int]) -> admin_pb2.Tenant:
    """Raises InvalidConfig: what is no class, or no number for the wire."""
    if service_class not in SERVICE_CLASSES:
        raise InvalidConfig(f"the class must be interactive or batch, not {service_class}", field="service_class")
    try:
        return admin_pb2.Tenant(name=tenant, weight=weight, service_class=SERVICE_CLASSES[service_class], quotas=quotas)
    except ValueError:
        raise InvalidConfig("a weight or a quota is larger than any can be") from None


def timestamp(time: datetime | None) -> Timestamp | None:
    """Without a zone it is this machine's."""
    if time is None:
        return None
    result = Timestamp()
    result.FromDatetime(time.astimezone(UTC))
    return result


def _time(message: Any, name: str) -> datetime | None:
    """None if it is not set."""
    if not message.HasField(name):
        return None
    time: datetime = getattr(message, name).ToDatetime(UTC)
    return time
