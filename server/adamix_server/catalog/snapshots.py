"""The newest snapshot of a catalog: read as a whole once, and then only what has changed.

Knows nothing of who changes the catalog.
"""

import threading
from collections.abc import Mapping

from sqlalchemy import Connection, select, tuple_

from adamix_server.catalog import changes, schema
from adamix_server.catalog.access_reading import NO_ACCESS_MAPS, AccessMaps
from adamix_server.catalog.database import Database
from adamix_server.catalog.parted_map import PartedMap
from adamix_server.catalog.reading import read_all, read_tasks
from adamix_server.catalog.rows import Name, Snapshot, TaskRow

_tasks, _log = schema.tasks.c, schema.changes.c


class Snapshots:
    """Of one catalog, seen from one backbone. Safe to use from several threads."""

    def __init__(self, database: Database, backbone_fingerprint: str) -> None:
        self._database = database
        self._backbone = backbone_fingerprint
        # What was last read, and what it is made of.
        self._snapshot: Snapshot | None = None
        self._tasks: PartedMap[Name, TaskRow] = PartedMap.of(())
        self._access = NO_ACCESS_MAPS
        self._lock = threading.Lock()

    @property
    def known(self) -> Mapping[Name, TaskRow]:
        """The tasks of the last one."""
        return self._tasks

    def newest(self) -> Snapshot:
        """The first call reads all; later ones only what has changed since. The same object if nothing has."""
        with self._lock, self._database.read() as connection:
            known, revision = self._snapshot, changes.read_revision(connection)
            if known is not None and known.revision == revision:
                return known
            changed = None if known is None else changes.changed_since(connection, known.revision)
            if known is None or changed is None:
                rows = read_all(connection, self._backbone)
                self._tasks = PartedMap.of(((row.tenant, row.task), row) for row in rows)
                self._access = AccessMaps.read(connection)
                self._snapshot = Snapshot(revision=revision, tasks=self._tasks, access=self._access.access)
            else:
                touched = changed["task"]
                if touched:
                    read = self._read_changed(connection, known.revision)
                    self._tasks = self._tasks.changed(dict.fromkeys(touched) | read)
                self._access = self._access.changed(connection, changed)
                self._snapshot = Snapshot(
                    revision=revision,
                    tasks=self._tasks,
                    access=self._access.access,
                    since=known.revision,
                    touched=frozenset(touched),
                )
            return self._snapshot

    def _read_changed(self, connection: Connection, since: int) -> dict[Name, TaskRow]:
        """Those tasks that changed after a revision and still exist, by name."""
        logged = select(_log.tenant, _log.name).where(_log.revision > since, _log.kind == "task")
        ids = connection.scalars(select(_tasks.id).where(tuple_(_tasks.tenant, _tasks.task).in_(logged)))
        rows = read_tasks(connection, self._backbone, ids, self._tasks).values()
        return {(row.tenant, row.task): row for row in rows}
