"""What each tenant has used: sums that front ends counted, and what the catalog itself has of it.

The sums are written by one writer, some seconds late; what was not written yet is lost with its process. What is stored
is counted when it is asked for.
"""

from collections.abc import Iterable, Mapping

import msgspec
from sqlalchemy import BigInteger, Connection, String, bindparam, func, select
from sqlalchemy.dialects.sqlite import Insert, insert

from adamix_server.access.sums import Sums
from adamix_server.catalog import schema
from adamix_server.catalog.database import Database
from adamix_server.names import check_name, tenant_not_found

_usage, _rejected, _tenants = schema.usage.c, schema.usage_rejected.c, schema.tenants.c
_tasks, _versions = schema.tasks.c, schema.versions.c
_COUNTED = ("calls", "input_tokens", "generated_tokens")


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has used since `since_us`, and has now.

    Attributes:
        stored_bytes: of the adapter files that its versions name, each file once.
        rejected: refused inputs and calls, by reason.
    """

    tenant: str
    since_us: int
    calls: int
    input_tokens: int
    generated_tokens: int
    stored_bytes: int
    tasks: int
    versions: int
    rejected: Mapping[str, int]


def add(connection: Connection, sums: Iterable[Sums]) -> None:
    """Add to what was used, inside a write transaction. Tenants that are gone have used nothing.

    There may be thousands, and everybody else who writes waits: two statements, each compiled once.
    """
    used, rejected = list[dict[str, object]](), list[dict[str, object]]()
    for each in sums:
        used.append({"of": each.tenant} | {name: getattr(each, name) for name in _COUNTED})
        rejected += ({"of": each.tenant, "why": why[:64], "times": times} for why, times in each.rejected.items())
    if used:
        connection.execute(_ADD_USED, used)
    if rejected:
        connection.execute(_ADD_REJECTED, rejected)


def _add_used() -> Insert:
    amounts = [bindparam(name, type_=BigInteger).label(name) for name in _COUNTED]
    tenant = select(_tenants.tenant, _tenants.create_time_us, *amounts).where(_tenants.tenant == bindparam("of"))
    row = insert(schema.usage).from_select(["tenant", "since_us", *_COUNTED], tenant)
    more = {name: _usage[name] + row.excluded[name] for name in _COUNTED}
    return row.on_conflict_do_update(index_elements=["tenant"], set_=more)


def _add_rejected() -> Insert:
    what = bindparam("why", type_=String), bindparam("times", type_=BigInteger)
    reason = select(_tenants.tenant, *what).where(_tenants.tenant == bindparam("of"))
    row = insert(schema.usage_rejected).from_select(["tenant", "reason", "number"], reason)
    more = {"number": _rejected.number + row.excluded.number}
    return row.on_conflict_do_update(index_elements=["tenant", "reason"], set_=more)


_ADD_USED, _ADD_REJECTED = _add_used(), _add_rejected()


class UsageLog:
    """What tenants have used, in one catalog. The methods block on the disk."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, sums: Iterable[Sums]) -> None:
        """Write sums down, all or none. Raises StoreFull, Unavailable."""
        with self._database.write() as connection:
            add(connection, sums)

    def read(self, tenant: str) -> UsageRow:
        """What a tenant has used. Raises InvalidRequest on a malformed id, and NotFound (`TENANT_NOT_FOUND`)."""
        check_name(tenant, "tenant")
        with self._database.read() as connection:
            created_us = connection.scalar(select(_tenants.create_time_us).where(_tenants.tenant == tenant))
            if created_us is None:
                raise tenant_not_found()
            counted = [_usage.since_us, *(_usage[name] for name in _COUNTED)]
            used = connection.execute(select(*counted).where(_usage.tenant == tenant)).one_or_none()
            since_us, calls, input_tokens, generated_tokens = used if used is not None else (created_us, 0, 0, 0)
            reasons = select(_rejected.reason, _rejected.number).where(_rejected.tenant == tenant)
            rejected: dict[str, int] = dict(connection.execute(reasons.order_by(_rejected.reason)).all())
            tasks = connection.scalars(select(func.count()).where(_tasks.tenant == tenant)).one()
            ready = (_versions.task_id == _tasks.id) & schema.is_ready & (_tasks.tenant == tenant)
            versions = connection.scalars(select(func.count()).where(ready)).one()
            files = select(func.max(_versions.num_bytes).label("size")).where(ready).group_by(_versions.digest)
            stored_bytes = connection.scalars(select(func.coalesce(func.sum(files.subquery().c.size), 0))).one()
        return UsageRow(
            tenant=tenant,
            since_us=since_us,
            calls=calls,
            input_tokens=input_tokens,
            generated_tokens=generated_tokens,
            stored_bytes=int(stored_bytes),
            tasks=tasks,
            versions=versions,
            rejected=rejected,
        )
