"""Descriptors: the limit a server takes, and what connections leave of it."""

import resource
import subprocess
import sys

import pytest

from adamix_server import descriptors

SHOW = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
RAISE = f"""
import resource, subprocess, sys
from adamix_server import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), 512))
print(descriptors.raise_limit(), flush=True)
subprocess.run([sys.executable, "-c", {SHOW!r}], check=True)
"""


@pytest.mark.parametrize("soft", [256, 512])
def test_the_limit_is_raised_to_the_hard_one_and_children_inherit_it(soft: int) -> None:
    command = [sys.executable, "-c", RAISE, str(soft)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.split() == ["512", "512", "512"]


@pytest.mark.parametrize(
    ("limit", "room"),
    [
        (1 << 20, 1024),
        (1280, 1024),
        (1279, 1023),
        (1024, 768),
        (512, 256),
        (256, 128),
        (2, 1),
        (resource.RLIM_INFINITY, 1024),
    ],
)
def test_connections_leave_descriptors_for_everything_else(
    limit: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (limit, limit))
    assert descriptors.room_for_connections(1024) == room


@pytest.mark.parametrize(
    ("limit", "room"), [(1 << 20, 1024), (2304, 1024), (2303, 1023), (512, 128), (256, 64), (2, 1)]
)
def test_two_ports_share_what_is_left(limit: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (limit, limit))
    assert descriptors.room_for_connections(1024, ports=2) == room
