"""What the operating system refuses, in the words of the error tree: no room, no descriptors, a store that is gone.

The one place where an errno gets its meaning for callers. Knows numbers of the operating system; knows no file.
"""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager

from adamix.errors import AdamixError, FailedPrecondition, Overloaded, StoreFull, Unavailable
from adamix_server import retry

# A file-size limit of the process (`ulimit -f`) or of the file system is met like a full disk: there is room for less.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Of the process, of the machine.
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
# The directory was removed or moved, its file system unmounted, its disk or its server is gone.
_GONE = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV),
        *(errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EREMOTEIO),
    }
)
# Also a file system that the kernel has made read-only after errors.
_NOT_OURS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})

# How often a server looks whether its store is back.
STORE_CHECK_S = 1.0
# Of this process's machine and store: none has more than one.
_lost, _no_descriptors, _no_memory = retry.Lasting(), retry.Lasting(), retry.Lasting()


def store_full() -> StoreFull:
    """What is said wherever the disk of a store has no room."""
    return StoreFull("the server's disk is full; free space or delete versions, then try again")


def store_lost() -> Unavailable:
    """What is said wherever the files of a store are not where they were."""
    return Unavailable(
        "the server's store cannot be reached; it goes on by itself once the store's directory is back as it was",
        reason="STORE_LOST",
        retry_after_s=_lost.next(time.monotonic()),
    )


def store_readonly() -> FailedPrecondition:
    """What is said wherever a store's files may not be written."""
    return FailedPrecondition("the store cannot be opened for writing", reason="STORE_READONLY")


def shortage(error: OSError) -> AdamixError | None:
    """What the machine has too little of, whatever file it was about; None if `error` says nothing of the kind."""
    if error.errno in _NO_ROOM:
        return store_full()
    if error.errno in _NO_DESCRIPTORS:
        return Overloaded(
            "the server has no file descriptor left for this; try again",
            reason="OUT_OF_DESCRIPTORS",
            retry_after_s=_no_descriptors.next(time.monotonic()),
        )
    return no_memory() if error.errno == errno.ENOMEM else None


def no_memory() -> Overloaded:
    """What is said wherever the machine gives no memory."""
    retry_after_s = _no_memory.next(time.monotonic())
    return Overloaded("the server's machine has no memory for this now; try again", retry_after_s=retry_after_s)


def from_os_error(error: OSError) -> AdamixError | None:
    """What an error on the store's own files means for a caller; None for the rest, which are bugs."""
    if error.errno in _GONE:
        return store_lost()
    if error.errno in _NOT_OURS:
        return store_readonly()
    return shortage(error)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the operating system on the store's own files into those of `adamix.errors`."""
    try:
        yield
    except OSError as error:
        if (known := from_os_error(error)) is None:
            raise
        raise known from error
