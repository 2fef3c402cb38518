"""The durable truth: which tasks exist, which versions they have, and which of those answer.

Every mutation is one transaction over the rows, the live pointer, the revision and its logs; when a method returns,
its change survives a crash, and when it raises, nothing has changed. The methods block on the disk: call them from an
executor thread, any number at once. Knows nothing of the wire, of devices, or of what the weights mean.
"""

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection, delete, func, insert, select

from adamix.errors import FailedPrecondition, Unavailable
from adamix_server import retry
from adamix_server.access.principal import SERVER, Actor
from adamix_server.access.quotas import NO_QUOTAS, Quotas
from adamix_server.blobs.local import BLOBS_DIRECTORY, BlobStore
from adamix_server.catalog import changes, retries, schema, stored_quotas
from adamix_server.catalog.audit import AuditLog
from adamix_server.catalog.changes import Change, grant_name
from adamix_server.catalog.grants import Grants
from adamix_server.catalog.heads import check_manifest, read_served
from adamix_server.catalog.keys import Keys
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.paging import bytes_of_task, check_page_size, count_that_fit, make_token, read_token
from adamix_server.catalog.pointer import Pointer, check_split
from adamix_server.catalog.reading import IsListed, read_ids, read_names, read_page, read_record, read_tasks
from adamix_server.catalog.rows import (
    Name,
    Page,
    Registration,
    Snapshot,
    TaskRow,
    VersionRecord,
    VersionRow,
    check_same_form,
)
from adamix_server.catalog.snapshots import Snapshots
from adamix_server.catalog.tenants import Tenants
from adamix_server.catalog.traces import open_catalog
from adamix_server.catalog.usage import UsageLog
from adamix_server.limits.control import MAX_PAGE_BYTES
from adamix_server.names import check_digest, check_name, check_request_id, version_not_found

_tasks, _versions, _pins = schema.tasks.c, schema.versions.c, schema.pins.c


