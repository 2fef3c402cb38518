"""Files that the operator lets clients register by name: everything below one directory, and nothing else.

A name comes from a stranger. It is opened one component at a time, each relative to the directory opened before it and
none through a link, so that no name and nobody who renames things meanwhile leads out of the root. What was opened is
read as bytes into a temporary file, like an upload: whatever happens to the file afterwards does not matter. The bytes
themselves are not looked at here.
"""

import errno
import os
import stat
import time
from pathlib import Path

from adamix.errors import AdamixError, FailedPrecondition, InvalidAdapter, InvalidRequest, Unavailable
from adamix_server import retry
from adamix_server.blobs.local import Temporary
from adamix_server.blobs.os_errors import shortage
from adamix_server.limits.adapters import MAX_ADAPTER_BYTES
from adamix_server.limits.control import MAX_CHUNK_BYTES
from adamix_server.limits.messages import MAX_FILE_NAME_BYTES

FIELD = "header.file"

_unreadable = retry.Lasting()

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Not waiting: opening a pipe that nobody writes to would take the thread for good.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_ABSENT = {errno.ENOENT, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
# A link; a component that is a link or no directory; a socket or a device without a driver.
_IRREGULAR = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV}


class AdapterRoot:
    """The directory of `--adapter-root`. Blocks on the disk; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def copy(self, name: str, temporary: Temporary) -> None:
        """Append the file that a client calls `name`, a relative path with `/` between its parts, to `temporary`.

        Raises:
            InvalidRequest: not such a path (`FILE_INVALID`), or there is no such file that the server may read
                (`FILE_NOT_FOUND`).
            FailedPrecondition: it is no regular file, or reached through a link (`FILE_NOT_REGULAR`); the root itself
                is gone (`NO_ADAPTER_ROOT`).
            InvalidAdapter: over 256 MiB (`TOO_LARGE`), before or while it is read.
            Unavailable: the disk fails (`FILE_IO`).
            StoreFull: no room for the copy.
            Overloaded: the process has no descriptor left (`OUT_OF_DESCRIPTORS`).
            Cancelled: `temporary` was closed meanwhile.
        """
        parts = _parts(name)
        descriptor = self._open(parts)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise _not_regular()
            if found.st_size > MAX_ADAPTER_BYTES:
                raise too_large()
            while chunk := _read(descriptor):
                # Somebody may be writing to it still.
                if temporary.num_bytes + len(chunk) > MAX_ADAPTER_BYTES:
                    raise too_large()
                temporary.write(chunk)
        finally:
            os.close(descriptor)

    def _open(self, parts: list[bytes]) -> int:
        """The file's descriptor. Raises as `copy` does."""
        *directories, last = parts
        try:
            descriptor = os.open(self._path, _DIRECTORY)
        except OSError as error:
            raise shortage(error) or FailedPrecondition(
                "the server cannot open its adapter root; upload the file instead", reason="NO_ADAPTER_ROOT"
            ) from None
        try:
            for part in directories:
                descriptor = _step(descriptor, part, _DIRECTORY | os.O_NOFOLLOW)
            return _step(descriptor, last, _FILE)
        except OSError as error:
            raise _explain(error) from None


def too_large() -> InvalidAdapter:
    """What is said of a file over the limit, however it arrives."""
    return InvalidAdapter(f"file is over {MAX_ADAPTER_BYTES >> 20} MiB", reason="TOO_LARGE")


def _parts(name: str) -> list[bytes]:
    """The components of a name. Raises InvalidRequest (`FILE_INVALID`)."""
    parts = name.split("/")
    if (
        len(name.encode()) > MAX_FILE_NAME_BYTES
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or "\0" in name
    ):
        raise InvalidRequest(
            f"{FIELD} is not a relative path below the adapter root; use at most {MAX_FILE_NAME_BYTES} bytes, `/` "
            "between parts, and no empty part, `.`, `..`, backslash or NUL",
            reason="FILE_INVALID",
            field=FIELD,
        )
    return [part.encode() for part in parts]


def _step(directory: int, part: bytes, flags: int) -> int:
    """Open one component; closes the directory it lies in. Raises OSError."""
    try:
        return os.open(part, flags, dir_fd=directory)
    finally:
        os.close(directory)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, MAX_CHUNK_BYTES)
    except OSError as error:
        raise _explain(error) from None


def _explain(error: OSError) -> AdamixError:
    if error.errno in _ABSENT:
        return InvalidRequest(
            "the adapter root has no file of this name that the server may read", reason="FILE_NOT_FOUND", field=FIELD
        )
    if error.errno in _IRREGULAR:
        return _not_regular()
    if (known := shortage(error)) is not None:
        return known
    retry_after_s = _unreadable.next(time.monotonic())
    return Unavailable("the file cannot be read now; try again", reason="FILE_IO", retry_after_s=retry_after_s)


def _not_regular() -> FailedPrecondition:
    return FailedPrecondition(
        "this is not a regular file, or the way to it is not all directories; links are not followed",
        reason="FILE_NOT_REGULAR",
    )
