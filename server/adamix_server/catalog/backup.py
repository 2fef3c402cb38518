"""Backups: a store's catalog of one moment and all that it names, in a directory that is a store itself.

`backup` works beside a running server. `restore` needs the store for itself, and deletes nothing: the catalog before it
is set aside, and blobs that the restored one does not name are orphans of the next start. Both are cut short without
harm: what counts is the catalog, which is renamed into its place last.
"""

from collections.abc import Callable, Iterable, Set
from pathlib import Path

import msgspec
from sqlalchemy import Connection, func, select

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, InvalidConfig
from adamix_server.blobs.local import BLOBS_DIRECTORY, BlobStore, file_digest, stored
from adamix_server.blobs.os_errors import store_errors
from adamix_server.catalog import audit, lineage, schema
from adamix_server.catalog.database import LOG_SUFFIXES, Database, is_absent, reading
from adamix_server.catalog.exchange import copy_catalog, put_in_place, set_aside, workplace
from adamix_server.catalog.key_endings import Endings, end_keys, endings_of, loses_keys, read_endings
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.origins import ORIGINS_DIRECTORY, Key, Origin, Origins
from adamix_server.catalog.store_file import StoreFile, read_store_file, write_store_file
from adamix_server.catalog.upgrade import upgrade

# Each time some blob that a catalog named was reclaimed before it could be copied.
_MAX_CATALOGS = 10

# Called with how many blobs are done, and how many there are.
OnBlob = Callable[[int, int], None]


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """A backup, or what was restored from one.

    Attributes:
        copied: how many of the `blobs` were not there yet.
        missing: digests whose bytes the store itself has lost; only of a backup.
        set_aside: the name of the catalog of before, below the store or the backup; empty if there was none, or, of a
            backup, none that names what the store has neither in service nor deleted.
        tenants, keys: how many there are; keys that are not revoked.
        revocations: how many keys were in force in a backup and have been revoked since; only of what was restored,
            and None if the catalog of before could not be asked.
    """

    store_id: str
    revision: int
    tasks: int
    versions: int
    blobs: int
    num_bytes: int
    copied: int
    tenants: int
    keys: int
    missing: tuple[str, ...] = ()
    set_aside: str = ""
    revocations: int | None = 0


class _Contents(msgspec.Struct, frozen=True):
    identity: lineage.Identity
    keys: frozenset[Key]
    sizes: dict[str, int]
    origins: dict[Key, Origin]
    endings: Endings
    tenants: int

    def told(self, copied: int, missing: Iterable[str] = (), set_aside: str = "") -> Copied:
        return Copied(
            store_id=self.identity.store_id,
            revision=self.identity.revision,
            tasks=len({key[:2] for key in self.keys}),
            versions=len(self.keys),
            blobs=len(self.sizes),
            num_bytes=sum(self.sizes.values()),
            copied=copied,
            tenants=self.tenants,
            keys=len(self.endings.ids - self.endings.revoked),
            missing=tuple(sorted(missing)),
            set_aside=set_aside,
        )


def backup(store: Path, to: Path, on_blob: OnBlob = lambda _done, _total: None) -> Copied:
    """Copy a store, which a server may use meanwhile, to a directory; only what is not there yet, if it has a backup.

    Each adapter file is compared with its digest, also those that are there already. What the store does not name any
    more stays in the backup, and so does what is known of it, unless somebody deleted it: a catalog that was lost and
    accepted as it was must not make an end of the backup as well.

    Raises:
        InvalidConfig: the directory is the store, or in it.
        FailedPrecondition: there is no store (`STORE_MISSING`); its catalog is not its newest; or the directory has the
            backup of another one (`BACKUP_FOREIGN`), a newer one (`BACKUP_NEWER`), or is in use.
        DataLoss: the catalog is damaged (`CATALOG_CORRUPT`).
        StoreFull: there is no room.
    """
    inside = to.resolve()
    if store.resolve() in (inside, *inside.parents):
        raise InvalidConfig("--to must be a directory outside of the store", field="to")
    source = _opened(store)
    with StoreLock(to, "--to"):
        _check_target(to, source)
        blobs = BlobStore(to / BLOBS_DIRECTORY)
        blobs.remove_temporaries()
        origins = Origins(to / ORIGINS_DIRECTORY)
        with workplace(to / f"{CATALOG_FILE}.copying") as directory:
            known, copied = frozenset[str](), 0
            for _ in range(_MAX_CATALOGS):
                catalog = copy_catalog(store / CATALOG_FILE, directory / CATALOG_FILE)
                with reading(catalog, is_copy=True) as connection:
                    contents = _read(connection, Origins(store / ORIGINS_DIRECTORY))
                    gone = _deleted(connection, contents, origins)
                new, missing = _copy_blobs(contents.sizes, store, blobs, on_blob)
                copied += new
                # Deleted meanwhile, unless a newer catalog says the same.
                if missing <= known:
                    break
                known = missing
                catalog.unlink()
            origins.put_all(contents.origins.values())
            name = set_aside(to) if _names_more(to / CATALOG_FILE, contents, gone) else ""
            with store_errors():
                put_in_place(catalog, to)
                # After the catalog: one that is ahead of the file is normal.
                write_store_file(
                    to, StoreFile(store_id=contents.identity.store_id, revision=contents.identity.revision)
                )
        for key in gone:
            origins.remove(key)
    return contents.told(copied, missing, name)


