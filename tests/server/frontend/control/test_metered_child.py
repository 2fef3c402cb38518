"""Children that stand behind everything else, and what is known of their processor time."""

import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adamix_server.frontend.control import metered_child
from adamix_server.frontend.control.metered_child import NICENESS, Child, run


def start(program: str, told: list[float], *, timeout_s: float = 30.0) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-I", "-S", "-c", program]
    return run(command, b"given", timeout_s=timeout_s, environment={}, spent=told.append)


def burn(seconds: float) -> str:
    return f"import time\nwhile time.process_time() < {seconds}: pass"


async def test_of_children_that_run_at_once_each_is_told_its_own_time_beside_those_of_the_event_loop() -> None:
    much: list[float] = []
    little: list[float] = []
    other = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", "raise SystemExit(3)")
    await asyncio.gather(
        asyncio.to_thread(partial(start, burn(0.5), much)), asyncio.to_thread(partial(start, "pass", little))
    )
    assert much[0] >= 0.5
    assert little[0] < 0.4
    assert await other.wait() == 3


def test_it_is_given_its_input_and_says_how_it_ended() -> None:
    told: list[float] = []
    ended = start("import sys; sys.stderr.write('e'); sys.stdout.write(sys.stdin.read()); sys.exit(7)", told)
    assert (ended.stdout, ended.stderr, ended.returncode) == (b"given", b"e", 7)
    assert start("import os; os.abort()", told).returncode == -6
    assert len(told) == 2


def test_one_that_takes_too_long_is_killed_and_its_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Child] = []

    class Seen(Child):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            children.append(self)

    monkeypatch.setattr(metered_child, "Child", Seen)
    told: list[float] = []
    with pytest.raises(subprocess.TimeoutExpired):
        start(burn(600.0), told, timeout_s=0.3)
    assert told[0] > 0.0
    assert children[0].returncode == -signal.SIGKILL
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0].pid, os.WNOHANG)  # nothing is left of it


def test_it_is_nice_in_its_own_session_too() -> None:
    # It reads what is given, after it was made nice.
    program = "import os, sys; sys.stdin.read(); print(os.nice(0))"
    autogroup = Path("/proc/self/autogroup")
    # Others than root may do it ten times a second, all together.
    with_session = autogroup.exists() and os.geteuid() == 0
    if with_session:
        program += f"; print(open('{autogroup}').read())"
    said = start(program, []).stdout.decode().split()
    niceness = str(min(os.nice(0) + NICENESS, 19))
    assert said[0] == niceness
    assert not with_session or said[-1] == niceness
