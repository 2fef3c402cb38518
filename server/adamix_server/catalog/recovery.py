"""What the supervisor does with a store before anything is served from it.

Runs once per server, under the `StoreLock`, before any front end or engine exists: nothing is being uploaded, and
nothing deleted is still in use.
"""

import logging
import time
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, select

from adamix.errors import FailedPrecondition, StoreFull
from adamix_server.blobs.local import BLOBS_DIRECTORY, BlobStore, Swept
from adamix_server.catalog import audit, lineage, schema
from adamix_server.catalog.changes import forget_changes
from adamix_server.catalog.database import LOG_SUFFIXES, Database, check_whole, is_absent, reading, schema_version
from adamix_server.catalog.exchange import remove_workplaces, set_aside
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.origins import ORIGINS_DIRECTORY, Key, Origins
from adamix_server.catalog.store_file import Progress, StoreFile, read_store_file
from adamix_server.catalog.upgrade import upgrade

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """What recovery found.

    Attributes:
        swept: leftovers of uploads that were cut short, and blobs that no version names.
        missing: digests of versions in service whose blob is gone or has another size. They stay listed; requests
            for them fail with DataLoss until the same bytes are registered again.
        orphans: how many blobs that no version names are kept now.
    """

    swept: Swept
    missing: tuple[str, ...]
    orphans: int = 0


def recover(store: Path, *, accept_catalog: bool = False) -> Recovered:
    """Check that the catalog is the store's, bring it up to date, finish deletions, put aside what nobody names.

    Makes an empty store where there is none. The only place from which a catalog is migrated: nobody else holds the
    store. What the first start of a store with this adamix does not find beside the catalog, it writes.

    Args:
        accept_catalog: take the catalog that is there for the store's newest, be it none, older or another's.

    Raises:
        FailedPrecondition: the catalog is not the one the store had (`CATALOG_MISSING`, `CATALOG_OLDER`), or cannot be
            used (`database.Database`).
        DataLoss: it is damaged (`CATALOG_CORRUPT`).
        StoreFull: there is no room.
    """
    path, known, origins = store / CATALOG_FILE, read_store_file(store), Origins(store / ORIGINS_DIRECTORY)
    keys = set(origins.keys())

    def on_new() -> None:
        if not accept_catalog and lineage.was_used(store):
            raise lineage.catalog_missing()

    def on_older_schema(database: Database) -> None:
        if known is not None and not accept_catalog and not _is_of(database, known):
            raise lineage.catalog_older("an older adamix wrote it, and this store has been a newer one's since")
        upgrade(database)

    if not accept_catalog:
        _look(path, known)
    elif is_absent(path):
        # A log without its catalog would be deleted with the first look at the new one.
        set_aside(store)
    database = Database(path, upgrade=on_older_schema, on_new=on_new)
    try:
        database.verify()
        try:
            _check(database, store, known, origins, keys)
        except FailedPrecondition:
            if not accept_catalog:
                raise
            with database.write() as connection:
                lineage.accept(connection, known, lineage.strays_of(connection, origins, keys).values())
                audit.note(connection, audit.ACCEPTED, "the catalog was taken as it is for the store's newest")
            log.warning("the catalog is taken as it is for this store's newest")
        recovered = _put_in_order(database, store, origins, keys)
        with database.read() as connection:
            identity = lineage.read_identity(connection)
        with suppress(StoreFull):
            _write_origins(database, origins, identity.store_id, set() if known is None else keys)
            Progress(store, identity.store_id).reached(identity.revision)
    finally:
        database.close()
    return recovered


def _is_of(database: Database, known: StoreFile) -> bool:
    """Whether a catalog of an older schema knows its store, and is the one that `store.json` tells of."""
    with database.read() as connection:
        if schema_version(connection) < schema.FIRST_WITH_IDENTITY:
            return False
        lineage.check(lineage.read_identity(connection), known)
    return True


def _look(path: Path, known: StoreFile | None) -> None:
    """Refuse a catalog that has a log before SQLite takes the log into it: that is done when it is closed, and whoever
    puts the right file back then needs the log as it was.
    """
    if is_absent(path) or is_absent(path.with_name(path.name + LOG_SUFFIXES[0])):
        return
    try:
        with reading(path) as connection:
            check_whole(connection)
            lineage.check(lineage.read_identity(connection), known)
    except FailedPrecondition as error:
        # Of a new one or one of another adamix, what opens it knows more.
        if error.reason == "CATALOG_OLDER":
            raise


def _check(database: Database, store: Path, known: StoreFile | None, origins: Origins, keys: Set[Key]) -> None:
    """Raise FailedPrecondition unless the catalog is the store's newest."""
    with database.read() as connection:
        found = lineage.read_identity(connection)
        if found.revision == 0 and known is None and lineage.was_used(store):
            raise lineage.catalog_missing()
        lineage.check(found, known, lineage.strays_of(connection, origins, keys).values())


def _put_in_order(database: Database, store: Path, origins: Origins, keys: Set[Key]) -> Recovered:
    """Sweep, finish deletions, bring back what is wanted."""
    remove_workplaces(store)
    blobs = BlobStore(store / BLOBS_DIRECTORY)
    versions = schema.versions.c
    # One write transaction around rows and files: a front end of a killed server that has not yet noticed cannot
    # commit a version between the moment its blob is found unreferenced and the moment it is removed.
    with database.write() as connection:
        rows = connection.execute(select(versions.digest, versions.num_bytes).where(schema.is_ready).distinct())
        sizes: dict[str, int] = dict(rows.all())
        retired = set(connection.scalars(select(versions.digest).where(schema.is_retired).distinct())) - sizes.keys()
        try:
            swept = blobs.sweep(sizes.keys() | retired, time.time(), lineage.last_time_s(connection))
        except StoreFull as error:
            log.warning("what nobody names stays where it is: %s", error.message)
            swept = Swept()
        for digest in retired:
            blobs.delete(digest)
    # What is left over is a matter of room alone, and a full disk does not keep from serving what is live. Retired
    # versions may go later; whoever goes on from a snapshot is of this server, and begins after this.
    with suppress(StoreFull), database.write() as connection:
        connection.execute(delete(schema.versions).where(schema.is_retired))
        forget_changes(connection)
    _forget_strays(database, origins, keys, swept.expired)
    missing = [digest for digest, size in sizes.items() if blobs.size(digest) != size]
    missing = [digest for digest in missing if not blobs.bring_back(digest)]
    kept = sum(1 for _ in blobs.orphans())
    if kept or swept.expired:
        told = {"moved": swept.orphaned, "kept": kept, "removed": len(swept.expired)}
        log.warning("adapter files that no version names are kept for 7 days, in blobs/orphans", extra=told)
    return Recovered(swept, tuple(sorted(missing)), kept)


def _forget_strays(database: Database, origins: Origins, keys: Set[Key], expired: Iterable[str]) -> None:
    """Remove the origins of versions that somebody has deleted, and of those whose bytes are gone for good now."""
    with database.read() as connection:
        found, strays = lineage.read_identity(connection), lineage.strays_of(connection, origins, keys)
        deleted = lineage.deleted(connection, found, strays)
    gone = set(expired)
    for key in strays:
        if key in deleted or key[2] in gone:
            origins.remove(key)
    origins.tidy()


def _write_origins(database: Database, origins: Origins, store_id: str, there: Set[Key]) -> None:
    """Leave an origin for each version that is not in `there`, as its registration would have.

    Raises StoreFull.
    """
    with database.read() as connection:
        missing = lineage.registered(connection) - there
        found = list(lineage.origins_of(connection, missing, store_id)) if missing else []
    origins.put_all(found)
