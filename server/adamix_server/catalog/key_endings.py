"""Which keys have been ended, as one catalog remembers it, for another catalog of the same store that may not.

A backup is older than the store it is restored to: a key that was revoked in between must not come back with it.
"""

from pathlib import Path

import msgspec
from sqlalchemy import Connection, func, select, update

from adamix.errors import AdamixError
from adamix_server.catalog import changes, lineage, schema
from adamix_server.catalog.database import is_absent, reading

_keys, _audit = schema.keys.c, schema.audit.c


class Endings(msgspec.Struct, frozen=True):
    """What a catalog knows of keys.

    Attributes:
        ids: of all keys that it has.
        revoked: those that are; with those that it has forgotten, as far back as its audit tells.
        deleted: tenants that were deleted, with the time of the last deletion.
    """

    ids: frozenset[str]
    revoked: frozenset[str]
    deleted: dict[str, int]

    def has_ended(self, key_id: str, tenant: str, create_time_us: int) -> bool:
        """Whether a key was revoked, or has gone with its tenant."""
        return key_id in self.revoked or create_time_us <= self.deleted.get(tenant, -1)


def read_endings(connection: Connection) -> Endings:
    ids = connection.scalars(select(_keys.key_id))
    revoked = set(connection.scalars(select(_keys.key_id).where(_keys.revoke_time_us.is_not(None))))
    # Of a tenant with too many, the first to end are forgotten.
    ends = select(_audit.resource).where(schema.is_change, _audit.action == "revoke_key")
    revoked |= {resource.rpartition("/")[2] for resource in connection.scalars(ends)}
    deletions = select(_audit.tenant, func.max(_audit.time_us))
    deletions = deletions.where(schema.is_change, _audit.action == "delete_tenant")
    deleted = connection.execute(deletions.group_by(_audit.tenant))
    return Endings(frozenset(ids), frozenset(revoked), dict(deleted.all()))


def endings_of(catalog: Path, store_id: str) -> Endings | None:
    """What the catalog at a place says, if it is one of that store and can be read."""
    if is_absent(catalog):
        return None
    try:
        with reading(catalog) as connection:
            is_the_stores = lineage.read_identity(connection).store_id == store_id
            return read_endings(connection) if is_the_stores else None
    except AdamixError:
        return None


def loses_keys(older: Connection, newer: Endings) -> bool:
    """Whether a catalog has keys in force of which a newer one knows nothing, be it their end."""
    query = select(_keys.key_id, _keys.tenant, _keys.create_time_us).where(_keys.revoke_time_us.is_(None))
    return any(row[0] not in newer.ids and not newer.has_ended(*row) for row in older.execute(query))


def end_keys(connection: Connection, endings: Endings) -> int:
    """Revoke those in force that have ended by what another catalog knows; how many. Part of a larger change."""
    query = select(_keys.key_id, _keys.tenant, _keys.create_time_us).where(_keys.revoke_time_us.is_(None))
    ended = [row[0] for row in connection.execute(query) if endings.has_ended(*row)]
    for key_id in ended:
        revoked = update(schema.keys).where(_keys.key_id == key_id).values(revoke_time_us=changes.now_us())
        connection.execute(revoked)
    return len(ended)
