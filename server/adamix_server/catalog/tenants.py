"""Tenants in the catalog: what each is among others, what it may have, and its end.

Every mutation is one transaction, as those of `store.Catalog`. Knows no caller and no rights.
"""

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from adamix.errors import Aborted, FailedPrecondition, InvalidRequest
from adamix_server.access.principal import SERVER, Actor
from adamix_server.access.quotas import NO_QUOTAS, Quotas, ServiceClass, check_quotas, check_weight
from adamix_server.catalog import changes, schema
from adamix_server.catalog.access import TenantRow
from adamix_server.catalog.access_reading import grants_of, select_grants, select_tenants, to_tenant
from adamix_server.catalog.changes import Change, grant_name
from adamix_server.catalog.database import Database
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.paging import check_page_size, make_token, read_token
from adamix_server.catalog.rows import Page
from adamix_server.catalog.stored_quotas import Stored, read_stored
from adamix_server.catalog.traces import Traces
from adamix_server.config import DEFAULT_TENANT
from adamix_server.names import check_name, tenant_not_found

_tenants, _tasks, _versions = schema.tenants.c, schema.tasks.c, schema.versions.c
_keys, _requests = schema.keys.c, schema.requests.c

_CLASSES: tuple[ServiceClass, ...] = ("interactive", "batch")


class Tenants:
    """Part of a `store.Catalog`, which says what all its methods raise."""

    def __init__(self, database: Database, traces: Traces) -> None:
        self._database = database
        self._traces = traces

    def create(
        self,
        tenant: str,
        *,
        weight: int = 1,
        service_class: ServiceClass = "interactive",
        quotas: Quotas = NO_QUOTAS,
        by: Actor = SERVER,
    ) -> TenantRow:
        """Make a tenant.

        Raises:
            InvalidRequest: a malformed id (`ID_INVALID`), weight (`WEIGHT_INVALID`), class (`SERVICE_CLASS_INVALID`) or
                quota (`QUOTA_INVALID`).
            FailedPrecondition: there is one (`TENANT_EXISTS`).
        """
        check_name(tenant, "tenant")
        columns = _columns(weight, service_class, quotas)
        with self._traces.changing() as connection:
            if connection.execute(select(_tenants.tenant).where(_tenants.tenant == tenant)).first() is not None:
                raise FailedPrecondition(f"there is a tenant {tenant} already", reason="TENANT_EXISTS")
            now = changes.now_us()
            connection.execute(
                insert(schema.tenants).values(tenant=tenant, create_time_us=now, update_time_us=now, **columns)
            )
            changes.record_access(connection, tenant, "create_tenant", [("tenant", tenant, tenant)], by=by)
            return _find(connection, tenant)

    def get(self, tenant: str) -> TenantRow:
        """Raises NotFound (`TENANT_NOT_FOUND`)."""
        with self._database.read() as connection:
            return _find(connection, tenant)

    def list(self, page_size: int = 0, page_token: str = "") -> Page[TenantRow]:
        """All tenants by id, as many as fit in a page. Raises InvalidRequest on a bad page size or token."""
        listing = ("tenants",)
        size, key = check_page_size(page_size), read_token(page_token, listing, str)
        query = select_tenants.order_by(_tenants.tenant).limit(size + 1)
        if key is not None:
            query = query.where(_tenants.tenant > key[0])
        with self._database.read() as connection:
            rows = tuple(map(to_tenant, connection.execute(query)))
        return Page(rows[:size], make_token(listing, [rows[size - 1].tenant]) if len(rows) > size else "")

    def update(
        self,
        tenant: str,
        *,
        weight: int | None = None,
        service_class: ServiceClass | None = None,
        quotas: Quotas | None = None,
        etag: str = "",
        by: Actor = SERVER,
    ) -> TenantRow:
        """Change what is given; `quotas` are all of them.

        Raises:
            InvalidRequest: as `create`.
            NotFound: no such tenant (`TENANT_NOT_FOUND`).
            Aborted: the tenant is not as `etag` says.
        """
        with self._traces.changing() as connection:
            before = _find(connection, tenant, etag)
            after = _columns(
                before.weight if weight is None else weight,
                before.service_class if service_class is None else service_class,
                before.quotas if quotas is None else quotas,
            )
            if after == _columns(before.weight, before.service_class, before.quotas):
                return before
            row = {**after, "etag": schema.new_etag(), "update_time_us": changes.now_us()}
            connection.execute(update(schema.tenants).where(_tenants.tenant == tenant).values(row))
            detail = " ".join(f"{name}={value}" for name, value in after.items())
            changed: list[Change] = [("tenant", tenant, tenant)]
            changes.record_access(connection, tenant, "update_tenant", changed, detail=detail, by=by)
            return _find(connection, tenant)

    def delete(self, tenant: str, *, etag: str = "", force: bool = False, by: Actor = SERVER) -> None:
        """Remove a tenant with its keys, the grants of its tasks and to it, its usage and what it was answered.

        One that is made anew under this id begins with nothing.

        Args:
            force: also if it has tasks: they are deleted, and their bytes stay until `purge`.

        Raises:
            NotFound: no such tenant (`TENANT_NOT_FOUND`).
            FailedPrecondition: it has tasks (`TENANT_NOT_EMPTY`), or is the one that is always there
                (`TENANT_REQUIRED`).
            Aborted: the tenant is not as `etag` says.
        """
        of_tenant = _tasks.tenant == tenant
        with self._traces.changing() as connection:
            _find(connection, tenant, etag)
            if tenant == DEFAULT_TENANT:
                raise FailedPrecondition(
                    f"the tenant {DEFAULT_TENANT} is always there; delete its tasks and revoke its keys instead",
                    reason="TENANT_REQUIRED",
                )
            tasks = list(connection.scalars(select(_tasks.task).where(of_tenant)))
            if tasks and not force:
                raise FailedPrecondition(
                    f"tenant {tenant} has {len(tasks):,} tasks; delete them first, or say that they go with it (force)",
                    reason="TENANT_NOT_EMPTY",
                )
            query = select(_tasks.task, _versions.digest).join_from(schema.versions, schema.tasks)
            versions = [(tenant, *row) for row in connection.execute(query.where(of_tenant, schema.is_ready))]
            changed = [*_all_of(connection, tenant), *(("task", tenant, task) for task in tasks)]
            ids = select(_tasks.id).where(of_tenant)
            retired = update(schema.versions).where(_versions.task_id.in_(ids), schema.is_ready)
            connection.execute(retired.values(state=State.RETIRED))
            connection.execute(delete(schema.tasks).where(of_tenant))
            connection.execute(delete(schema.requests).where(_requests.tenant == tenant))
            connection.execute(delete(schema.tenants).where(_tenants.tenant == tenant))
            detail = f"tasks={len(tasks)} versions={len(versions)}"
            changes.record_access(connection, tenant, "delete_tenant", changed, detail=detail, by=by)
        self._traces.forget((owner, task, digest) for owner, task, digest in versions)

    def stored(self, tenant: str) -> Stored:
        """How much of the store a tenant has. Raises NotFound (`TENANT_NOT_FOUND`)."""
        with self._database.read() as connection:
            changes.check_tenant(connection, tenant)
            return read_stored(connection, tenant)


