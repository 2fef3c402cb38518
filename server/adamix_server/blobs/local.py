"""Content-addressed storage of adapter files: a name is the sha256 of the bytes, and a name never changes its bytes.

Layout under the root: `sha256/ab/<digest>` (mode 0400, complete and on disk before they have that name), `tmp/` for
what is still arriving, and `orphans/` for what nobody names. A crash at any moment leaves a blob whole or absent, and
at worst temporaries, which `sweep` removes at the next start. A blob is deleted for a reason that its caller knows, and
never because nobody names it: that may be a mistake, so it is kept for a week. This module knows nothing of tenants,
tasks or what the bytes mean.
"""

import filecmp
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

from adamix.errors import Cancelled, DataLoss, InvalidAdapter
from adamix_server.blobs.directories import make_directory, sync_directory
from adamix_server.blobs.os_errors import store_errors, store_lost
from adamix_server.names import check_digest, is_digest

# The root, below the directory of a store.
BLOBS_DIRECTORY = "blobs"
# By the clock, from the start at which nobody named them.
ORPHANS_KEPT_S = 7 * 24 * 3600
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
    """What a sweep found.

    Attributes:
        temporaries: leftovers of uploads, which it removed.
        orphaned: blobs that nobody names, which it moved to the orphans.
        expired: orphans of before that it removed, by name.
    """

    temporaries: int = 0
    orphaned: int = 0
    expired: tuple[str, ...] = ()


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
        # Made when there is the first one: a store on a full disk needs none.
        self._orphans = root / "orphans"
        if not make:
            self.check()
            return
        with store_errors():
            make_directory(self._temporaries)
            make_directory(self._blobs)
            # All shards at once: a put then needs one directory sync, not a second one for a shard it may have made.
            shards = [self._blobs / f"{shard:02x}" for shard in range(256)]
            for shard in shards:
                with suppress(FileExistsError):
                    shard.mkdir(mode=0o700)
            # Those of before may be open to others.
            for directory in (root, self._temporaries, self._blobs, *shards):
                if directory.stat().st_mode & 0o777 != 0o700:
                    directory.chmod(0o700)
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
        (self._orphans / digest).unlink(missing_ok=True)  # the same bytes are where they are wanted
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
                if not shard.is_dir():
                    continue  # of whoever has looked at the directory with a file browser
                with os.scandir(shard) as entries:
                    for entry in entries:
                        # One that is removed meanwhile is absent.
                        with suppress(FileNotFoundError):
                            found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def orphans(self) -> Iterator[str]:
        """The names of all orphans, in no order: digests, and what else lay among the blobs."""
        with suppress(FileNotFoundError):
            yield from (path.name for path in self._orphans.iterdir())

    def bring_back(self, digest: str) -> bool:
        """Make an orphan a blob again; whether there was one with the right bytes."""
        orphan, target = self._orphans / check_digest(digest), self.path(digest)
        try:
            if orphan.is_symlink() or file_digest(orphan) != digest:
                return False
        except OSError:
            return False
        orphan.rename(target)
        sync_directory(target.parent)
        return True

    def sweep(self, referenced: Container[str], now_s: float, at_least_s: float = 0.0) -> Swept:
        """Remove every temporary; move every blob that is not in `referenced` to the orphans, and end the old ones.

        An orphan that is referenced again stays, however old it is: it may be all there is to bring back.

        Only for a store nobody writes to: an upload in progress would lose its file.

        Args:
            now_s: what the clock says, in seconds since 1970 UTC. An orphan goes when it was moved there ORPHANS_KEPT_S
                before.
            at_least_s: what the clock has said already. It counts for what is moved now, in case the clock is behind;
                it ends nothing, in case it was ahead then.
        """
        temporaries = self.remove_temporaries()
        # Before the new ones come: one that was moved by a start that was cut short is as old as that.
        expired = tuple(path.name for path in self._expired(now_s) if path.name not in referenced)
        for name in expired:
            (self._orphans / name).unlink(missing_ok=True)
        # By path, not by digest: a stray file with any other name in there is moved, too.
        orphaned = [path for path in self._blobs.glob("??/*") if path.name not in referenced]
        for path in orphaned:
            self._orphan(path, max(now_s, at_least_s))
        return Swept(temporaries, len(orphaned), expired)

    def remove_temporaries(self) -> int:
        """End what was arriving when its process died, and say how many that were. Only where nobody else writes."""
        temporaries = [path for path in self._temporaries.iterdir() if path.is_symlink() or not path.is_dir()]
        for path in temporaries:
            path.unlink(missing_ok=True)
        return len(temporaries)

    def copy(self, source: Path, digest: str) -> bool:
        """Store a file of another store; whether it was there and had its digest. Raises StoreFull."""
        try:
            with source.open("rb") as file, self.temporary() as temporary:
                while chunk := file.read(_CHUNK_BYTES):
                    temporary.write(chunk)
                if temporary.digest != digest:
                    return False
                self.put(temporary.path, digest)
        except FileNotFoundError:
            return False
        return True

    def _expired(self, now_s: float) -> Iterator[Path]:
        with suppress(FileNotFoundError):
            for path in self._orphans.iterdir():
                found = path.lstat()
                if not stat.S_ISDIR(found.st_mode) and found.st_mtime <= now_s - ORPHANS_KEPT_S:
                    yield path

    def _orphan(self, path: Path, now_s: float) -> None:
        with store_errors():
            make_directory(self._orphans)
            # The time of the last write becomes that of the move. First: no start may take an orphan for an old one.
            os.utime(path, (now_s, now_s), follow_symlinks=False)
            target = self._orphans / path.name
            for number in count(1):
                if not (target.is_symlink() or target.exists()) or _are_same(path, target):
                    break
                target = self._orphans / f"{path.name}.{number}"
            path.rename(target)


def stored(root: Path) -> dict[str, Path]:
    """Every blob and orphan below a root by digest, a blob before an orphan. Makes no directory."""
    found = [*root.glob("orphans/*"), *root.glob("sha256/??/*")]
    return {path.name: path for path in found if is_digest(path.name) and path.is_file()}


def file_digest(path: Path) -> str:
    """sha256 in hex of a file. Raises OSError."""
    with path.open("rb") as file:
        return _digest_of(file)


def _are_same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


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
