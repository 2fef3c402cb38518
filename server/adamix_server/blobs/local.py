"""Content-addressed storage of adapter files: a name is the sha256 of the bytes, and a name never changes its bytes.

Layout under the root: `sha256/ab/<digest>` (mode 0400, complete and on disk before they have that name) and `tmp/`
for what is still arriving. A crash at any moment leaves a blob whole or absent, and at worst temporaries, which
`sweep` removes at the next start. This module knows nothing of tenants, tasks or what the bytes mean.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adamix.errors import Cancelled, DataLoss, InvalidAdapter
from adamix_server.blobs.directories import make_directory, sync_directory
from adamix_server.blobs.os_errors import store_errors, store_lost
from adamix_server.names import check_digest

# The root, below the directory of a store.
BLOBS_DIRECTORY = "blobs"
_CHUNK_BYTES = 1 << 20


class Temporary:
    """A file that is still arriving. Knows the sha256 and the size of what was written so far.

    A write whose caller was cancelled may still run in its thread when the file is closed: closing waits for it, and
    a write that comes later is refused, so that none ever meets a descriptor that belongs to another file by then.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.num_bytes = 0
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """sha256 in hex of the bytes written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append; whoever opens `path` after the call sees it.

        Raises:
            StoreFull: no room on the disk.
            Unavailable: the store is gone (`STORE_LOST`).
            Cancelled: the file is closed.
        """
        rest = memoryview(data)
        with self._lock, store_errors():
            if self._descriptor < 0:
                raise Cancelled("the upload has ended")
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            self._hash.update(data)
            self.num_bytes += len(data)

    def close(self) -> None:
        """Once is enough; a second call does nothing."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


@dataclass(frozen=True)
class Swept:
    """What a sweep removed."""

    temporaries: int
    blobs: int


class BlobStore:
    """The blobs below one directory. Safe to use from several threads and processes at once.

    Every method raises Unavailable (`STORE_LOST`) when the directory is gone, and Overloaded (`OUT_OF_DESCRIPTORS`)
    when the process has no descriptor left.

    Args:
        root: the directory; nothing is ever written outside it.
        make: make it, with its parents, if it does not exist. Only for who holds the store: whoever serves from it
            waits until it is back, or an empty store would take the place of one that is only away.
    """

    def __init__(self, root: Path, *, make: bool = True) -> None:
        self._blobs = root / "sha256"
        self._temporaries = root / "tmp"
        if not make:
            self.check()
            return
        with store_errors():
            make_directory(self._temporaries)
            make_directory(self._blobs)
            # All shards at once: a put then needs one directory sync, not a second one for a shard it may have made.
            for shard in range(256):
                (self._blobs / f"{shard:02x}").mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._blobs)

    def check(self) -> None:
        """Raises Unavailable (`STORE_LOST`) unless the directories are there."""
        with store_errors():
            if not (self._blobs.is_dir() and self._temporaries.is_dir()):
                raise store_lost()

    def path(self, digest: str) -> Path:
        """Where the blob is, whether or not it is there. Raises InvalidRequest on what is not a digest."""
        return self._blobs / check_digest(digest)[:2] / digest

    def exists(self, digest: str) -> bool:
        return self.size(digest) is not None

    def size(self, digest: str) -> int | None:
        """Bytes of the stored blob; None if there is none."""
        path = self.path(digest)
        with store_errors():
            try:
                return path.stat().st_size
            except FileNotFoundError:
                _check_shard(path)
                return None

    @contextmanager
    def temporary(self) -> Iterator[Temporary]:
        """A new file to write an upload into; gone at the end of the block unless `put` has taken it.

        Raises StoreFull when there is no room for it.
        """
        with store_errors():
            descriptor, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=self._temporaries)
        path = Path(name)
        temporary = Temporary(path, descriptor)
        try:
            yield temporary
        finally:
            temporary.close()
            path.unlink(missing_ok=True)

    def put(self, source: bytes | Path, digest: str) -> Path:
        """Store bytes, or the file of a `temporary()` (which it consumes), durably under their digest.

        When this returns, the blob survives a crash. A file that is there already is replaced: the same bytes, or
        damaged ones that sending them again repairs.

        Raises:
            InvalidAdapter: the bytes have another digest (`DIGEST_MISMATCH`).
            StoreFull: no room.
        """
        if isinstance(source, bytes):
            with self.temporary() as temporary:
                temporary.write(source)
                return self.put(temporary.path, digest)
        target = self.path(digest)
        with store_errors(), source.open("rb") as file:
            if _digest_of(file) != digest:
                raise InvalidAdapter("the bytes do not have the digest they came with", reason="DIGEST_MISMATCH")
            os.fchmod(file.fileno(), 0o400)
            os.fsync(file.fileno())
            source.rename(target)
            sync_directory(target.parent)
        return target

    def get(self, digest: str) -> bytes:
        """The bytes, read once and checked. Raises DataLoss when they are gone (`BLOB_MISSING`) or not the ones."""
        path = self.path(digest)
        with store_errors():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                _check_shard(path)
                raise _missing(digest) from None
            with os.fdopen(descriptor, "rb") as file:
                data = file.read()
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataLoss(f"the stored bytes of version {digest[:12]} are damaged; register the adapter again")
        return data

    def start(self, digest: str, num_bytes: int) -> bytes:
        """The first bytes, not checked. Raises DataLoss when the blob is gone (`BLOB_MISSING`)."""
        path = self.path(digest)
        with store_errors():
            try:
                with path.open("rb") as file:
                    return file.read(num_bytes)
            except FileNotFoundError:
                _check_shard(path)
                raise _missing(digest) from None

    def identity(self, digest: str) -> tuple[int, int, int] | None:
        """Another one whenever the blob has been put anew; None while there is none."""
        path = self.path(digest)
        with store_errors():
            try:
                found = path.stat()
            except FileNotFoundError:
                _check_shard(path)
                return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def delete(self, digest: str) -> None:
        """Remove a blob; one that is not there is fine. A crash may undo this, and the next sweep redoes it."""
        with store_errors():
            self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Every stored digest, in no order."""
        return (path.name for path in self._blobs.glob("??/*"))

    def sizes(self) -> dict[str, int]:
        """Bytes of every stored blob."""
        found: dict[str, int] = {}
        with store_errors(), os.scandir(self._blobs) as shards:
            for shard in shards:
                with os.scandir(shard) as entries:
                    found.update((entry.name, entry.stat(follow_symlinks=False).st_size) for entry in entries)
        return found

    def sweep(self, referenced: Container[str]) -> Swept:
        """Remove every temporary, and every blob that is not in `referenced`.

        Only for a store nobody writes to: an upload in progress would lose its file.
        """
        temporaries = list(self._temporaries.iterdir())
        for path in temporaries:
            path.unlink(missing_ok=True)
        # By path, not by `delete`: a stray file with any other name in there is removed too.
        orphans = [path for path in self._blobs.glob("??/*") if path.name not in referenced]
        for path in orphans:
            path.unlink(missing_ok=True)
        return Swept(len(temporaries), len(orphans))


def _missing(digest: str) -> DataLoss:
    return DataLoss(
        f"the stored bytes of version {digest[:12]} are gone; register the adapter again", reason="BLOB_MISSING"
    )


def _check_shard(path: Path) -> None:
    """A blob that is absent where its shard is, is absent; without the shard, it is the store that is gone."""
    if not path.parent.is_dir():
        raise store_lost()


def _digest_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