def restore(store: Path, source: Path, on_blob: OnBlob = lambda _done, _total: None) -> Copied:
    """Make a store, which no server uses, what a backup of it says; or make a new one of it.

    Raises:
        InvalidConfig: the backup is the store.
        FailedPrecondition: a server uses the store (`STORE_LOCKED`), or there is no backup that is whole
            (`BACKUP_INCOMPLETE`).
        DataLoss: the catalog of the backup is damaged (`CATALOG_CORRUPT`), or files are missing from it
            (`BACKUP_INCOMPLETE`).
        StoreFull: there is no room. The store is as it was.
    """
    if store.resolve() == source.resolve():
        raise InvalidConfig("--from must be another directory than the store", field="from")
    if is_absent(source / CATALOG_FILE):
        raise FailedPrecondition(
            "there is no whole backup in that directory: it has no catalog.db; `adamix store backup` makes one",
            reason="BACKUP_INCOMPLETE",
        )
    # Before the catalog is copied: a server that uses the source brings both on, and the catalog first.
    known = read_store_file(source)
    with StoreLock(store), workplace(store / f"{CATALOG_FILE}.restoring") as directory:
        database = Database(copy_catalog(source / CATALOG_FILE, directory / CATALOG_FILE), upgrade=upgrade)
        try:
            with database.read() as connection:
                contents = _read(connection, Origins(source / ORIGINS_DIRECTORY))
            _check_source(known, contents)
            places = _whole(contents.sizes, store, source, on_blob)
            blobs = BlobStore(store / BLOBS_DIRECTORY)
            copied = 0
            for digest, path in places.items():
                if path == blobs.path(digest) or blobs.bring_back(digest):
                    continue
                if not blobs.copy(path, digest):
                    raise _incomplete(1)
                copied += 1
            origins = Origins(store / ORIGINS_DIRECTORY)
            endings = endings_of(store / CATALOG_FILE, contents.identity.store_id)
            identity, ended = _continued(database, store, contents, origins, endings)
            origins.put_all(contents.origins.values())
        finally:
            database.close()
        with store_errors():
            write_store_file(store, StoreFile(store_id=identity.store_id, revision=identity.revision))
        name = set_aside(store)
        put_in_place(directory / CATALOG_FILE, store)
    told = contents.told(copied, set_aside=name)
    return msgspec.structs.replace(
        told,
        revision=identity.revision,
        keys=told.keys - ended,
        revocations=None if endings is None and told.keys else ended,
    )


def _opened(store: Path) -> lineage.Identity:
    """The identity of a store that is there and has its newest catalog."""
    if is_absent(store / CATALOG_FILE):
        if store.is_dir() and lineage.was_used(store):
            raise lineage.catalog_missing()
        raise no_store()
    known = read_store_file(store)
    database = Database(store / CATALOG_FILE, on_new=_refuse_new)
    try:
        with database.read() as connection:
            identity = lineage.read_identity(connection)
    finally:
        database.close()
    lineage.check(identity, known)
    return identity


def _refuse_new() -> None:
    """A file is there and has no tables: what was written to it is in a log that is gone."""
    raise lineage.catalog_missing()


def no_store() -> FailedPrecondition:
    return FailedPrecondition("there is no store in that directory; say which with --store", reason="STORE_MISSING")


def _check_target(to: Path, source: lineage.Identity) -> None:
    if any((to / (CATALOG_FILE + suffix)).exists() for suffix in LOG_SUFFIXES):
        raise FailedPrecondition(
            "a server has used that directory as its store; choose another --to", reason="BACKUP_FOREIGN"
        )
    # One whose first backup was cut short at its very end has no store.json yet.
    there = read_store_file(to) or _identity_of(to / CATALOG_FILE)
    if there is not None and there.store_id != source.store_id:
        raise FailedPrecondition(
            "that directory has the backup of another store; choose another --to", reason="BACKUP_FOREIGN"
        )
    if there is not None and there.revision > source.revision:
        raise FailedPrecondition(
            f"the backup in that directory is newer than this store (revision {there.revision}, and the store is at "
            f"{source.revision}); choose another --to",
            reason="BACKUP_NEWER",
        )


