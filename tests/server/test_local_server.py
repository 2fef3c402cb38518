"""A server as a with-block that does not start."""

from pathlib import Path

import pytest

from adamix.errors import Unavailable
from adamix_server.local_server import LocalServer


def test_a_server_that_does_not_start_is_said_with_the_place_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(Unavailable, match=str(log)), LocalServer("minilm", tmp_path / "store", log, "--slots", "0"):
        pass
    assert "slots must be in 1..1048576, not 0" in " ".join(log.read_text(encoding="utf-8").split())
