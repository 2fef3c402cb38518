"""Makes a catalog anew of what registrations have left: adapter files, and the origins that say whose they are.

What comes back: every task and version, in the order of their registrations, the last one that was to answer its task
live, and what was live before it for going back to; and every tenant that has one. What does not: traffic that was set
otherwise, pins, the audit, remembered answers, and of tenants their weights, quotas, usage, grants and keys: of a key
nothing is anywhere else. So a person looks at what it says.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.tensors import canonical_json
from adamix_server.blobs.local import BLOBS_DIRECTORY, BlobStore, stored
from adamix_server.blobs.os_errors import store_errors
from adamix_server.catalog import audit, changes, lineage, schema
from adamix_server.catalog.backup import no_store
from adamix_server.catalog.database import Database, is_absent
from adamix_server.catalog.exchange import put_in_place, set_aside, workplace
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.origins import ORIGINS_DIRECTORY, Key, Origin, Origins
from adamix_server.catalog.pointer import Pointer
from adamix_server.catalog.rows import to_us
from adamix_server.catalog.store_file import StoreFile, read_store_file, write_store_file


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One that comes back. `time` is that of its registration."""

    tenant: str
    task: str
    digest: str
    time: datetime
    live: bool
    num_bytes: int
    backbone: str


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What came back, or would.

    Attributes:
        versions: by tenant and task, the last registered first.
        without_origin: digests of files that nobody is known to have registered.
        without_file: (tenant, task, digest) of registrations whose file is not there.
        damaged: names of files and origins that cannot be read, with what is wrong.
        dry_run: nothing was changed.
        set_aside: the name of the catalog of before, below the store; empty if there was none.
    """

    versions: tuple[Version, ...]
    without_origin: tuple[str, ...]
    without_file: tuple[Key, ...]
    damaged: tuple[tuple[str, str], ...]
    dry_run: bool
    set_aside: str = ""


class _File(msgspec.Struct, frozen=True):
    manifest_json: str
    backbone: str
    num_bytes: int


class _Found(msgspec.Struct, frozen=True):
    """`registrations` in their order; `pointers` by (tenant, task, backbone)."""

    store_id: str
    revision: int
    registrations: tuple[tuple[Origin, _File], ...]
    pointers: dict[Key, Pointer]
    told: Rebuilt


def rebuild(
    store: Path, *, dry_run: bool = False, on_file: Callable[[int, int], None] = lambda _done, _total: None
) -> Rebuilt:
    """Put a catalog in place that names all that was registered; the one of before is set aside.

    Args:
        dry_run: only say what would come back; a server may use the store meanwhile.
        on_file: called with how many adapter files were read, and how many there are.

    Raises:
        FailedPrecondition: there is no store (`STORE_MISSING`), or a server uses it (`STORE_LOCKED`).
        StoreFull: there is no room. The store is as it was.
    """
    if not store.is_dir() or (is_absent(store / CATALOG_FILE) and not lineage.was_used(store)):
        raise no_store()
    if dry_run:
        return _find(store, on_file).told
    with StoreLock(store):
        found = _find(store, on_file)
        if not found.registrations:
            return found.told
        with workplace(store / f"{CATALOG_FILE}.rebuilding") as directory:
            database = Database(directory / CATALOG_FILE)
            try:
                with database.write() as connection:
                    revision = _fill(connection, found)
            finally:
                database.close()
            blobs = BlobStore(store / BLOBS_DIRECTORY)
            for origin, _ in found.registrations:
                if not blobs.exists(origin.digest):
                    blobs.bring_back(origin.digest)
            with store_errors():
                write_store_file(store, StoreFile(store_id=found.store_id, revision=revision))
            name = set_aside(store)
            put_in_place(directory / CATALOG_FILE, store)
    return msgspec.structs.replace(found.told, dry_run=False, set_aside=name)


def _find(store: Path, on_file: Callable[[int, int], None]) -> _Found:
    origins, paths = Origins(store / ORIGINS_DIRECTORY), stored(store / BLOBS_DIRECTORY)
    keys = set(origins.keys())
    damaged: list[tuple[str, str]] = []
    read: list[Origin] = []
    for key in sorted(keys):
        if (origin := origins.read(key)) is None:
            damaged.append(("/".join(key), "its origin cannot be read"))
        else:
            read.append(origin)
    files: dict[str, _File] = {}
    wanted = sorted({origin.digest for origin in read} & paths.keys())
    for done, digest in enumerate(wanted, 1):
        try:
            files[digest] = _read(paths[digest], digest)
        except InvalidAdapter as error:
            damaged.append((digest, error.message))
        except OSError as error:
            damaged.append((digest, error.strerror or "it cannot be read"))
        on_file(done, len(wanted))
    known = read_store_file(store)
    ids = Counter(origin.store_id for origin in read)
    store_id = known.store_id if known is not None else max(ids, key=ids.__getitem__, default="")
    # Revisions of another store do not compare: what was taken from one is older.
    read.sort(key=lambda origin: (origin.store_id == store_id, origin.revision, origin.time, origin.key))
    registrations = tuple((origin, files[origin.digest]) for origin in read if origin.digest in files)
    pointers = _pointers(registrations)
    versions = [
        Version(
            tenant=origin.tenant,
            task=origin.task,
            digest=origin.digest,
            time=origin.time,
            live=pointers[origin.tenant, origin.task, file.backbone].names(origin.digest),
            num_bytes=file.num_bytes,
            backbone=file.backbone,
        )
        for origin, file in reversed(registrations)
    ]
    told = Rebuilt(
        versions=tuple(sorted(versions, key=lambda version: (version.tenant, version.task))),
        without_origin=tuple(sorted(paths.keys() - {digest for _, _, digest in keys})),
        without_file=tuple(sorted(key for key in keys if key[2] not in paths)),
        damaged=tuple(damaged),
        dry_run=True,
    )
    revisions = [origin.revision for origin in read]
    revision = max([*revisions, known.revision if known is not None else 0])
    return _Found(store_id, revision, registrations, pointers, told)


def _read(path: Path, digest: str) -> _File:
    """Raises InvalidAdapter, OSError."""
    adapter = adapter_file.decode(path.read_bytes())
    if adapter.digest != digest:
        raise InvalidAdapter("its bytes are damaged", reason="DIGEST_MISMATCH")
    manifest = adapter.manifest
    return _File(canonical_json(manifest.to_json()), manifest.backbone.fingerprint, adapter.num_bytes)


def _pointers(registrations: tuple[tuple[Origin, _File], ...]) -> dict[Key, Pointer]:
    """As if each that was to answer its task did so in turn; where none was, the last one does."""
    pointers: dict[Key, Pointer] = {}
    last: dict[Key, str] = {}
    for origin, file in registrations:
        place = origin.tenant, origin.task, file.backbone
        last[place] = origin.digest
        if origin.live:
            pointers[place] = pointers.get(place, Pointer()).set(((origin.digest, 1),))
    return {place: pointers.get(place, Pointer(((digest, 1),))) for place, digest in last.items()}


def _fill(connection: Connection, found: _Found) -> int:
    """Write everything down; gives the revision that the catalog has then."""
    store_id = found.store_id or lineage.read_identity(connection).store_id
    lineage.settle(connection, store_id, found.revision)
    audit.note(connection, audit.REBUILT, "a new audit begins; the one of before stays with the catalog set aside")
    moved: set[Key] = set()
    for origin, file in found.registrations:
        changes.make_tenant(connection, origin.tenant)
        task_id = changes.find_or_make_task(connection, origin.tenant, origin.task)
        connection.execute(
            insert(schema.versions).values(
                task_id=task_id,
                digest=origin.digest,
                state=State.READY,
                create_time_us=to_us(origin.time),
                num_bytes=file.num_bytes,
                backbone_fingerprint=file.backbone,
                manifest_json=file.manifest_json,
            )
        )
        place = origin.tenant, origin.task, file.backbone
        if place not in moved:
            moved.add(place)
            changes.move_pointer(connection, task_id, file.backbone, partial(_exchange, found.pointers[place]))
        changes.record(connection, origin.tenant, origin.task, "register", origin.digest, "rebuilt")
    revision = changes.read_revision(connection)
    lineage.settle(connection, store_id, revision)
    return revision


def _exchange(new: Pointer, _old: Pointer) -> Pointer:
    return new
