"""From tables to who may call: the queries behind `Snapshot.access`, and the rows of tenants, keys and grants.

Everything is read once; later only what the change log names. Rows of one tenant, or with the same rights, share what
they have in common: a front end keeps a row of each of tens of thousands of keys.
"""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, select

from adamix_server.access.quotas import NO_QUOTAS, QUOTA_NAMES, Quotas
from adamix_server.access.rights import RIGHTS, Right
from adamix_server.catalog import schema
from adamix_server.catalog.access import Access, GrantRow, KeyRow, TenantRow
from adamix_server.catalog.changes import Kind
from adamix_server.catalog.parted_map import PartedMap

_tenants, _keys, _grants, _tasks = schema.tenants.c, schema.keys.c, schema.grants.c, schema.tasks.c

# (owner, task, tenant)
Grant = tuple[str, str, str]

# Below SQLite's limit on bound values in one statement (32,766).
_ROWS_PER_QUERY = 5_000

_quotas = msgspec.json.Decoder(dict[str, int])
# What many keys say alike is one object.
_rights: dict[str, frozenset[Right]] = {}

select_tenants: Select[Any] = select(schema.tenants)
select_keys: Select[Any] = select(schema.keys)
select_grants: Select[Any] = select(
    _tasks.tenant.label("owner"), _tasks.task, _grants.tenant, _grants.create_time_us
).join_from(schema.grants, schema.tasks)


class AccessMaps:
    """The maps that an `Access` shows, which the next one is made from. Immutable."""

    def __init__(
        self,
        tenants: PartedMap[str, TenantRow],
        keys: PartedMap[str, KeyRow],
        certificates: PartedMap[str, str],
        grants: PartedMap[Grant, GrantRow],
    ) -> None:
        self._tenants, self._keys, self._certificates, self._grants = tenants, keys, certificates, grants
        self.access = Access(tenants=tenants, keys=keys, certificates=certificates, grants=grants.keys())

    @classmethod
    def read(cls, connection: Connection) -> "AccessMaps":
        """All of it."""
        keys = PartedMap.of((row.id, row) for row in map(to_key, connection.execute(select_keys)))
        return cls(
            PartedMap.of((row.tenant, row) for row in map(to_tenant, connection.execute(select_tenants))),
            keys,
            PartedMap.of((row.certificate_name, row.id) for row in keys.values() if _is_certificate(row)),
            PartedMap.of((_name_of(row), row) for row in map(to_grant, connection.execute(select_grants))),
        )

    def changed(self, connection: Connection, changed: Mapping[Kind, Set[tuple[str, str]]]) -> "AccessMaps":
        """What the change log names, read again; the same object if it names nothing of this."""
        if not (changed["tenant"] or changed["key"] or changed["grant"]):
            return self
        tenants: dict[str, TenantRow | None] = dict.fromkeys(tenant for tenant, _ in changed["tenant"])
        for row in _read(connection, select_tenants, _tenants.tenant, tenants):
            tenants[row.tenant] = to_tenant(row)
        keys: dict[str, KeyRow | None] = dict.fromkeys(key_id for _, key_id in changed["key"])
        for row in _read(connection, select_keys, _keys.key_id, keys):
            keys[row.key_id] = to_key(row)
        grants: dict[Grant, GrantRow | None] = {}
        for owner, name in changed["grant"]:
            task, _, tenant = name.partition("/")
            grants[owner, task, tenant] = None
        for row in _read_grants(connection, grants):
            grants[row.owner, row.task, row.tenant] = to_grant(row)
        return AccessMaps(
            self._tenants.changed(tenants),
            self._keys.changed(keys),
            self._certificates.changed(self._of_certificates(keys)),
            self._grants.changed(grants),
        )

    def _of_certificates(self, keys: Mapping[str, KeyRow | None]) -> dict[str, str | None]:
        """Which certificate names stand for another key now, and which for none."""
        changed: dict[str, str | None] = {}
        for key_id in keys:
            before = self._keys.get(key_id)
            if before is not None and self._certificates.get(before.certificate_name) == key_id:
                changed[before.certificate_name] = None
        changed |= {row.certificate_name: row.id for row in keys.values() if row is not None and _is_certificate(row)}
        return changed


