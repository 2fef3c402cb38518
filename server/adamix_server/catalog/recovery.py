"""What the supervisor does with a store before anything is served from it.

Runs once per server, under the `StoreLock`, before any front end or engine exists: nothing is being uploaded, and
nothing deleted is still in use.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, select

from adamix.errors import StoreFull
from adamix_server.blobs.local import BLOBS_DIRECTORY, BlobStore, Swept
from adamix_server.catalog import schema
from adamix_server.catalog.changes import forget_changes
from adamix_server.catalog.database import Database
from adamix_server.catalog.store import CATALOG_FILE
from adamix_server.catalog.upgrade import upgrade


@dataclass(frozen=True)
class Recovered:
    """What recovery found.

    Attributes:
        swept: leftovers of uploads and deletions that were cut short.
        missing: digests of versions in service whose blob is gone or has another size. They stay listed; requests
            for them fail with DataLoss until the same bytes are registered again.
    """

    swept: Swept
    missing: tuple[str, ...]


def recover(store: Path) -> Recovered:
    """Bring an older catalog up to date, check it, finish deletions, remove orphans.

    Makes an empty store where there is none. The only place from which a catalog is migrated: nobody else holds the
    store.

    Raises:
        FailedPrecondition, DataLoss: the store cannot be used (`database.Database`).
        StoreFull: there is no room.
    """
    database = Database(store / CATALOG_FILE, upgrade=upgrade)
    try:
        database.verify()
        blobs = BlobStore(store / BLOBS_DIRECTORY)
        versions = schema.versions.c
        # One write transaction around rows and files: a front end of a killed server that has not yet noticed cannot
        # commit a version between the moment its blob is found unreferenced and the moment it is removed.
        with database.write() as connection:
            rows = connection.execute(select(versions.digest, versions.num_bytes).where(schema.is_ready).distinct())
            sizes: dict[str, int] = dict(rows.all())
            swept = blobs.sweep(sizes)
        # What is left over is a matter of room alone, and a full disk does not keep from serving what is live. Retired
        # versions may go later; whoever goes on from a snapshot is of this server, and begins after this.
        with suppress(StoreFull), database.write() as connection:
            connection.execute(delete(schema.versions).where(schema.is_retired))
            forget_changes(connection)
    finally:
        database.close()
    missing = (digest for digest, size in sizes.items() if blobs.size(digest) != size)
    return Recovered(swept, tuple(sorted(missing)))