def _find(connection: Connection, tenant: str, etag: str = "") -> TenantRow:
    check_name(tenant, "tenant")
    row = connection.execute(select_tenants.where(_tenants.tenant == tenant)).one_or_none()
    if row is None:
        raise tenant_not_found()
    if etag and etag != row.etag:
        raise Aborted("the tenant has changed since you read it; read it again and decide anew")
    return to_tenant(row)


def _columns(weight: int, service_class: ServiceClass, quotas: Quotas) -> dict[str, object]:
    """Of the table. Raises InvalidRequest."""
    if service_class not in _CLASSES:
        raise InvalidRequest(
            f"service_class must be one of {', '.join(_CLASSES)}", reason="SERVICE_CLASS_INVALID", field="service_class"
        )
    return {
        "weight": check_weight(weight),
        "service_class": service_class,
        "quotas": msgspec.json.encode(check_quotas(quotas.to_map()).to_map()).decode(),
    }


def _all_of(connection: Connection, tenant: str) -> list[Change]:
    """What snapshots have of a tenant besides its tasks: itself, its keys, and the grants of its tasks and to it."""
    keys = connection.scalars(select(_keys.key_id).where(_keys.tenant == tenant))
    grants = connection.execute(select_grants.where(grants_of(tenant)))
    return [
        ("tenant", tenant, tenant),
        *(("key", tenant, key_id) for key_id in keys),
        *(("grant", row.owner, grant_name(row.task, row.tenant)) for row in grants),
    ]
