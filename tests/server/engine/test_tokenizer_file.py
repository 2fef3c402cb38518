"""The tokenizer that an engine writes for front ends: whole, written once, and no room for it is said."""

import errno
import os
from pathlib import Path

import pytest

from adamix.errors import StoreFull
from adamix.files import disk
from adamix_server.engine.assembly import _write_tokenizer

TEXT = '{"model": "ä"}'


def test_a_file_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    _write_tokenizer(path, TEXT)
    before = path.stat()
    _write_tokenizer(path, TEXT)
    assert path.read_text(encoding="utf-8") == TEXT
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    _write_tokenizer(path, TEXT + " ")
    assert path.read_text(encoding="utf-8") == TEXT + " "


def test_no_room_is_said_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "tokenizer.json"
    _write_tokenizer(path, TEXT)
    monkeypatch.setattr(disk.os, "fsync", no_room)
    with pytest.raises(StoreFull, match="free space") as caught:
        _write_tokenizer(path, "another")
    assert str(tmp_path) not in caught.value.message
    assert path.read_text(encoding="utf-8") == TEXT
    assert list(tmp_path.iterdir()) == [path]
