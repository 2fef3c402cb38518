"""Files read once and written whole. Knows nothing of what is in them."""

import os
import stat
from pathlib import Path

from adamix.errors import InvalidAdapter
from adamix.files.tensors import MAX_FILE_BYTES


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file under the size limit, read once and never mapped.

    A pipe, device or directory is refused instead of waited for.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidAdapter("not a regular file", reason="NOT_A_FILE")
        if info.st_size > MAX_FILE_BYTES:
            raise InvalidAdapter(f"file is over {MAX_FILE_BYTES >> 20} MiB", reason="TOO_LARGE")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(fd)


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
