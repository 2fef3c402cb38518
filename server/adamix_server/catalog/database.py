"""One SQLite file: opened safely, written by one transaction at a time, its errors translated.

WAL with synchronous=FULL: a commit that returned survives power loss. The only file of the catalog that knows which
database it is. Knows nothing of what the tables mean.
"""

import os
import resource
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event, insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, Unavailable
from adamix_server import retry
from adamix_server.blobs.directories import make_directory
from adamix_server.blobs.os_errors import from_os_error, no_memory, store_errors, store_full, store_lost, store_readonly
from adamix_server.catalog import schema
from adamix_server.config import DEFAULT_TENANT

_BUSY_TIMEOUT_MS = 5_000
# Beside the file, with the changes that it has not taken in yet.
LOG_SUFFIXES = ("-wal", "-shm")
_disk_errors = retry.Lasting()
# As much as a commit of ours may add to the log; what a full disk, a quota or a limit refuses, it refuses of this too.
_PROBE_BYTES = 64 << 10


# Brings a file of an older schema up to date, or raises.
Upgrade = Callable[["Database"], None]

# Asked before a catalog is made where there is none; raises if there should be one.
OnNew = Callable[[], None]


class Database:
    """The file at `path`, with its tables.

    Safe to use from several threads and processes. Only this very file is ever used: one that takes its place while
    it is open, or is made there, is another catalog.

    Args:
        upgrade: what to do with a file of an older schema; by default it is refused. Only for who holds the store.
        on_new: asked before a new one is made, and before anything is written; by default it is made.
        make: make it if it does not exist. Only for who holds the store, too.

    Raises:
        AdamixError: what `upgrade` or `on_new` raise.
        Unavailable: it is not there (`STORE_LOST`).
        FailedPrecondition: of an older or a newer schema (`STORE_SCHEMA`), made by something else (`STORE_FOREIGN`), or
            not writable (`STORE_READONLY`).
        DataLoss: not a database, or damaged (`CATALOG_CORRUPT`).
    """

    def __init__(
        self, path: Path, *, upgrade: Upgrade | None = None, on_new: OnNew = lambda: None, make: bool = True
    ) -> None:
        self.path = path
        with store_errors():
            if make and is_absent(path):
                on_new()
                if not path.exists():
                    _make_empty(path)
            self._identity = _identity(path)
            if make:
                _close_to_others(path)
        # Overflow without bound: the callers' executors bound the threads, and a pool timeout would be one more
        # error to explain.
        # mode=rw: SQLite would make a new file where somebody has moved ours away.
        url = URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query={"mode": "rw", "uri": "true"})
        self._engine = create_engine(url, pool_size=8, max_overflow=-1, hide_parameters=True)
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(adamix_write=True)
        # Threads of one process queue here, fairly; only other processes are met by SQLite's polling.
        self._write_lock = threading.Lock()
        try:
            self._prepare(upgrade, on_new, make)
        except BaseException:  # nothing is handled: the connections are closed, and it goes on
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that excludes every other writer from its start; durable when the block has ended.

        An exception inside the block undoes all of it. Unavailable (`STORE_LOST`) at its end alone says that the file
        went away meanwhile: whether the change comes back with it is not known.
        """
        with self._translated(), self._write_lock, self._writing.begin() as connection:
            yield connection
        self.check()

    @contextmanager
    def alter(self) -> Iterator[Connection]:
        """As `write`, for changes of the tables themselves: foreign keys are checked at the end, not inside.

        SQLite alters most of a table by copying it and dropping the old one. With foreign keys in force, dropping it
        would delete what refers to its rows; and they can only be switched outside of a transaction.
        """
        with self._translated(), self._write_lock, self._writing.connect() as connection:
            # Not by `connection.execute`, which would begin a transaction.
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA foreign_keys = OFF")
            try:
                with connection.begin():
                    yield connection
                    if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                        raise corrupt()
            finally:
                cursor.execute("PRAGMA foreign_keys = ON")
                cursor.close()

    def check(self) -> None:
        """Whether the file is still where it was opened. A look at its name, no more.

        A connection goes on with a file that was moved or deleted: what is written then is lost without a word.

        Raises:
            Unavailable: it is not (`STORE_LOST`).
        """
        with store_errors():
            if _identity(self.path) != self._identity:
                raise store_lost()

    def verify(self) -> None:
        """Read the whole file and check it. Raises DataLoss (`CATALOG_CORRUPT`)."""
        with self.read() as connection:
            check_whole(connection)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        self.check()
        with translated(self._look):
            yield

    def _look(self) -> AdamixError | None:
        """What ails the store, asked of the file system after SQLite has failed: SQLite keeps its errno to itself."""
        try:
            self.check()
            if not self.path.is_file() or not os.access(self.path, os.R_OK | os.W_OK):
                return store_readonly()
            limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            # The files themselves must not be opened here: closing them would end the locks that SQLite has on them.
            files = (self.path.with_name(self.path.name + end) for end in ("", *LOG_SUFFIXES))
            largest = max(file.stat().st_size for file in files if file.exists())
            if limit not in (resource.RLIM_INFINITY, -1) and largest + _PROBE_BYTES > limit:
                return store_full()
            with tempfile.TemporaryFile(dir=self.path.parent) as probe:
                probe.write(bytes(_PROBE_BYTES))
        except AdamixError as error:
            return error
        except OSError as error:
            return from_os_error(error)
        finally:
            # The connections may be to a disk that is gone and back: whoever comes next opens the file anew.
            self._engine.dispose()
        return None

    def _prepare(self, upgrade: Upgrade | None, on_new: OnNew, make: bool) -> None:
        with self.read() as connection:
            version = schema_version(connection)
            application = _pragma(connection, "application_id")
        if version == 0:
            if not make:
                raise store_lost()
            self._create(on_new)
        elif application != schema.APPLICATION_ID:
            raise _foreign()
        elif version > schema.SCHEMA_VERSION:
            raise other_schema(version)
        elif version < schema.SCHEMA_VERSION:
            if upgrade is None:
                raise other_schema(version)
            upgrade(self)

    def _create(self, on_new: OnNew) -> None:
        with self.write() as connection:
            # Asked again under the lock: another process may have made it since.
            if schema_version(connection) == schema.SCHEMA_VERSION:
                return
            if connection.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1").first() is not None:
                raise _foreign()
            # A file may be there and hold nothing: all that was written to it is in a log that is gone.
            on_new()
            schema.metadata.create_all(connection)
            connection.execute(insert(schema.state).values(id=1, revision=0))
            connection.execute(insert(schema.identity).values(id=1, store_id=secrets.token_hex(16)))
            now_us = time.time_ns() // 1_000
            tenant = {"tenant": DEFAULT_TENANT, "create_time_us": now_us, "update_time_us": now_us}
            connection.execute(insert(schema.tenants).values(tenant))
            ends = {"removed_id": 0, "removed_hash": schema.FIRST_HASH, "last_id": 0, "last_hash": schema.FIRST_HASH}
            connection.execute(insert(schema.audit_ends).values(id=1, **ends))
            connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            set_schema_version(connection, schema.SCHEMA_VERSION)


@contextmanager
def reading(path: Path, *, is_copy: bool = False) -> Iterator[Connection]:
    """A transaction that reads a catalog of this schema and leaves all files as they are, its log, too.

    Args:
        is_copy: nobody writes to it, and it has no log.

    Raises:
        FailedPrecondition: without tables (`CATALOG_MISSING`), of another schema (`STORE_SCHEMA`), or made by something
            else (`STORE_FOREIGN`).
        DataLoss: not a database, or damaged (`CATALOG_CORRUPT`).
    """
    query = {"mode": "ro", "uri": "true"} | ({"immutable": "1"} if is_copy or is_fixed(path) else {})
    engine = create_engine(URL.create("sqlite", database=f"file:{quote(str(path))}", query=query))
    try:
        with translated(), engine.begin() as connection:
            if (version := schema_version(connection)) == 0:
                raise FailedPrecondition("catalog.db holds nothing", reason="CATALOG_MISSING")
            if _pragma(connection, "application_id") != schema.APPLICATION_ID:
                raise _foreign()
            if version != schema.SCHEMA_VERSION:
                raise other_schema(version)
            yield connection
    finally:
        engine.dispose()


def check_whole(connection: Connection) -> None:
    """Read the whole database and check it. Raises DataLoss (`CATALOG_CORRUPT`)."""
    found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
    if found != "ok" or connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
        raise corrupt()


def is_absent(path: Path) -> bool:
    """Whether there is no database, or an empty file for one."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def is_fixed(path: Path) -> bool:
    """Whether nobody can be writing to a database: it has no log, and none can be made (a read-only disk, say).

    SQLite reads one with a log of its own only where it can make that, unless it is told so.
    """
    has_log = any(path.with_name(path.name + suffix).exists() for suffix in LOG_SUFFIXES)
    return not has_log and not os.access(path.parent, os.W_OK)