NO_ACCESS_MAPS = AccessMaps(PartedMap.of(()), PartedMap.of(()), PartedMap.of(()), PartedMap.of(()))


def grants_of(tenant: str) -> ColumnElement[bool]:
    """Of `select_grants`: those of a tenant's tasks, and those to it."""
    mine = select(_tasks.id).where(_tasks.tenant == tenant)
    return _grants.task_id.in_(mine) | (_grants.tenant == tenant)


def to_tenant(row: Row[Any]) -> TenantRow:
    # A newer adamix may know others; a server that cannot read its tenants would be of no use to any.
    quotas = {name: value for name, value in _quotas.decode(row.quotas).items() if name in QUOTA_NAMES}
    return TenantRow(
        tenant=sys.intern(row.tenant),
        etag=row.etag,
        create_time_us=row.create_time_us,
        update_time_us=row.update_time_us,
        weight=row.weight,
        service_class=row.service_class,
        quotas=Quotas(**quotas) if quotas else NO_QUOTAS,
    )


def to_key(row: Row[Any]) -> KeyRow:
    return KeyRow(
        id=row.key_id,
        tenant=sys.intern(row.tenant),
        digest=row.digest,
        rights=_read_rights(row.rights),
        task_pattern=sys.intern(row.task_pattern),
        networks=tuple(map(sys.intern, row.networks.split())),
        display_name=row.display_name,
        create_time_us=row.create_time_us,
        expire_time_us=row.expire_time_us,
        revoke_time_us=row.revoke_time_us,
        certificate_name=row.certificate_name,
    )


def to_grant(row: Row[Any]) -> GrantRow:
    return GrantRow(
        owner=sys.intern(row.owner),
        task=row.task,
        tenant=sys.intern(row.tenant),
        create_time_us=row.create_time_us,
    )


def write_rights(rights: Collection[Right]) -> str:
    """As the table has them."""
    return " ".join(right for right in RIGHTS if right in rights)


def _read_rights(text: str) -> frozenset[Right]:
    if (rights := _rights.get(text)) is None:
        words = text.split()
        rights = _rights[text] = frozenset(right for right in RIGHTS if right in words)
    return rights


def _is_certificate(row: KeyRow) -> bool:
    return row.certificate_name != "" and row.revoke_time_us is None


def _name_of(row: GrantRow) -> Grant:
    return row.owner, row.task, row.tenant


def _read_grants(connection: Connection, wanted: Iterable[Grant]) -> Iterator[Row[Any]]:
    """Those that there are, and perhaps others of the same tasks."""
    by_owner: defaultdict[str, list[Grant]] = defaultdict(list)
    for grant in wanted:
        by_owner[grant[0]].append(grant)
    for owner, grants in by_owner.items():
        for start in range(0, len(grants), _ROWS_PER_QUERY):
            some = grants[start : start + _ROWS_PER_QUERY]
            # Not as triples, for which SQLite would look at every grant there is.
            tasks, tenants = {task for _, task, _ in some}, {tenant for _, _, tenant in some}
            query = select_grants.where(_tasks.tenant == owner, _tasks.task.in_(tasks), _grants.tenant.in_(tenants))
            yield from connection.execute(query)


def _read(
    connection: Connection, query: Select[Any], column: ColumnElement[Any] | Any, values: Iterable[Any]
) -> Iterator[Row[Any]]:
    wanted = list(values)
    for start in range(0, len(wanted), _ROWS_PER_QUERY):
        yield from connection.execute(query.where(column.in_(wanted[start : start + _ROWS_PER_QUERY])))
