"""Grants in the catalog: tasks lent to other tenants for answers.

A grant is of a task that there is: it goes with the task, and with the tenant that it is lent to. Every mutation is one
transaction, as those of `store.Catalog`.
"""

from itertools import islice

from sqlalchemy import delete, func, insert, select, tuple_

from adamix.errors import InvalidRequest, NotFound, Overloaded
from adamix_server.access.principal import SERVER, Actor
from adamix_server.catalog import changes, schema
from adamix_server.catalog.access import GrantRow
from adamix_server.catalog.access_reading import grants_of, select_grants, to_grant
from adamix_server.catalog.changes import Change, grant_name
from adamix_server.catalog.database import Database
from adamix_server.catalog.paging import check_page_size, make_token, read_token
from adamix_server.catalog.reading import IsListed
from adamix_server.catalog.rows import Page
from adamix_server.catalog.traces import Traces
from adamix_server.limits.tenants import MAX_GRANTS_PER_TENANT
from adamix_server.names import check_name

_grants, _tasks = schema.grants.c, schema.tasks.c


class Grants:
    """Part of a `store.Catalog`, which says what all its methods raise."""

    def __init__(self, database: Database, traces: Traces) -> None:
        self._database = database
        self._traces = traces

    def add(self, owner: str, task: str, tenant: str, by: Actor = SERVER) -> GrantRow:
        """Lend a task to a tenant; if it is lent already, nothing changes.

        Raises:
            InvalidRequest: a malformed id, or the task is the tenant's own (`GRANT_TO_OWNER`).
            NotFound: no such task, or no such tenant (`TENANT_NOT_FOUND`).
            Overloaded: the owner has lent too many (`TOO_MANY_GRANTS`).
        """
        with self._traces.changing() as connection:
            task_id = changes.find_task(connection, owner, task)
            changes.check_tenant(connection, tenant)
            if owner == tenant:
                raise InvalidRequest(
                    "the task is the tenant's own; it needs no grant", reason="GRANT_TO_OWNER", field="tenant"
                )
            mine = (_grants.task_id == task_id) & (_grants.tenant == tenant)
            if (known := connection.execute(select_grants.where(mine)).one_or_none()) is not None:
                return to_grant(known)
            count = select(func.count()).select_from(schema.grants).join(schema.tasks).where(_tasks.tenant == owner)
            if int(connection.scalar(count) or 0) >= MAX_GRANTS_PER_TENANT:
                raise Overloaded(
                    f"tenant {owner} has {MAX_GRANTS_PER_TENANT:,} grants of its tasks, which is the most",
                    reason="TOO_MANY_GRANTS",
                )
            now = changes.now_us()
            connection.execute(insert(schema.grants).values(task_id=task_id, tenant=tenant, create_time_us=now))
            changed: list[Change] = [("grant", owner, grant_name(task, tenant))]
            changes.record_access(connection, owner, "add_grant", changed, task=task, detail=tenant, by=by)
            return GrantRow(owner=owner, task=task, tenant=tenant, create_time_us=now)

    def remove(self, owner: str, task: str, tenant: str, by: Actor = SERVER) -> None:
        """Raises InvalidRequest, NotFound: no such task, or it is not lent to that tenant."""
        check_name(tenant, "tenant")
        with self._traces.changing() as connection:
            task_id = changes.find_task(connection, owner, task)
            mine = (_grants.task_id == task_id) & (_grants.tenant == tenant)
            if not connection.execute(delete(schema.grants).where(mine)).rowcount:
                raise NotFound("grant not found")
            changed: list[Change] = [("grant", owner, grant_name(task, tenant))]
            changes.record_access(connection, owner, "remove_grant", changed, task=task, detail=tenant, by=by)

    def list(
        self, tenant: str, page_size: int = 0, page_token: str = "", is_listed: IsListed | None = None
    ) -> Page[GrantRow]:
        """The grants of a tenant's tasks and to it, by owner, task and tenant, as many as fit in a page.

        Args:
            is_listed: whether those of tasks of this id are; None for all. Of others not even the token tells.

        Raises:
            InvalidRequest: a malformed id, or a bad page size or token.
        """
        listing = ("grants", check_name(tenant, "tenant"))
        size, key = check_page_size(page_size), read_token(page_token, listing, str, str, str)
        name = _tasks.tenant, _tasks.task, _grants.tenant
        query = select_grants.where(grants_of(tenant))
        if key is not None:
            query = query.where(tuple_(*name) > tuple_(*key))
        # No more is read than it takes.
        with (
            self._database.read() as connection,
            connection.execute(query.order_by(*name)).yield_per(size + 1) as found,
        ):
            listed = (row for row in map(to_grant, found) if is_listed is None or is_listed(row.task))
            rows = tuple(islice(listed, size + 1))
        last = rows[size - 1] if len(rows) > size else None
        return Page(rows[:size], "" if last is None else make_token(listing, [last.owner, last.task, last.tenant]))
