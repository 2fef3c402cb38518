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
from adamix_server.names import tenant_not_found

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


def check_registration(connection: Connection, registration: Registration, defaults: Quotas) -> None:
    """Whether a tenant may have a version more, if it does not have it.

    Args:
        defaults: of tenants that set none of their own.

    Raises:
        NotFound: no such tenant (`TENANT_NOT_FOUND`).
        QuotaExceeded: it has as many tasks as it may have (`QUOTA_MAX_TASKS`), as many versions of this one
            (`QUOTA_MAX_VERSIONS_PER_TASK`), or as many bytes (`QUOTA_MAX_STORED_BYTES`). A file that another version
            of the tenant names takes no more bytes.
    """
    tenant, digest = registration.tenant, registration.digest
    quotas = _read_quotas(connection, tenant, defaults)
    mine = _tasks.tenant == tenant
    task_id = connection.scalar(select(_tasks.id).where(mine, _tasks.task == registration.task))
    versions = {} if task_id is None else changes.ready_versions(connection, task_id)
    if digest in versions:
        return
    if task_id is None and quotas.max_tasks is not None:
        count = select(func.count()).select_from(schema.tasks).where(mine)
        _check("max_tasks", tenant, quotas.max_tasks, int(connection.scalar(count) or 0))
    if quotas.max_versions_per_task is not None:
        _check("max_versions_per_task", tenant, quotas.max_versions_per_task, len(versions))
    if quotas.max_stored_bytes is not None and not _has_file(connection, tenant, digest):
        used = _stored_bytes(connection, tenant)
        _check("max_stored_bytes", tenant, quotas.max_stored_bytes, used, registration.num_bytes)


def check_new_pin(connection: Connection, tenant: str, defaults: Quotas) -> None:
    """Raises QuotaExceeded (`QUOTA_PINNED_VERSIONS`) if a tenant may pin no more versions."""
    limit = _read_quotas(connection, tenant, defaults).pinned_versions
    if limit is not None:
        count = select(func.count()).select_from(schema.pins).join(schema.tasks).where(_tasks.tenant == tenant)
        _check("pinned_versions", tenant, limit, int(connection.scalar(count) or 0))


def _read_quotas(connection: Connection, tenant: str, defaults: Quotas) -> Quotas:
    row = connection.execute(select_tenants.where(_tenants.tenant == tenant)).one_or_none()
    if row is None:
        raise tenant_not_found()
    return to_tenant(row).quotas.over(defaults)


def _check(quota: str, tenant: str, limit: int, used: int, wanted: int = 1) -> None:
    if used + wanted > limit:
        raise QuotaExceeded.of(quota, tenant, limit=limit, used=used)


def _has_file(connection: Connection, tenant: str, digest: str) -> bool:
    query = select(_versions.id).join_from(schema.versions, schema.tasks)
    found = query.where(_versions.digest == digest, schema.is_ready, _tasks.tenant == tenant).limit(1)
    return connection.execute(found).first() is not None


def _stored_bytes(connection: Connection, tenant: str) -> int:
    mine = select(_versions.digest, _versions.num_bytes).join_from(schema.versions, schema.tasks)
    files = mine.where(_tasks.tenant == tenant, schema.is_ready).distinct().subquery("files")
    return int(connection.scalar(select(func.sum(files.c.num_bytes))) or 0)
