"""Brings a catalog of an older schema up to date, and keeps the old file beside it.

One transaction holds every other writer off, copies the file as it is, and runs the migrations: a kill at any moment
leaves the old schema or the new one, and no copy that is not whole. Knows no table; what changes is in `migrations/`.

Which schema a file has is said once, by `PRAGMA user_version`, since every adamix there ever was looks there and
refuses what is newer; alembic's own table would be a second truth. Alembic gives the operations and the order of the
scripts; it is imported only here and only when there is something to do.
"""

import filecmp
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from adamix.errors import DataLoss
from adamix_server.blobs.directories import sync_directory
from adamix_server.blobs.os_errors import store_errors
from adamix_server.catalog import migrations, schema
from adamix_server.catalog.database import Database, schema_version, set_schema_version, translated

if TYPE_CHECKING:
    from alembic.script import Script

log = logging.getLogger(__name__)


def upgrade(database: Database) -> None:
    """Migrate the file of `database` to `schema.SCHEMA_VERSION`. Only under the `StoreLock`.

    The old file is kept as `catalog.db.v<N>`, N being its schema. A kept file is never overwritten: where another one
    has that name already, this one is `catalog.db.v<N>.1`, and so on.

    Raises:
        StoreFull: there is no room for the copy or for the change; the catalog is as it was.
        DataLoss: the catalog is damaged (`CATALOG_CORRUPT`).
    """
    database.verify()
    with database.alter() as connection:
        old = schema_version(connection)
        kept = _keep(database.path, old)
        migrate(connection, schema.SCHEMA_VERSION)
    log.info(
        "the catalog was brought up to date",
        extra={"from_schema": old, "to_schema": schema.SCHEMA_VERSION, "kept": kept.name},
    )


def migrate(connection: Connection, version: int) -> None:
    """Run the migrations from the schema that the file has up to `version`, inside `Database.alter`."""
    # It tells the log of its own steps, from its import on; `upgrade` says what there is to say.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    old = schema_version(connection)
    with Operations.context(MigrationContext.configure(connection)):
        for number, script in _scripts():
            if old < number <= version:
                script.module.upgrade()
                set_schema_version(connection, number)


def _scripts() -> "Iterator[tuple[int, Script]]":
    """The migrations with their numbers, from the first."""
    from alembic.script import ScriptDirectory

    (directory,) = migrations.__path__
    scripts = ScriptDirectory(directory, version_locations=[directory])
    for script in reversed(list(scripts.walk_revisions())):
        yield int(script.revision.partition("_")[0]), script


def _keep(path: Path, version: int) -> Path:
    """Copy the catalog, while nobody writes, to a name that tells its schema; gives the file that has the copy."""
    # A directory, because SQLite may put files beside the one it writes to; a kill leaves it to the next start.
    workplace = path.with_name(f"{path.name}.copying")
    shutil.rmtree(workplace, ignore_errors=True)
    try:
        with store_errors(), translated():
            workplace.mkdir(mode=0o700)
            copied = _copy(path, workplace / path.name)
            for number in count():
                target = path.with_name(f"{path.name}.v{version}" + (f".{number}" if number else ""))
                if not target.exists():
                    copied.rename(target)
                    sync_directory(target.parent)
                    return target
                # An upgrade that was cut short has kept it already.
                if filecmp.cmp(copied, target, shallow=False):
                    return target
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    raise AssertionError("there is always another number")


def _copy(path: Path, to: Path) -> Path:
    """The catalog as one file, checked and on disk. A copy of the file alone would miss what its log holds."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        if copy.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise DataLoss("the copy of the catalog is damaged; nothing was changed", reason="CATALOG_CORRUPT")
    with to.open("rb") as file:
        os.fsync(file.fileno())
    return to
