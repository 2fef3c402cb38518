"""What a change of the catalog leaves beside it: how far the catalog is, and where each version came from.

So a start can tell whether the catalog is the one the store had (`lineage.py`), and a lost one can be made again from
files. The order is what keeps it crash-safe: an origin is there before its version is, and goes after it; the revision
is noted once it is durable.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection

from adamix.errors import AdamixError
from adamix_server.catalog import changes, lineage
from adamix_server.catalog.database import Database
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.origins import ORIGINS_DIRECTORY, Key, Origin, Origins
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store_file import Progress, StoreFile, read_store_file

log = logging.getLogger(__name__)

_FORGOTTEN_AT_ONCE = 100


class Traces:
    """Beside one open catalog.

    Args:
        known: what `store.json` said before the catalog was opened, which is never behind that.

    Raises:
        FailedPrecondition: the catalog is not this store's newest (`CATALOG_MISSING`, `CATALOG_OLDER`).
    """

    def __init__(self, store: Path, database: Database, known: StoreFile | None) -> None:
        self._database = database
        with database.read() as connection:
            identity = lineage.read_identity(connection)
        lineage.check(identity, known)
        self._store_id = identity.store_id
        self._origins = Origins(store / ORIGINS_DIRECTORY)
        self._progress = Progress(store, identity.store_id)

    @contextmanager
    def changing(self, registered: Sequence[tuple[VersionRow, bool]] = ()) -> Iterator[Connection]:
        """A write transaction around a change of what is served, with what it leaves.

        Args:
            registered: which versions the block has registered when it ends, and whether to answer their tasks.
        """
        left: list[Key] = []
        try:
            with self._database.write() as connection:
                yield connection
                revision = changes.read_revision(connection)
                for version, is_live in registered:
                    left.append((version.tenant, version.task, version.digest))
                    self._leave(version, revision, is_live)
        except BaseException:  # nothing is handled: what did not commit leaves nothing
            if left:
                self.forget(left)
            raise
        self._progress.reached(revision)

    def forget(self, keys: Iterable[Key]) -> None:
        """Remove the origins of versions that are deleted, or were not registered after all.

        In transactions of its own, after the deletion is durable, so that none of them is being registered anew; some
        at a time, since a tenant may have had thousands, and others write as well. What cannot be done now, the next
        start does.
        """
        gone = list(keys)
        try:
            for start in range(0, len(gone), _FORGOTTEN_AT_ONCE):
                some = gone[start : start + _FORGOTTEN_AT_ONCE]
                with self._database.write() as connection:
                    for key in set(some) - lineage.registered_of(connection, {key[:2] for key in some}):
                        self._origins.remove(key)
        except (AdamixError, OSError) as error:
            log.warning("the origins of deleted versions stay for now: %s", error)

    def _leave(self, version: VersionRow, revision: int, is_live: bool) -> None:
        origin = Origin(
            tenant=version.tenant,
            task=version.task,
            digest=version.digest,
            store_id=self._store_id,
            revision=revision,
            time=version.create_time,
            live=is_live,
        )
        self._origins.put(origin)


def open_catalog(store: Path, *, make: bool) -> tuple[Database, Traces]:
    """The catalog of a store, and what stands beside it.

    Args:
        make: make one, but only of a store that never had one. Only for who holds the store.

    Raises:
        FailedPrecondition: the catalog is not this store's newest (`CATALOG_MISSING`, `CATALOG_OLDER`), or cannot be
            used (`Database`).
        DataLoss, Unavailable: as `Database`.
    """
    known = read_store_file(store)

    def on_new() -> None:
        if known is not None:
            raise lineage.catalog_missing()

    database = Database(store / CATALOG_FILE, on_new=on_new, make=make)
    try:
        return database, Traces(store, database, known)
    except BaseException:  # nothing is handled: the connections are closed, and it goes on
        database.close()
        raise
