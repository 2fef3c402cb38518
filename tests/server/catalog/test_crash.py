"""kill -9 at any moment of a registration: what was acknowledged is there, the rest is whole or absent."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.origins import Origins
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.store import Catalog

CYCLES = 50


class Victim:
    """The process of `registering_process.py`, and what it has said over all its lives."""

    def __init__(self, store: Path, fingerprint: str, manifest_json: str) -> None:
        self.acked: dict[str, list[str]] = {}
        self.tried: dict[str, str] = {}
        # Registrations that left an origin and no version.
        self.cut_short: set[tuple[str, str]] = set()
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("registering_process.py")),
                str(store),
                fingerprint,
                manifest_json,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def live(self, cycle: int, failpoint: str = "-", *, acks: int = 0, extra_s: float = 0.0) -> None:
        """Let it register until it dies at the failpoint, or kill it `extra_s` after so many acknowledgements."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{cycle} {failpoint}\n")
        self._process.stdin.flush()
        pid, seen, killed = 0, 0, False
        for line in self._process.stdout:
            match line.split():
                case ["pid", number]:
                    pid = int(number)
                case ["try", task, digest]:
                    self.tried = {task: digest}
                case ["ack", task, digest]:
                    self.acked.setdefault(task, []).append(digest)
                    self.tried = {}
                    seen += 1
                case ["dead"]:
                    return
            if failpoint == "-" and seen >= acks and not killed:
                time.sleep(extra_s)
                os.kill(pid, signal.SIGKILL)
                killed = True
        raise AssertionError("the victim ended before its time")

    def end(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


@pytest.fixture
def victim(store: Path, here: str, manifest_json: Callable[[str], str]) -> Iterator[Victim]:
    victim = Victim(store, here, manifest_json(here))
    yield victim
    victim.end()


def check(store: Path, fingerprint: str, victim: Victim) -> None:
    with StoreLock(store):
        assert recover(store).missing == ()
    assert list((store / "blobs" / "tmp").iterdir()) == []
    catalog = Catalog(store, backbone_fingerprint=fingerprint)
    tasks = {name: task for (_, name), task in catalog.snapshot().tasks.items()}
    found = {digest for task in tasks.values() for digest in task.versions}
    acked = {digest for digests in victim.acked.values() for digest in digests}
    assert acked <= found <= acked | set(victim.tried.values())
    assert set(catalog.blobs.digests()) == found
    for digest in found:
        catalog.blobs.get(digest)
    # Each version could be made again of files, and nothing else that was acknowledged.
    origins = {(task, digest) for _, task, digest in set(Origins(store / "origins").keys())}
    versions = {(name, digest) for name, task in tasks.items() for digest in task.versions}
    assert versions <= origins
    assert origins - versions <= victim.cut_short | set(victim.tried.items())
    victim.cut_short = origins - versions
    for name, task in tasks.items():
        (answers,) = task.live
        assert answers.digest in [*victim.acked.get(name, [])[-1:], victim.tried.get(name)], "the old or the new one"
    assert set(victim.acked) <= set(tasks)
    # What survived without its acknowledgement counts from now on: it is there to stay.
    for name, digest in victim.tried.items():
        if digest in found:
            victim.acked.setdefault(name, []).append(digest)
    victim.tried = {}
    catalog.close()


def test_fifty_kills_lose_nothing_that_was_acknowledged(store: Path, here: str, victim: Victim) -> None:
    chance = random.Random(0)
    for cycle in range(CYCLES):
        victim.live(cycle, acks=chance.randrange(4), extra_s=chance.uniform(0, 0.02))
        check(store, here, victim)
    assert sum(len(digests) for digests in victim.acked.values()) >= CYCLES


@pytest.mark.parametrize(
    ("failpoint", "survives"),
    [
        ("before:fsync", False),
        ("after:fsync", False),
        ("before:rename", False),
        ("after:rename", False),
        ("before:register", False),
        ("before:record", False),
        ("after:record", False),
        ("before:put", False),
        ("after:put", False),
        ("before:reached", True),
        ("after:register", True),
    ],
)
def test_a_kill_at_each_step_leaves_the_old_or_the_new_version(
    store: Path, here: str, victim: Victim, failpoint: str, survives: bool
) -> None:
    victim.live(0, acks=6)
    check(store, here, victim)
    before = sum(len(digests) for digests in victim.acked.values())
    victim.live(1, failpoint)
    assert len(victim.tried) == 1
    check(store, here, victim)
    assert sum(len(digests) for digests in victim.acked.values()) - before == survives
