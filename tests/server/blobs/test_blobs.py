import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.errors import Cancelled, DataLoss, InvalidAdapter, InvalidRequest, StoreFull
from adamix_server.blobs.local import ORPHANS_KEPT_S, BlobStore, Swept

DATA = b"some weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(root: Path) -> BlobStore:
    return BlobStore(root)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_blob_lies_read_only_under_its_digest(blobs: BlobStore, root: Path) -> None:
    path = blobs.put(DATA, DIGEST)
    assert path == root / "sha256" / DIGEST[:2] / DIGEST == blobs.path(DIGEST)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert blobs.get(DIGEST) == DATA
    assert files(root) == {f"sha256/{DIGEST[:2]}/{DIGEST}"}
    assert list(blobs.digests()) == [DIGEST]


def test_an_upload_becomes_a_blob_without_a_copy(blobs: BlobStore, root: Path) -> None:
    with blobs.temporary() as upload:
        for start in range(0, len(DATA), 1000):
            upload.write(DATA[start : start + 1000])
        assert (upload.digest, upload.num_bytes) == (DIGEST, len(DATA))
        inode = upload.path.stat().st_ino
        path = blobs.put(upload.path, upload.digest)
    assert path.stat().st_ino == inode
    assert files(root) == {f"sha256/{DIGEST[:2]}/{DIGEST}"}


def test_an_upload_cut_short_leaves_nothing(blobs: BlobStore, root: Path) -> None:
    def upload() -> None:
        with blobs.temporary() as temporary:
            temporary.write(DATA)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        upload()
    assert files(root) == set()


def test_a_write_that_outlives_its_upload_goes_nowhere(blobs: BlobStore, root: Path) -> None:
    """The descriptor's number is soon another file's."""
    with blobs.temporary() as upload:
        upload.write(b"first")
    with (root / "another").open("wb") as another:
        with pytest.raises(Cancelled):
            upload.write(b"late")
        assert os.fstat(another.fileno()).st_size == 0


def test_the_same_bytes_again_change_nothing(blobs: BlobStore, root: Path) -> None:
    for _ in range(2):
        assert blobs.put(DATA, DIGEST).read_bytes() == DATA
    assert files(root) == {f"sha256/{DIGEST[:2]}/{DIGEST}"}


def test_bytes_with_another_digest_are_not_stored(blobs: BlobStore, root: Path) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        blobs.put(DATA + b"!", DIGEST)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert files(root) == set()


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o600)
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d[:-1] + b"?", lambda d: b""])
def test_damaged_bytes_are_never_returned(blobs: BlobStore, change: Callable[[bytes], bytes]) -> None:
    damage(blobs.put(DATA, DIGEST), change)
    with pytest.raises(DataLoss) as caught:
        blobs.get(DIGEST)
    assert caught.value.reason == "BLOB_CORRUPT"


def test_a_missing_blob_is_data_loss(blobs: BlobStore) -> None:
    with pytest.raises(DataLoss) as caught:
        blobs.get(DIGEST)
    assert caught.value.reason == "BLOB_MISSING"


