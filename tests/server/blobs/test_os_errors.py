"""What an errno means to a caller, once for all."""

import errno
import os

import pytest

from adamix.errors import Code
from adamix_server.blobs.os_errors import from_os_error, shortage, store_errors

FULL = (Code.RESOURCE_EXHAUSTED, "STORE_FULL")
DESCRIPTORS = (Code.RESOURCE_EXHAUSTED, "OUT_OF_DESCRIPTORS")
LOST = (Code.UNAVAILABLE, "STORE_LOST")
READONLY = (Code.FAILED_PRECONDITION, "STORE_READONLY")

MEANINGS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FULL),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), DESCRIPTORS),
    errno.ENOMEM: (Code.RESOURCE_EXHAUSTED, "OVERLOADED"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN), LOST),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), READONLY),
    errno.EINVAL: None,
    errno.EBADF: None,
}


@pytest.mark.parametrize(("number", "meaning"), MEANINGS.items(), ids=[errno.errorcode[number] for number in MEANINGS])
def test_each_errno_has_one_meaning(number: int, meaning: tuple[Code, str] | None) -> None:
    error = OSError(number, os.strerror(number), "/secret/path")
    known = from_os_error(error)
    assert (known and (known.code, known.reason)) == meaning
    if known is not None:
        assert "/secret" not in known.message
        # Waiting helps where somebody may give something back, or put it back.
        assert (known.retry_after_s is not None) == (known.reason in ("OUT_OF_DESCRIPTORS", "OVERLOADED", "STORE_LOST"))


def test_elsewhere_than_in_the_store_only_a_shortage_has_a_meaning() -> None:
    for number, meaning in MEANINGS.items():
        found = shortage(OSError(number, os.strerror(number)))
        assert (found and found.reason) == (meaning and meaning[1] if meaning not in (LOST, READONLY) else None)


def test_a_bug_stays_one() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"), store_errors():
        os.close(-1)
