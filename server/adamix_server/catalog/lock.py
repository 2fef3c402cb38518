"""One server per store directory."""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from adamix.errors import FailedPrecondition
from adamix_server.blobs.directories import make_directory


class StoreLock:
    """Holds the store for this process until `release`, the end of the with-block, or the process's death.

    The lock is the kernel's (`flock`), so a kill -9 leaves nothing to clean up. It is not inherited by children.

    Args:
        directory: the store; made if it does not exist.
        option: what a person names it by.

    Raises:
        FailedPrecondition: another server holds it (`STORE_LOCKED`), or it cannot be written (`STORE_READONLY`).
    """

    def __init__(self, directory: Path, option: str = "--store") -> None:
        try:
            make_directory(directory)
            self._descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FailedPrecondition(
                f"the store cannot be made or opened ({error.strerror}); choose another {option}",
                reason="STORE_READONLY",
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            process = f" (process {owner})" if owner.isdecimal() else ""
            raise FailedPrecondition(
                f"another server{process} is using this store; stop it or choose another {option}",
                reason="STORE_LOCKED",
            ) from None
        # Only for the words of a refusal; a full disk must not keep a server from starting.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go. Once is enough; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
