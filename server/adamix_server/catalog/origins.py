"""What each registration leaves beside the adapter file: `origins/<tenant>/<task>/<digest>.json`.

An adapter file says what it is, and not whose; these say that, so that all tasks and versions can be made again from
files alone where the catalog is lost. One is written before the registration commits, and removed after the version is
deleted: a kill in between leaves one too many, never one too few. Knows no tables.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from adamix.errors import InvalidRequest
from adamix_server.blobs.directories import ARRIVING, make_directory, replace_file
from adamix_server.blobs.os_errors import store_errors
from adamix_server.catalog.store_file import Revision
from adamix_server.names import check_digest, check_name, is_digest

log = logging.getLogger(__name__)

ORIGINS_DIRECTORY = "origins"
# To put one file on disk takes some milliseconds; all files of the machine at once, some seconds.
_MANY = 1_000

# (tenant, task, digest)
Key = tuple[str, str, str]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """One registration.

    Attributes:
        store_id: of the store whose revisions `revision` counts.
        revision: at which it was committed; the order of registrations, whatever the clock said.
        time: UTC, at which the task got the version.
        live: whether it made the version answer its task.
    """

    format: Literal["adamix-origin/1"] = "adamix-origin/1"
    tenant: str
    task: str
    digest: str
    store_id: str
    revision: Revision
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    live: bool

    @property
    def key(self) -> Key:
        return self.tenant, self.task, self.digest


_decoder = msgspec.json.Decoder(Origin)


class Origins:
    """The files below one directory. Safe to use from several threads and processes at once.

    Args:
        root: the directory; made with the first file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: Key) -> Path:
        """Where the file is, whether or not it is there. Raises InvalidRequest on what is no id or digest."""
        tenant, task, digest = key
        return self._root / check_name(tenant, "tenant") / check_name(task, "task") / f"{check_digest(digest)}.json"

    def put(self, origin: Origin, *, is_durable: bool = True) -> None:
        """Write one, over that of the same version. Raises StoreFull."""
        path = self.path(origin.key)
        with store_errors():
            if not path.parent.is_dir():
                make_directory(path.parent, is_durable=is_durable)
            replace_file(path, msgspec.json.encode(origin) + b"\n", is_durable=is_durable)

    def put_all(self, origins: Iterable[Origin]) -> None:
        """Write those that do not say the same already. Raises StoreFull."""
        new = [origin for origin in origins if self.read(origin.key) != origin]
        is_many = len(new) > _MANY
        if is_many:
            log.info("noting for each version where it came from, once", extra={"versions": len(new)})
        for origin in new:
            self.put(origin, is_durable=not is_many)
        if is_many:
            os.sync()

    def read(self, key: Key) -> Origin | None:
        """None if there is none, or none that can be read."""
        try:
            origin = _decoder.decode(self.path(key).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None
        return origin if origin.key == key else None

    def remove(self, key: Key) -> None:
        """One that is not there is fine. A crash may undo this."""
        self.path(key).unlink(missing_ok=True)

    def keys(self) -> Iterator[Key]:
        """Of every file that has a version's name and is not empty, in no order."""
        for tenant in _directories(self._root):
            for task in _directories(tenant):
                for path in task.iterdir():
                    key = tenant.name, task.name, path.stem
                    if path.suffix == ".json" and _is_key(key) and _has_content(path):
                        yield key

    def tidy(self) -> None:
        """Remove directories without files, and what a crash has left half written. Only for who holds the store."""
        for tenant in _directories(self._root):
            for task in _directories(tenant):
                for path in task.glob(f"{ARRIVING}*"):
                    path.unlink(missing_ok=True)
                _remove_if_empty(task)
            _remove_if_empty(tenant)


def _directories(path: Path) -> list[Path]:
    try:
        return [found for found in path.iterdir() if found.is_dir() and not found.is_symlink()]
    except FileNotFoundError:
        return []


def _is_key(key: Key) -> bool:
    tenant, task, digest = key
    try:
        check_name(tenant, "tenant")
        check_name(task, "task")
    except InvalidRequest:
        return False
    return is_digest(digest)


def _has_content(path: Path) -> bool:
    """Of one that is removed meanwhile, or leads nowhere, no."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