def _close_to_others(path: Path) -> None:
    """Mode 0600 for the database, whatever the umask, and for its logs, which SQLite gives the mode of the database.

    Of files that are another user's it is left: opening them says what is wrong.
    """
    for file in (path, *(path.with_name(path.name + suffix) for suffix in LOG_SUFFIXES)):
        with suppress(OSError):
            file.chmod(0o600)


def schema_version(connection: Connection) -> int:
    """The number of the last migration that the file has; 0 of a new one."""
    return _pragma(connection, "user_version")


def set_schema_version(connection: Connection, version: int) -> None:
    """Part of the transaction, as everything else in it."""
    connection.exec_driver_sql(f"PRAGMA user_version = {version:d}")


def _make_empty(path: Path) -> None:
    """An empty file is a new database to SQLite. Another process that makes it at the same time makes the same."""
    make_directory(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@contextmanager
def translated(look: Callable[[], AdamixError | None] = lambda: None) -> Iterator[None]:
    """Turn errors of SQLite into those of `adamix.errors`, where its reader can do something about them.

    Args:
        look: what ails the store, as the file system tells it; None if nothing does.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:  # the second kind from `_configure`, which the pool calls
        found = _translate(error.orig if isinstance(error, DBAPIError) else error, look)
        if found is None:
            raise
        raise found from error


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    # None: the driver opens no transactions of its own; `_begin` opens every one, of the kind it should be.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    # A write that starts as a read can find, when it wants to write, that it must start over: IMMEDIATE cannot.
    write = connection.get_execution_options().get("adamix_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def _translate(
    error: BaseException | None, look: Callable[[], AdamixError | None] = lambda: None
) -> AdamixError | None:
    """What the reader of the error can do something about; None for the rest, which are bugs."""
    extended_code = getattr(error, "sqlite_errorcode", 0)
    code = extended_code & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        # It was waited for for so long already, and may well take as long again.
        retry_after_s = retry.within(_BUSY_TIMEOUT_MS / 1000)
        return Unavailable("the catalog is busy; try again", reason="CATALOG_BUSY", retry_after_s=retry_after_s)
    # The second: the index of the log cannot grow, which is how a full disk shows where the log itself still fits.
    if code == sqlite3.SQLITE_FULL or extended_code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return store_full()
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return corrupt()
    if extended_code == sqlite3.SQLITE_READONLY_DBMOVED:
        return store_lost()
    # In these, SQLite says that something failed and not what: a descriptor, a quota, a disk that is gone.
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        if (known := look()) is not None:
            return known
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return store_readonly()
        # Whatever it was has passed, or shows in nothing but this.
        retry_after_s = _disk_errors.next(time.monotonic())
        return Unavailable("the disk of the store reports errors", reason="STORE_IO", retry_after_s=retry_after_s)
    return no_memory() if code == sqlite3.SQLITE_NOMEM else None


def other_schema(version: int) -> FailedPrecondition:
    """What is said of a file that this adamix does not read as it is."""
    if version > schema.SCHEMA_VERSION:
        return FailedPrecondition(
            f"this store was written by a newer adamix (schema {version}; this one reads up to "
            f"{schema.SCHEMA_VERSION}); upgrade adamix or choose another --store",
            reason="STORE_SCHEMA",
        )
    return FailedPrecondition(
        f"this store was written by an older adamix (schema {version}, not {schema.SCHEMA_VERSION}); "
        "start `adamix serve` on it, which brings it up to date",
        reason="STORE_SCHEMA",
    )


def corrupt() -> DataLoss:
    """What is said of a catalog that is damaged, with the ways on."""
    return DataLoss(
        "the catalog is damaged; bring it back with `adamix store restore` (from a backup) or `adamix store rebuild` "
        "(from the adapter files), or choose another --store. Nothing was changed or deleted",
        reason="CATALOG_CORRUPT",
    )


def _foreign() -> AdamixError:
    return FailedPrecondition("catalog.db was not made by adamix; choose another --store", reason="STORE_FOREIGN")
