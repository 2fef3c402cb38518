"""Keys of a store that no server uses: the way in for who has lost every operator's key, or has none yet.

Whoever may write to the store's directory may do this; nobody is asked for a key.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adamix.errors import FailedPrecondition
from adamix_server.catalog import lineage
from adamix_server.catalog.backup import no_store
from adamix_server.catalog.database import is_absent
from adamix_server.catalog.keys import Keys
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.traces import open_catalog


@contextmanager
def keys_of_stopped(store: Path) -> Iterator[Keys]:
    """The keys of a store, held for as long as the block runs.

    Raises:
        FailedPrecondition: there is no store (`STORE_MISSING`), a server uses it (`STORE_LOCKED`), or its catalog is
            missing, not its newest, or of another adamix.
        DataLoss: the catalog is damaged (`CATALOG_CORRUPT`).
    """
    if is_absent(store / CATALOG_FILE):
        # Before the lock, which makes a directory.
        raise lineage.catalog_missing() if store.is_dir() and lineage.was_used(store) else no_store()
    with _locked(store):
        database, traces = open_catalog(store, make=False)
        try:
            yield Keys(database, traces)
        finally:
            database.close()


def _locked(store: Path) -> StoreLock:
    try:
        return StoreLock(store)
    except FailedPrecondition as error:
        if error.reason != "STORE_LOCKED":
            raise
        raise FailedPrecondition(
            "a server is using this store; ask it with --server instead of --store, or stop it first",
            reason="STORE_LOCKED",
        ) from None
