"""The room that a stopped store keeps for its own next start."""

import errno
import os
from pathlib import Path

import pytest

from adamix_server.catalog.reserve import RESERVE_BYTES, RESERVE_FILE, reserve


def test_room_is_kept_while_the_store_is_not_in_use(tmp_path: Path) -> None:
    path = tmp_path / RESERVE_FILE
    for _ in range(2):
        with reserve(tmp_path):
            assert not path.exists(), "it is there for the log now"
        assert path.stat().st_blocks * 512 >= RESERVE_BYTES, "really taken, and no hole"


def test_where_there_is_no_room_none_is_kept_and_the_end_is_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with reserve(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
