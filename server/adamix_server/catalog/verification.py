"""Looks over a whole store and says what is wrong with it. Changes nothing; a server may use it meanwhile."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import msgspec
from sqlalchemy import Connection, func, select

from adamix.errors import AdamixError, DataLoss, FailedPrecondition
from adamix_server.blobs.local import BLOBS_DIRECTORY, file_digest
from adamix_server.catalog import lineage, schema
from adamix_server.catalog.audit_chain import verify as verify_chain
from adamix_server.catalog.backup import no_store
from adamix_server.catalog.database import check_whole, is_absent, reading
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.origins import ORIGINS_DIRECTORY, Key, Origins
from adamix_server.catalog.store_file import read_store_file

_REGISTER_AGAIN = (
    "register the same file again, or copy it from a backup, where it lies in the same place below blobs/sha256/; "
    "`adamix store restore` would put back all of the catalog of then"
)
_ORPHAN = "start the server: the file is among the orphans, and is brought back if it is whole"
_AUDIT = (
    "compare with the backups (`adamix audit --verify --store` on each): what they have of it is as it was; nothing "
    "that is served depends on it"
)
_START = "start the server, which writes it"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong: its reason, what it is about, and what a person does."""

    reason: str
    name: str
    advice: str


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What there is, and what is wrong.

    Attributes:
        orphans: adapter files that no version names and that are kept for a while; nothing is wrong with them.
        unnamed: adapter files among those in use that no version names; the next start makes orphans of them.
        unfinished: origins whose version is not there: of registrations that were cut short, or that a catalog lacks
            which was accepted as it was.
    """

    tenants: int
    keys: int
    tasks: int
    versions: int
    blobs: int
    num_bytes: int
    orphans: int
    unnamed: int
    unfinished: int
    problems: tuple[Problem, ...]


class _Rows(msgspec.Struct, frozen=True):
    """What a catalog names: READY versions, the sizes of their blobs, and digests that wait for their deletion.

    `tenants` and `api_keys` are numbers; keys that are not revoked.
    """

    keys: frozenset[Key] = frozenset()
    sizes: dict[str, int] = {}
    retired: frozenset[str] = frozenset()
    tenants: int = 0
    api_keys: int = 0


def verify(store: Path, on_blob: Callable[[int, int], None] = lambda _done, _total: None) -> Verified:
    """Check the catalog, and every adapter file that it names against its digest.

    Args:
        on_blob: called with how many adapter files were read, and how many there are.

    Raises:
        FailedPrecondition: there is no store (`STORE_MISSING`), or another adamix wrote it (`STORE_SCHEMA`).
    """
    rows, problems = _read_catalog(store)
    root, origins = store / BLOBS_DIRECTORY, Origins(store / ORIGINS_DIRECTORY)
    faults: dict[str, str] = {}
    for done, digest in enumerate(sorted(rows.sizes), 1):
        if fault := _fault(root, digest):
            faults[digest] = fault
        on_blob(done, len(rows.sizes))
    bare = {key for key in rows.keys if origins.read(key) is None}
    if faults or bare:
        # What was deleted meanwhile is no problem.
        rows, _ = _read_catalog(store)
    names = sorted(rows.keys)
    for tenant, task, digest in names:
        if digest in faults:
            advice = _ORPHAN if (root / "orphans" / digest).exists() else _REGISTER_AGAIN
            problems.append(Problem(reason=faults[digest], name=f"{tenant}/{task}/{digest}", advice=advice))
    for key in names:
        if key in bare:
            problems.append(Problem(reason="ORIGIN_MISSING", name="/".join(key), advice=_START))
    files = {path.name for path in root.glob("sha256/??/*")}
    return Verified(
        tenants=rows.tenants,
        keys=rows.api_keys,
        tasks=len({key[:2] for key in rows.keys}),
        versions=len(rows.keys),
        blobs=len(rows.sizes),
        num_bytes=sum(rows.sizes.values()),
        orphans=sum(1 for _ in root.glob("orphans/*")),
        unnamed=len(files - rows.sizes.keys() - rows.retired),
        unfinished=len(set(origins.keys()) - rows.keys),
        problems=tuple(problems),
    )


def _read_catalog(store: Path) -> tuple[_Rows, list[Problem]]:
    """What the catalog names, as far as it can be read, and what is wrong with it."""
    path = store / CATALOG_FILE
    if is_absent(path):
        if not store.is_dir() or not lineage.was_used(store):
            raise no_store()
        return _Rows(), [_problem(lineage.catalog_missing())]
    known, problems = read_store_file(store), list[Problem]()
    try:
        # Whatever is wrong with it, it is left as it is, and so is its log.
        with reading(path) as connection:
            check_whole(connection)
            try:
                lineage.check(lineage.read_identity(connection), known)
            except FailedPrecondition as error:
                problems.append(_problem(error))
            if (broken := verify_chain(lambda: nullcontext(connection)).fault) is not None:
                problems.append(Problem(reason="AUDIT_BROKEN", name=f"{CATALOG_FILE}: {broken.told}", advice=_AUDIT))
            return _read_rows(connection), problems
    except DataLoss as error:
        return _Rows(), [_problem(error)]
    except FailedPrecondition as error:
        if error.reason != "CATALOG_MISSING":
            raise
        return _Rows(), [_problem(lineage.catalog_missing())]


def _read_rows(connection: Connection) -> _Rows:
    versions = schema.versions.c
    sizes = connection.execute(select(versions.digest, versions.num_bytes).where(schema.is_ready).distinct())
    retired = connection.scalars(select(versions.digest).where(schema.is_retired))
    tenants = connection.scalar(select(func.count()).select_from(schema.tenants))
    in_force = select(func.count()).select_from(schema.keys).where(schema.keys.c.revoke_time_us.is_(None))
    return _Rows(
        frozenset(lineage.registered(connection)),
        dict(sizes.all()),
        frozenset(retired),
        int(tenants or 0),
        int(connection.scalar(in_force) or 0),
    )


def _problem(error: AdamixError) -> Problem:
    return Problem(reason=error.reason, name=CATALOG_FILE, advice=error.message)


def _fault(root: Path, digest: str) -> str:
    """What is wrong with a blob, as a reason; empty if nothing is."""
    try:
        return "" if file_digest(root / "sha256" / digest[:2] / digest) == digest else "BLOB_CORRUPT"
    except OSError:
        return "BLOB_MISSING"