class Catalog:
    """The catalog in a store directory, seen from one backbone.

    Every method raises InvalidRequest on a malformed id or digest, and Unavailable when the store is not where it was
    (`STORE_LOST`); mutations raise StoreFull when the disk is full and Unavailable (`CATALOG_BUSY`) when another
    process keeps the catalog locked.

    Args:
        store: the directory of `--store`, after `recovery.recover` has put it in order.
        backbone_fingerprint: of the backbone this server holds. Live pointers are kept per backbone.
        make: make what is not there. Only for who holds the store.
        default_quotas: of tenants that set none of their own, by name.

    Attributes:
        blobs: the bytes that the rows point to.
        tenants, keys, grants: who may call, and what for.
        audit_log, usage: what they did and took.

    Raises:
        FailedPrecondition, DataLoss: the store cannot be used (`database.Database`).
        Unavailable: it is not there (`STORE_LOST`).
    """

    def __init__(
        self, store: Path, *, backbone_fingerprint: str, make: bool = True, default_quotas: Quotas = NO_QUOTAS
    ) -> None:
        self._backbone = check_digest(backbone_fingerprint, "backbone_fingerprint")
        self._default_quotas = default_quotas
        self._database, self._traces = open_catalog(store, make=make)
        self.tenants = Tenants(self._database, self._traces)
        self.keys = Keys(self._database, self._traces)
        self.grants = Grants(self._database, self._traces)
        self.audit_log, self.usage = AuditLog(self._database), UsageLog(self._database)
        self.blobs = BlobStore(store / BLOBS_DIRECTORY, make=make)
        self._snapshots = Snapshots(self._database, self._backbone)

    def check(self) -> None:
        """Whether the store is still where it was; a look at two names. Raises Unavailable (`STORE_LOST`)."""
        self._database.check()
        self.blobs.check()

    def close(self) -> None:
        """Close the connections. The catalog must not be used afterwards."""
        self._database.close()

    def register(self, registration: Registration, by: Actor = SERVER) -> tuple[VersionRow, bool]:
        """Add a version to a task; makes the task if it is new.

        Returns:
            The version, and whether the task already had it. If it had, only what `make_live` asks can change.

        Raises:
            InvalidAdapter: the manifest is not one, or is for another backbone (`MANIFEST_INVALID`).
            InvalidRequest: the request id was used for something else (`REQUEST_ID_REUSED`).
            NotFound: no such tenant (`TENANT_NOT_FOUND`).
            QuotaExceeded: the tenant has as many tasks, versions of this one or bytes as it may have
                (`stored_quotas`).
            Unavailable: the blob is not there (`BLOB_MISSING`), e.g. purged a moment ago; upload it again.
        """
        tenant, task, digest = registration.tenant, registration.task, registration.digest
        check_name(tenant, "tenant")
        check_name(task, "task")
        check_digest(digest)
        check_manifest(registration.manifest_json, registration.backbone_fingerprint)
        if request_id := registration.request_id:
            check_request_id(request_id)
        asked = _asked(registration)
        registered: list[tuple[VersionRow, bool]] = []
        with self._traces.changing(registered) as connection:
            if request_id and (known := retries.recall(connection, tenant, request_id, asked)) is not None:
                return _as_it_was(registration, known), known.already_exists
            stored_quotas.check_registration(connection, registration, self._default_quotas)
            # A purge removes blobs under the same lock: what is there now, stays.
            if not self.blobs.exists(digest):
                raise Unavailable(
                    "the uploaded bytes are no longer stored; send them again",
                    reason="BLOB_MISSING",
                    # At once: nothing has to pass first.
                    retry_after_s=retry.MIN_S,
                )
            task_id = changes.find_or_make_task(connection, tenant, task)
            exists = digest in changes.ready_versions(connection, task_id)
            if not exists:
                connection.execute(
                    insert(schema.versions).values(
                        task_id=task_id,
                        digest=digest,
                        state=State.READY,
                        create_time_us=changes.now_us(),
                        num_bytes=registration.num_bytes,
                        backbone_fingerprint=registration.backbone_fingerprint,
                        manifest_json=registration.manifest_json,
                    )
                )
            moved = registration.make_live and changes.move_pointer(
                connection, task_id, registration.backbone_fingerprint, lambda pointer: pointer.set(((digest, 1),))
            )
            if moved or not exists:
                changes.record(connection, tenant, task, "register", digest, "live" if moved else "", by=by)
            version = self._read_task(connection, task_id).version(digest)
            if moved or not exists:
                registered.append((version, registration.make_live))
            if request_id:
                answered = retries.Answered(
                    create_time_us=version.create_time_us,
                    live=version.live,
                    pinned=version.pinned,
                    already_exists=exists,
                )
                retries.remember(connection, tenant, request_id, asked, answered)
            return version, exists

    def is_answered(self, registration: Registration) -> bool:
        """Whether `register` would change nothing, because it answered this very request before.

        Raises:
            InvalidRequest: the request id was used for something else (`REQUEST_ID_REUSED`).
        """
        check_request_id(registration.request_id)
        with self._database.read() as connection:
            answered = retries.recall(connection, registration.tenant, registration.request_id, _asked(registration))
            return answered is not None

    def check_room(self, registration: Registration) -> None:
        """What `register` would say of the tenant and its quotas now, before anything is done for it.

        Raises NotFound, QuotaExceeded.
        """
        with self._database.read() as connection:
            stored_quotas.check_registration(connection, registration, self._default_quotas)

    def set_traffic(
        self, tenant: str, task: str, shares: Iterable[tuple[str, int]], etag: str = "", *, by: Actor = SERVER
    ) -> TaskRow:
        """Let these (digest, weight) answer a task on this server's backbone.

        Raises:
            InvalidRequest: no versions, too many, one twice, or a weight out of range.
            NotFound: the task, or a version of it.
            FailedPrecondition: a version is for another backbone (`BACKBONE_CHANGED`), or two of them answer in
                different forms (`HEADS_DIFFER`).
            Aborted: the task is not as `etag` says.
        """
        split = check_split(shares)
        with self._traces.changing() as connection:
            task_id = changes.find_task(connection, tenant, task, etag)
            ready = changes.ready_versions(connection, task_id)
            for digest, _ in split:
                if digest not in ready:
                    raise version_not_found()
                if ready[digest] != self._backbone:
                    raise _for_another_backbone(digest)
            if len(split) > 1:
                task_row = self._read_task(connection, task_id)
                check_same_form(task_row.version(digest) for digest, _ in split)
            if changes.move_pointer(connection, task_id, self._backbone, lambda pointer: pointer.set(split)):
                detail = " ".join(f"{digest[:12]}={weight}" for digest, weight in split)
                changes.record(connection, tenant, task, "set_traffic", detail=detail, by=by)
            return self._read_task(connection, task_id)

    def rollback(self, tenant: str, task: str, etag: str = "", *, by: Actor = SERVER) -> TaskRow:
        """Make what was live before the current traffic live again; twice goes back twice.

        Raises:
            NotFound: the task.
            FailedPrecondition: nothing was live before (`NOTHING_EARLIER`).
            Aborted: the task is not as `etag` says.
        """
        with self._traces.changing() as connection:
            task_id = changes.find_task(connection, tenant, task, etag)
            changes.move_pointer(connection, task_id, self._backbone, Pointer.back)
            changes.record(connection, tenant, task, "rollback", by=by)
            return self._read_task(connection, task_id)

    def set_pinned(self, tenant: str, task: str, digest: str, pinned: bool, *, by: Actor = SERVER) -> VersionRow:
        """Note that a version is to be kept on the device, or no longer. It is forgotten with the version.

        Raises:
            NotFound: the task, or the version.
            QuotaExceeded: the tenant has pinned as many as it may (`QUOTA_PINNED_VERSIONS`).
            FailedPrecondition: a version for another backbone is to be pinned (`BACKBONE_CHANGED`).
        """
        check_digest(digest)
        with self._traces.changing() as connection:
            task_id = changes.find_task(connection, tenant, task)
            version = self._read_task(connection, task_id).version(digest)
            if pinned and version.backbone_fingerprint != self._backbone:
                raise _for_another_backbone(digest)
            if pinned and not version.pinned:
                stored_quotas.check_new_pin(connection, tenant, self._default_quotas)
            if changes.set_pin(connection, task_id, digest, pinned):
                changes.record(connection, tenant, task, "pin" if pinned else "unpin", digest, by=by)
            return self._read_task(connection, task_id).version(digest)

    def check_pin(self, tenant: str) -> None:
        """Raises QuotaExceeded (`QUOTA_PINNED_VERSIONS`) if `set_pinned` would pin no more for the tenant."""
        with self._database.read() as connection:
            stored_quotas.check_new_pin(connection, tenant, self._default_quotas)

    def pinned(self) -> tuple[str, ...]:
        """Digests of all pinned versions for this server's backbone, each once, the longest pinned first."""
        is_pin = (_pins.task_id == _versions.task_id) & (_pins.digest == _versions.digest)
        query = (
            select(_pins.digest)
            .where(is_pin, schema.is_ready, _versions.backbone_fingerprint == self._backbone)
            .group_by(_pins.digest)
            .order_by(func.min(_pins.id))
        )
        with self._database.read() as connection:
            return tuple(connection.scalars(query))

    def delete_version(self, tenant: str, task: str, digest: str, etag: str = "", *, by: Actor = SERVER) -> None:
        """Retire one version: no new request finds it. Its bytes stay until `purge`.

        Raises:
            NotFound: the task, or the version.
            FailedPrecondition: it is live on this server's backbone (`VERSION_LIVE`).
            Aborted: the task is not as `etag` says.
        """
        check_digest(digest)
        with self._traces.changing() as connection:
            task_id = changes.find_task(connection, tenant, task, etag)
            if digest not in changes.ready_versions(connection, task_id):
                raise version_not_found()
            pointers = changes.read_pointers(connection, task_id)
            if pointers.get(self._backbone, Pointer()).names(digest):
                raise FailedPrecondition(
                    "this version is live; make another one live first, or delete the task",
                    reason="VERSION_LIVE",
                )
            for backbone in pointers:
                changes.move_pointer(connection, task_id, backbone, lambda pointer: pointer.without(digest))
            changes.retire(connection, task_id, digest)
            changes.record(connection, tenant, task, "delete_version", digest, by=by)
        self._traces.forget([(tenant, task, digest)])

    def delete_task(self, tenant: str, task: str, etag: str = "", *, by: Actor = SERVER) -> None:
        """Remove a task with its grants, and retire all its versions. Their bytes stay until `purge`.

        Raises:
            NotFound: the task.
            Aborted: the task is not as `etag` says.
        """
        with self._traces.changing() as connection:
            task_id = changes.find_task(connection, tenant, task, etag)
            digests = changes.ready_versions(connection, task_id)
            lent = connection.scalars(select(schema.grants.c.tenant).where(schema.grants.c.task_id == task_id))
            grants: list[Change] = [("grant", tenant, grant_name(task, other)) for other in lent]
            changes.retire(connection, task_id)
            connection.execute(delete(schema.tasks).where(_tasks.id == task_id))
            changes.record(connection, tenant, task, "delete_task", by=by, also=grants)
        self._traces.forget((tenant, task, digest) for digest in digests)

    def tasks_with(self, digest: str) -> tuple[Name, ...]:
        """The tasks of all tenants that have a version in service with these bytes."""
        with self._database.read() as connection:
            return read_names(connection, check_digest(digest))

    def retired(self) -> tuple[str, ...]:
        """Digests of deleted versions, which wait for `purge`."""
        query = select(_versions.digest).where(schema.is_retired).distinct()
        with self._database.read() as connection:
            return tuple(connection.scalars(query))

    def purge(self, digest: str, *, unless_registered_since: int | None = None) -> bool:
        """End the retired versions with these bytes. Call it when no engine holds the digest any more.

        Args:
            unless_registered_since: a revision. Nothing is done if a task has got a version with these bytes after it,
                or if that is no longer known: whoever asked the engine before does not know of those who found that
                version.

        Returns:
            Whether the blob was removed; it is kept while any task has a version in service with the same bytes.
        """
        check_digest(digest)
        mine = _versions.digest == digest
        with self._database.write() as connection:
            if unless_registered_since is not None:
                changed = changes.changed_since(connection, unless_registered_since)
                if changed is None or any(digest == name for _, name in changed["version"]):
                    return False
            states = set(connection.scalars(select(_versions.state).where(mine)))
            if State.RETIRED in states:
                connection.execute(delete(schema.versions).where(mine, schema.is_retired))
            if states != {State.RETIRED}:
                return False
            # Under the write lock, so that no registration counts on bytes that go. If the process dies before the
            # commit, the rows are still RETIRED and the next purge finishes.
            self.blobs.delete(digest)
            return True

    def discard(self, digest: str) -> bool:
        """Remove the blob of a registration that failed, unless a version has these bytes, be it a retired one.

        Returns:
            Whether no version has them. A registration of the same bytes that has not committed yet is told so
            (`BLOB_MISSING`).
        """
        check_digest(digest)
        with self._database.write() as connection:
            if connection.execute(select(_versions.id).where(_versions.digest == digest).limit(1)).first() is not None:
                return False
            self.blobs.delete(digest)
            return True

    def get_task(self, tenant: str, task: str) -> TaskRow:
        """Raises NotFound."""
        with self._database.read() as connection:
            return self._read_task(connection, changes.find_task(connection, tenant, task))

    def list_tasks(
        self, tenant: str, page_size: int = 0, page_token: str = "", is_listed: IsListed | None = None
    ) -> Page[TaskRow]:
        """A tenant's tasks by name, as many as fit in a page. Raises InvalidRequest on a bad page size or token.

        Args:
            is_listed: whether a task of this id is; None for all. Of others not even the token tells.
        """
        listing = ("tasks", check_name(tenant, "tenant"))
        size, key = check_page_size(page_size), read_token(page_token, listing, str)
        with self._database.read() as connection:
            ids = read_ids(connection, tenant, "" if key is None else str(key[0]), size + 1, is_listed)
            found = read_tasks(connection, self._backbone, ids[:size], self._snapshots.known)
        rows = tuple(found[task_id] for task_id in ids[:size])
        rows = rows[: count_that_fit(map(bytes_of_task, rows))]
        return Page(rows, make_token(listing, [rows[-1].task]) if len(ids) > len(rows) else "")

    def get_version(self, tenant: str, task: str, digest: str) -> VersionRecord:
        """Raises NotFound: the task, or the version."""
        check_digest(digest)
        with self._database.read() as connection:
            task_id = changes.find_task(connection, tenant, task)
            row = self._read_task(connection, task_id).version(digest)
            return read_record(connection, task_id, row)

    def list_versions(self, tenant: str, task: str, page_size: int = 0, page_token: str = "") -> Page[VersionRecord]:
        """A task's versions, the last registered first, as many as fit in a page.

        Raises:
            NotFound: the task.
            InvalidRequest: a bad page size or token.
        """
        listing = ("versions", tenant, task)
        with self._database.read() as connection:
            task_id = changes.find_task(connection, tenant, task)
            size, key = check_page_size(page_size), read_token(page_token, listing, int)
            row = self._read_task(connection, task_id)
            before = None if key is None else int(key[0])
            records, last = read_page(connection, task_id, row, before, size, MAX_PAGE_BYTES)
        return Page(tuple(records), "" if last is None else make_token(listing, [last]))

    def revision(self) -> int:
        """Grows with every change of what is served."""
        with self._database.read() as connection:
            return changes.read_revision(connection)

    def snapshot(self) -> Snapshot:
        """Everything the data plane needs, of all tenants, at one revision.

        The first call reads all; later ones only what has changed since, and return the same object if nothing has.
        """
        return self._snapshots.newest()

    def _read_task(self, connection: Connection, task_id: int) -> TaskRow:
        return read_tasks(connection, self._backbone, [task_id], self._snapshots.known)[task_id]


def _for_another_backbone(digest: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"version {digest[:12]} was trained for another backbone than this server's", reason="BACKBONE_CHANGED"
    )


def _asked(registration: Registration) -> retries.Asked:
    return retries.Asked(task=registration.task, digest=registration.digest, make_live=registration.make_live)


def _as_it_was(registration: Registration, answered: retries.Answered) -> VersionRow:
    """The version as it was when it was answered for: by now it may have been changed or deleted."""
    head, max_length, writing = read_served(registration.manifest_json)
    return VersionRow(
        tenant=registration.tenant,
        task=registration.task,
        digest=registration.digest,
        state=State.READY,
        create_time_us=answered.create_time_us,
        num_bytes=registration.num_bytes,
        backbone_fingerprint=registration.backbone_fingerprint,
        head=head,
        max_length=max_length,
        live=answered.live,
        pinned=answered.pinned,
        writing=writing,
    )
