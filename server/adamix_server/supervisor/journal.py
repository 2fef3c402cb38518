"""The one writer of what is written down late: entries of the audit, sums of usage, the days on which keys were used.

Front ends tell them every second; a thread writes them every few seconds, all in one transaction, and removes entries
that are too old, a few at a time. Nobody waits for it: neither a front end nor the supervisor's loop. A catalog that
cannot be written keeps a bounded number waiting, and the others are counted. What was told and not written when the
server is killed is lost: a few seconds' worth.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from adamix.errors import AdamixError
from adamix_server.access.entries import Entry
from adamix_server.access.sums import Sums, add
from adamix_server.catalog import audit, usage
from adamix_server.catalog.database import Database
from adamix_server.catalog.keys import note_used
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.channel.supervisor_frames import Account
from adamix_server.limits.audit import MAX_UNWRITTEN_ENTRIES

log = logging.getLogger(__name__)

WRITE_S = 5.0
# Between two looks for entries that are too old, where the last one has found none.
EXPIRE_S = 60.0
# Of tenants whose use waits for the catalog; front ends tell of no more in a second.
_MAX_TENANTS = 20_000
# For the last ones, when the server ends.
CLOSE_S = 5.0


class Journal:
    """Writes to the catalog of one store, from `start` to `close`. Thread-safe.

    Args:
        audit_days: how long entries are kept.
        clock_us: microseconds since 1970 UTC.
    """

    def __init__(
        self, store: Path, audit_days: int, *, clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000
    ) -> None:
        self._path = store / CATALOG_FILE
        self._audit_days = audit_days
        self._clock_us = clock_us
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        # What was told and is not written yet.
        self._entries: list[Entry] = []
        self._left_out = 0
        self._usage: dict[str, Sums] = {}
        self._keys: dict[str, str] = {}
        # The days that are written already: a key is told of every second that it is used in.
        self._written_keys: dict[str, str] = {}
        self._database: Database | None = None
        self._said = ""
        self._expire_at = 0.0

    def start(self) -> None:
        """Begin to write. The store must have its catalog."""
        # A daemon: a disk that does not answer keeps no server from ending.
        self._thread = threading.Thread(target=self._run, daemon=True, name="journal")
        self._thread.start()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is left, and end; not later than that."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.error("the last entries of the audit could not be written in time")

    def take(self, account: Account) -> None:
        """Keep what a front end has told, until it is written."""
        with self._changed:
            self._keep(account.entries)
            for sums in account.usage:
                self._add(sums)
            self._keys |= account.keys

    def write(self) -> None:
        """Write what has been told, and remove what is too old. Raises nothing that another try may not get over."""
        with self._changed:
            entries, self._entries = self._entries, []
            sums, self._usage = self._usage, {}
            keys = dict(self._keys.items() - self._written_keys.items())
            self._keys = {}
            left_out, self._left_out = self._left_out, 0
        try:
            database = self._opened()
            if entries or left_out or sums or keys:
                self._write(database, entries, left_out, list(sums.values()), keys)
            today = max(keys.values(), default="")
            self._written_keys = {key: day for key, day in self._written_keys.items() if day >= today} | keys
        except AdamixError as error:
            self._say(error)
            with self._changed:
                later, self._entries = self._entries, []
                self._keep([*entries, *later])
                self._left_out += left_out
                for each in sums.values():
                    self._add(each)
                self._keys = keys | self._keys
            return
        # What is written now must not be written again, whatever becomes of what is too old.
        try:
            self._expire(database)
            self._said = ""
        except AdamixError as error:
            self._say(error)

    def _say(self, error: AdamixError) -> None:
        """Once, until the catalog can be written again or fails otherwise."""
        if self._said != error.reason:
            log.warning("the audit waits for the catalog: %s", error.message, extra={"reason": error.reason})
        self._said = error.reason

    def _write(
        self, database: Database, entries: list[Entry], left_out: int, sums: list[Sums], keys: dict[str, str]
    ) -> None:
        if left_out:
            said = f"{left_out:,} entries were left out: the catalog could not be written"
            entries = [
                *entries,
                Entry(time_us=self._clock_us(), method="audit", code="RESOURCE_EXHAUSTED", detail=said),
            ]
        with database.write() as connection:
            audit.append(connection, entries)
            usage.add(connection, sums)
            note_used(connection, keys)

    def _expire(self, database: Database) -> None:
        """One step; the next one soon if there may be more."""
        if time.monotonic() >= self._expire_at:
            number = audit.AuditLog(database).expire(self._audit_days, self._clock_us())
            self._expire_at = 0.0 if number == audit.REMOVED_AT_ONCE else time.monotonic() + EXPIRE_S

    def _opened(self) -> Database:
        if self._database is None:
            self._database = Database(self._path, make=False)
        return self._database

    def _keep(self, entries: list[Entry]) -> None:
        room = MAX_UNWRITTEN_ENTRIES - len(self._entries)
        self._entries += entries[:room]
        self._left_out += max(0, len(entries) - room)

    def _add(self, sums: Sums) -> None:
        known = self._usage.get(sums.tenant)
        if known is not None:
            self._usage[sums.tenant] = add(known, sums)
        elif len(self._usage) < _MAX_TENANTS:
            self._usage[sums.tenant] = sums

    def _run(self) -> None:
        while True:
            with self._changed:
                is_last = self._changed.wait_for(lambda: self._is_closed, WRITE_S)
            try:
                self.write()
            except Exception:
                # Whatever it was about is gone; the audit must not end with it.
                log.exception("some of the audit was not written")
            if is_last:
                break
        if self._database is not None:
            self._database.close()
