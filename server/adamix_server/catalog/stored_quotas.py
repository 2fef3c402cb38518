"""How much of the store a tenant has, and whether it may have more: counted in the transaction that adds, so exactly.

What is there already is never refused, however far a quota was lowered below it. Knows no task by name.
"""

import msgspec
from sqlalchemy import Connection, func, select

from adamix.errors import QuotaExceeded
from adamix_server.access.quotas import Quotas
from adamix_server.catalog import changes, schema
from adamix_server.catalog.access_reading import select_tenants, to_tenant
from adamix_server.catalog.rows import Registration
from adamix_server.names import check_name, tenant_not_found

_tenants, _tasks, _versions, _pins = schema.tenants.c, schema.tasks.c, schema.versions.c, schema.pins.c


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has in the store. Bytes are those of the files that its versions name, each file once."""

    tasks: int
    versions: int
    num_bytes: int


def read_stored(connection: Connection, tenant: str) -> Stored:
    tasks = select(func.count()).select_from(schema.tasks).where(_tasks.tenant == tenant)
    versions = (
        select(func.count())
        .select_from(schema.versions)
        .join(schema.tasks)
        .where(_tasks.tenant == tenant, schema.is_ready)
    )
    return Stored(
        tasks=int(connection.scalar(tasks) or 0),
        versions=int(connection.scalar(versions) or 0),
        num_bytes=_stored_bytes(connection, tenant),
    )


def read_quotas(connection: Connection, tenant: str, defaults: Quotas) -> Quotas:
    """A tenant's own quotas over the server's. Raises InvalidRequest, NotFound (`TENANT_NOT_FOUND`)."""
    check_name(tenant, "tenant")
    row = connection.execute(select_tenants.where(_tenants.tenant == tenant)).one_or_none()
    if row is None:
        raise tenant_not_found()
    return to_tenant(row).quotas.over(defaults)


def check_new_task(connection: Connection, tenant: str, quotas: Quotas) -> None:
    """Raises QuotaExceeded (`QUOTA_MAX_TASKS`) if the tenant may have no more tasks."""
    if quotas.max_tasks is not None:
        count = select(func.count()).select_from(schema.tasks).where(_tasks.tenant == tenant)
        _check("max_tasks", tenant, quotas.max_tasks, int(connection.scalar(count) or 0))


def check_new_version(connection: Connection, registration: Registration, task_id: int, quotas: Quotas) -> None:
    """Whether a task may get a version that it does not have.

    Raises:
        QuotaExceeded: it has as many as it may have (`QUOTA_MAX_VERSIONS_PER_TASK`), or its tenant as many bytes
            (`QUOTA_MAX_STORED_BYTES`). A file that another version of the tenant names takes no more bytes.
    """
    tenant = registration.tenant
    if quotas.max_versions_per_task is not None:
        used = len(changes.ready_versions(connection, task_id))
        _check("max_versions_per_task", tenant, quotas.max_versions_per_task, used)
    if quotas.max_stored_bytes is not None and not _has_file(connection, tenant, registration.digest):
        used = _stored_bytes(connection, tenant)
        _check("max_stored_bytes", tenant, quotas.max_stored_bytes, used, registration.num_bytes)


def check_new_pin(connection: Connection, tenant: str, quotas: Quotas) -> None:
    """Raises QuotaExceeded (`QUOTA_PINNED_VERSIONS`) if the tenant may pin no more versions."""
    if quotas.pinned_versions is not None:
        count = select(func.count()).select_from(schema.pins).join(schema.tasks).where(_tasks.tenant == tenant)
        _check("pinned_versions", tenant, quotas.pinned_versions, int(connection.scalar(count) or 0))


def _check(quota: str, tenant: str, limit: int, used: int, wanted: int = 1) -> None:
    if used + wanted > limit:
        raise QuotaExceeded.of(quota, tenant, limit=limit, used=used)


def _has_file(connection: Connection, tenant: str, digest: str) -> bool:
    query = select(_versions.id).join_from(schema.versions, schema.tasks)
    found = query.where(_versions.digest == digest, schema.is_ready, _tasks.tenant == tenant).limit(1)
    return connection.execute(found).first() is not None


def _stored_bytes(connection: Connection, tenant: str) -> int:
    mine = select(_versions.digest, _versions.num_bytes).join_from(schema.versions, schema.tasks)
    files = mine.where(_tasks.tenant == tenant, schema.is_ready).distinct().subquery()
    return int(connection.scalar(select(func.sum(files.c.num_bytes))) or 0)
