"""Whether a catalog is the one its store had, or one that was lost, put back or taken from elsewhere.

`store.json` says which store it is and how far its catalog has come; origins say what was registered. A catalog that
knows less than they do is refused, with the ways on: what it does not name would otherwise be taken for deleted. Reads,
and changes only what says that somebody has accepted a catalog as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, func, select, update

from adamix.errors import FailedPrecondition
from adamix_server.blobs.local import BLOBS_DIRECTORY, stored
from adamix_server.catalog import changes, schema
from adamix_server.catalog.audit import resource_of
from adamix_server.catalog.origins import ORIGINS_DIRECTORY, Key, Origin, Origins
from adamix_server.catalog.pointer import read_split
from adamix_server.catalog.rows import to_datetime
from adamix_server.catalog.store_file import STORE_FILE, StoreFile

CATALOG_FILE = "catalog.db"

_WAYS_ON = (
    "bring it back with `adamix store restore` (from a backup) or `adamix store rebuild` (from the adapter files; "
    "`adamix store rebuild --dry-run` shows what would come back), or go on with what is there: "
    "`adamix serve --accept-catalog`. Nothing was changed or deleted"
)

# As the index has it.
_is_change = schema.is_change
_tasks, _versions, _traffic, _audit = schema.tasks.c, schema.versions.c, schema.traffic.c, schema.audit.c
_registered = (
    select(_tasks.tenant, _tasks.task, _versions.digest).join_from(schema.versions, schema.tasks).where(schema.is_ready)
)


def catalog_missing() -> FailedPrecondition:
    return FailedPrecondition(
        f"the catalog of this store is missing, and its adapter files are there; {_WAYS_ON}", reason="CATALOG_MISSING"
    )


def catalog_older(why: str) -> FailedPrecondition:
    return FailedPrecondition(f"the catalog of this store is not its newest: {why}; {_WAYS_ON}", reason="CATALOG_OLDER")


@dataclass(frozen=True)
class Identity:
    """Of a catalog: whose it is, and how far it has come."""

    store_id: str
    revision: int


def read_identity(connection: Connection) -> Identity:
    return Identity(
        str(connection.scalars(select(schema.identity.c.store_id)).one()), changes.read_revision(connection)
    )


def was_used(store: Path) -> bool:
    """Whether a store without a catalog had one: its file is there, or anything that was registered."""
    return (
        (store / STORE_FILE).exists()
        or any(Origins(store / ORIGINS_DIRECTORY).keys())
        or bool(stored(store / BLOBS_DIRECTORY))
    )


def check(found: Identity, known: StoreFile | None, strays: Iterable[Origin] = ()) -> None:
    """Compare a catalog with what `store.json` says, and with the registrations that it does not name.

    Raises:
        FailedPrecondition: it is a new one (`CATALOG_MISSING`), an older one or another store's (`CATALOG_OLDER`).
    """
    if known is not None and found.store_id != known.store_id:
        if found.revision == 0:
            raise catalog_missing()
        raise catalog_older("it is another store's, or of before this store was made anew")
    had = [known.revision] if known is not None else []
    # One that was cut short has the next number at most: it was noted while nobody else could commit.
    had += [origin.revision - 1 for origin in strays if origin.store_id == found.store_id]
    if had and found.revision < max(had):
        raise catalog_older(f"it ends at revision {found.revision}, and the store had come to {max(had)}")


def accept(connection: Connection, known: StoreFile | None, strays: Iterable[Origin]) -> None:
    """Take a catalog as it is for the store's newest.

    Its revision becomes larger than any that the store has had: what was put aside for it stays an older one, should it
    come back, and no two changes have one revision.

    Args:
        strays: the registrations that it does not name.
    """
    found = read_identity(connection)
    revisions = [found.revision, known.revision if known is not None else 0]
    revisions += [origin.revision for origin in strays]
    settle(connection, known.store_id if known is not None else found.store_id, max(revisions) + 1)


def settle(connection: Connection, store_id: str, revision: int) -> None:
    """Say whose a catalog is that takes another one's place, and at which revision.

    Whoever reads the difference to another one reads everything. What it still had to delete may have been registered
    anew since it was written: it is forgotten here, and its files are kept as those that nobody names.
    """
    connection.execute(delete(schema.versions).where(schema.is_retired))
    connection.execute(update(schema.identity).values(store_id=store_id))
    connection.execute(update(schema.state).values(revision=revision))
    changes.forget_changes(connection)


def registered(connection: Connection) -> set[Key]:
    """(tenant, task, digest) of every version in service."""
    return {(tenant, task, digest) for tenant, task, digest in connection.execute(_registered)}


def registered_of(connection: Connection, tasks: Iterable[tuple[str, str]]) -> set[Key]:
    """As `registered`, of some (tenant, task) alone."""
    by_tenant: dict[str, list[str]] = {}
    for tenant, task in tasks:
        by_tenant.setdefault(tenant, []).append(task)
    found: set[Key] = set()
    for tenant, its in by_tenant.items():
        rows = connection.execute(_registered.where(_tasks.tenant == tenant, _tasks.task.in_(its)))
        found |= {(tenant, task, digest) for tenant, task, digest in rows}
    return found


def origins_of(connection: Connection, wanted: Set[Key], store_id: str) -> Iterator[Origin]:
    """What registering some versions has left, as far as the catalog remembers it."""
    live: dict[int, set[str]] = {}
    for task_id, current in connection.execute(select(_traffic.task_id, _traffic.current)):
        live.setdefault(task_id, set()).update(digest for digest, _ in read_split(current))
    query = select(_audit.resource, _audit.digest, func.max(_audit.revision))
    query = query.where(_is_change, _audit.action == "register").group_by(_audit.resource, _audit.digest)
    revisions = {(resource, digest): revision for resource, digest, revision in connection.execute(query)}
    rows = select(_tasks.id, _tasks.tenant, _tasks.task, _versions.digest, _versions.create_time_us)
    rows = rows.join_from(schema.versions, schema.tasks).where(schema.is_ready)
    for task_id, tenant, task, digest, create_time_us in connection.execute(rows):
        key = tenant, task, digest
        if key in wanted:
            yield Origin(
                tenant=tenant,
                task=task,
                digest=digest,
                store_id=store_id,
                revision=revisions.get((resource_of(tenant, task), digest), 0),
                time=to_datetime(create_time_us),
                live=digest in live.get(task_id, ()),
            )


def deleted(connection: Connection, found: Identity, strays: Mapping[Key, Origin]) -> set[Key]:
    """Those whose version the catalog does not name because somebody deleted it, as far back as the audit tells."""
    # With those of a tenant under no task, as the audit has it of a tenant that is deleted.
    by_name: dict[str, list[Origin]] = {}
    for origin in strays.values():
        if origin.store_id == found.store_id:
            for task in (origin.task, ""):
                by_name.setdefault(resource_of(origin.tenant, task), []).append(origin)
    if not by_name:
        return set()
    query = select(_audit.revision, _audit.resource, _audit.action, _audit.digest)
    query = query.where(_is_change, _audit.action.in_(("delete_tenant", "delete_task", "delete_version")))
    return {
        origin.key
        for revision, resource, action, digest in connection.execute(query)
        for origin in by_name.get(resource, ())
        if revision > origin.revision and (action != "delete_version" or digest == origin.digest)
    }


def strays_of(connection: Connection, origins: Origins, keys: Set[Key]) -> dict[Key, Origin]:
    """The registrations among `keys` whose version the catalog does not name, as far as they can be read."""
    strays = keys - registered(connection)
    return {key: origin for key in strays if (origin := origins.read(key)) is not None}


def last_time_s(connection: Connection) -> float:
    """What the clock said when something was last written down; seconds since 1970 UTC, 0 if nothing was."""
    return int(connection.scalar(select(_audit.time_us).order_by(_audit.id.desc()).limit(1)) or 0) / 1e6