def _names_more(catalog: Path, contents: _Contents, gone: Set[Key]) -> bool:
    """Whether the catalog of a backup has versions or keys that another one neither has nor knows the end of, or may
    have some.
    """
    if is_absent(catalog):
        return False
    try:
        with reading(catalog, is_copy=True) as connection:
            is_covered = lineage.registered(connection) <= contents.keys | gone
            return not is_covered or loses_keys(connection, contents.endings)
    except AdamixError:
        return True


def _identity_of(catalog: Path) -> lineage.Identity | None:
    """Of the catalog in a directory of backups; None if there is none. Raises FailedPrecondition if it has none."""
    if is_absent(catalog):
        return None
    try:
        with reading(catalog, is_copy=True) as connection:
            return lineage.read_identity(connection)
    except AdamixError as error:
        raise FailedPrecondition(
            "that directory has a catalog of which it is not known whose it is; choose another --to",
            reason="BACKUP_FOREIGN",
        ) from error


def _check_source(known: StoreFile | None, contents: _Contents) -> None:
    try:
        lineage.check(contents.identity, known)
    except AdamixError as error:
        raise FailedPrecondition(
            "the catalog in that directory is not the newest of its store; `adamix store rebuild` makes it anew from "
            "the files there",
            reason="BACKUP_INCOMPLETE",
        ) from error


def _read(connection: Connection, there: Origins) -> _Contents:
    """What a catalog names; an origin that is not `there` is made of what the catalog knows."""
    identity, keys = lineage.read_identity(connection), lineage.registered(connection)
    versions = schema.versions.c
    sizes = connection.execute(select(versions.digest, versions.num_bytes).where(schema.is_ready).distinct())
    origins = {origin.key: origin for origin in lineage.origins_of(connection, keys, identity.store_id)}
    for key in keys:
        if (origin := there.read(key)) is not None:
            origins[key] = origin
    tenants = connection.scalar(select(func.count()).select_from(schema.tenants))
    return _Contents(identity, frozenset(keys), dict(sizes.all()), origins, read_endings(connection), int(tenants or 0))


def _deleted(connection: Connection, contents: _Contents, there: Origins) -> set[Key]:
    """Those among the origins of a backup whose version somebody has deleted since."""
    strays = lineage.strays_of(connection, there, set(there.keys()))
    return lineage.deleted(connection, contents.identity, strays)


def _copy_blobs(sizes: dict[str, int], store: Path, to: BlobStore, on_blob: OnBlob) -> tuple[int, frozenset[str]]:
    """How many were copied, and which the store does not have whole."""
    copied, missing = 0, set[str]()
    for done, digest in enumerate(sorted(sizes), 1):
        if not _is_whole(to.path(digest), digest):
            if to.copy(store / BLOBS_DIRECTORY / "sha256" / digest[:2] / digest, digest):
                copied += 1
            else:
                missing.add(digest)
        on_blob(done, len(sizes))
    return copied, frozenset(missing)


def _whole(sizes: dict[str, int], store: Path, source: Path, on_blob: OnBlob) -> dict[str, Path]:
    """Where each digest has its bytes: in the store, if it is whole there. Raises DataLoss (`BACKUP_INCOMPLETE`)."""
    ours, theirs = stored(store / BLOBS_DIRECTORY), stored(source / BLOBS_DIRECTORY)
    places: dict[str, Path] = {}
    for done, digest in enumerate(sorted(sizes), 1):
        for path in (ours.get(digest), theirs.get(digest)):
            if path is not None and _is_whole(path, digest):
                places[digest] = path
                break
        on_blob(done, len(sizes))
    if lacking := len(sizes) - len(places):
        raise _incomplete(lacking)
    return places


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return file_digest(path) == digest
    except OSError:
        return False


def _incomplete(number: int) -> DataLoss:
    return DataLoss(
        f"{number} adapter files of the backup are missing or damaged; nothing was changed. `adamix store verify` on "
        "the backup names them, and `adamix store rebuild` on it makes a catalog of those that are whole",
        reason="BACKUP_INCOMPLETE",
    )


def _continued(
    database: Database, store: Path, contents: _Contents, origins: Origins, endings: Endings | None
) -> tuple[lineage.Identity, int]:
    """Bring a restored catalog beyond all that its store has had, so that what it replaces stays an older one; and end
    the keys that the store has ended since. Gives the number of these, too.
    """
    known = read_store_file(store)
    with database.write() as connection:
        strays = lineage.strays_of(connection, origins, set(origins.keys()))
        had = [origin.revision for origin in strays.values()]
        had += [known.revision] if known is not None else []
        newest = max(*had, contents.identity.revision) + 1 if had else contents.identity.revision
        ended = 0 if endings is None else end_keys(connection, endings)
        lineage.settle(connection, contents.identity.store_id, newest)
        audit.note(connection, audit.RESTORED, f"from a backup of revision {contents.identity.revision}")
        return lineage.read_identity(connection), ended