@pytest.mark.parametrize("change", [lambda data: data[:10], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_a_damaged_blob_is_repaired_by_the_same_bytes_sent_again(
    blobs: BlobStore, change: Callable[[bytes], bytes]
) -> None:
    damage(blobs.put(DATA, DIGEST), change)
    blobs.put(DATA, DIGEST)
    assert blobs.get(DIGEST) == DATA


def test_nothing_but_a_digest_names_a_blob(blobs: BlobStore) -> None:
    for name in ("../" * 20 + "etc/passwd", "a" * 63, "A" * 64, "", "a" * 64 + "/..", "a" * 64 + "\n"):
        with pytest.raises(InvalidRequest):
            blobs.path(name)


def test_delete_is_idempotent(blobs: BlobStore) -> None:
    blobs.put(DATA, DIGEST)
    blobs.delete(DIGEST)
    blobs.delete(DIGEST)
    assert not blobs.exists(DIGEST)


NOW_S, DAY_S = 1_796_000_000.0, 24 * 3600.0


def test_sweep_removes_leftovers_and_puts_aside_what_nobody_names(blobs: BlobStore, root: Path) -> None:
    other = hashlib.sha256(b"orphan").hexdigest()
    blobs.put(DATA, DIGEST)
    blobs.put(b"orphan", other)
    (root / "tmp" / "left-behind").write_bytes(b"half an upload")
    (root / "sha256" / "00" / "stray").write_bytes(b"not a blob")
    assert blobs.sweep({DIGEST}, NOW_S) == Swept(temporaries=1, orphaned=2)
    assert files(root) == {f"sha256/{DIGEST[:2]}/{DIGEST}", f"orphans/{other}", "orphans/stray"}
    assert sorted(blobs.orphans()) == sorted([other, "stray"])


def test_an_orphan_stays_for_seven_days_from_when_it_was_moved(blobs: BlobStore, root: Path) -> None:
    os.utime(blobs.put(DATA, DIGEST), (0, 0))  # the file itself may be of any age
    assert blobs.sweep((), NOW_S).orphaned == 1
    assert ORPHANS_KEPT_S == 7 * DAY_S
    assert blobs.sweep((), NOW_S + 7 * DAY_S - 1) == Swept()
    assert blobs.sweep((), NOW_S - 1000 * DAY_S) == Swept()
    assert files(root) == {f"orphans/{DIGEST}"}
    assert blobs.sweep((), NOW_S + 7 * DAY_S) == Swept(expired=(DIGEST,))
    assert files(root) == set()


def test_a_clock_that_was_wrong_ends_no_orphan(blobs: BlobStore, root: Path) -> None:
    """Behind when one is moved, or ahead when something was written down."""
    os.utime(blobs.put(DATA, DIGEST), (0, 0))
    blobs.sweep((), 0, at_least_s=NOW_S)
    assert blobs.sweep((), NOW_S + DAY_S, at_least_s=NOW_S + 1000 * DAY_S) == Swept()
    assert files(root) == {f"orphans/{DIGEST}"}


def test_an_orphan_comes_back_if_its_bytes_are_right(blobs: BlobStore, root: Path) -> None:
    assert not blobs.bring_back(DIGEST)
    blobs.put(DATA, DIGEST)
    blobs.sweep((), NOW_S)
    damage(root / "orphans" / DIGEST, lambda data: data[:-1])
    assert not blobs.bring_back(DIGEST)
    damage(root / "orphans" / DIGEST, lambda data: DATA)
    assert blobs.bring_back(DIGEST)
    assert blobs.get(DIGEST) == DATA
    assert files(root) == {f"sha256/{DIGEST[:2]}/{DIGEST}"}


def test_an_orphan_is_never_overwritten_by_another(blobs: BlobStore, root: Path) -> None:
    for data in (b"one", b"another", b"one"):
        (root / "sha256" / "00" / "stray").write_bytes(data)
        blobs.sweep((), NOW_S)
    assert files(root) == {"orphans/stray", "orphans/stray.1"}


def test_bytes_that_are_stored_again_leave_no_orphan(blobs: BlobStore, root: Path) -> None:
    blobs.put(DATA, DIGEST)
    blobs.sweep((), NOW_S)
    blobs.put(DATA, DIGEST)
    assert files(root) == {f"sha256/{DIGEST[:2]}/{DIGEST}"}


def test_directories_are_for_this_user_alone(root: Path) -> None:
    """Whatever the umask, and whatever was there before."""
    (root / "sha256" / "00").mkdir(parents=True, mode=0o755)
    for directory in (root, root / "sha256", root / "sha256" / "00"):
        directory.chmod(0o755)
    for mask in (0o000, 0o277):
        before = os.umask(mask)
        try:
            BlobStore(root).put(DATA, DIGEST)
        finally:
            os.umask(before)
        found = {stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*")) if path.is_dir()}
        assert found == {0o700}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_said_and_leaves_nothing(
    blobs: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreFull):
        blobs.put(DATA, DIGEST)
    assert files(root) == set()


def test_every_step_is_on_disk_before_the_next(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes before the name, the name before the answer: in any other order a power cut leaves an empty blob."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def watched_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    for _ in range(2):
        blobs.put(DATA, DIGEST)
        assert steps == ["sync file", "rename", "sync directory"]
        steps.clear()
