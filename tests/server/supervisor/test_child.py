"""Children as processes: ones that do not listen, do not stop talking, are stopped, or kept by a process that is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from adamix_server.channel.supervisor_frames import Agreed, Ready, Refresh, Seen
from adamix_server.supervisor.child import Child
from adamix_server.telemetry import logs
from adamix_testing.harness import start_front_end

HERE = Path(__file__).parent


class StartChild(Protocol):
    async def __call__(self, task: str = "") -> Child: ...


@pytest.fixture
async def start_child(tmp_path: Path) -> AsyncIterator[StartChild]:
    children = []

    async def start(task: str = "") -> Child:
        environment = {"PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}", "BEATING_CHILD": task}
        children.append(await Child.start("beating_child", start_front_end(tmp_path, tmp_path), environment))
        return children[-1]

    yield start
    for child in children:
        await child.kill()


async def expect(child: Child, kind: type[Any]) -> Any:
    while not isinstance(frame := await child.receive(), kind):
        assert frame is not None, "the process ended"
    return frame


async def test_a_child_that_does_not_listen_is_told_later_how_things_stand(start_child: StartChild) -> None:
    child = await start_child()
    await expect(child, Ready)
    child.process.send_signal(signal.SIGSTOP)
    for revision in range(20_000):
        child.send(Agreed(revision=revision, oldest=0))
        child.send(Refresh(revision=revision))
    assert len(child._mouth._outbox) == 2
    child.process.send_signal(signal.SIGCONT)
    while (await expect(child, Seen)).revision < 19_999:
        pass
    assert await child.stop(10) == 0


async def test_a_stopped_child_is_ended_all_the_same(start_child: StartChild) -> None:
    child = await start_child()
    await expect(child, Ready)
    child.process.send_signal(signal.SIGSTOP)
    for revision in range(5_000):
        child.send(Agreed(revision=revision, oldest=0))
    assert await child.stop(0.1) == -signal.SIGKILL


async def test_a_child_that_prints_while_nobody_listens_goes_on(start_child: StartChild) -> None:
    child = await start_child("talk")
    assert child._output._transport is not None
    child._output._transport.pause_reading()  # type: ignore[attr-defined]  # of a stream that is read
    await expect(child, Ready)
    began = time.monotonic()
    assert await child.stop(10) == 0
    # Its log is not waited for either.
    assert time.monotonic() - began < 3


async def test_what_a_child_says_while_it_dies_is_in_the_log_before_its_end_is_known(
    start_child: StartChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, bytes]] = []
    monkeypatch.setattr(logs, "relay", lambda process, line: said.append((process, line)))
    child = await start_child("crash")
    assert await child.receive() is None
    assert await child.kill() == -signal.SIGABRT
    assert said == [("frontend-0", line) for line in (b"said by print", b"said in C", b"half a line")]


async def test_a_killed_child_that_the_kernel_holds_is_not_waited_for(
    start_child: StartChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.supervisor.child._DEATH_S", 0.1)
    child = await start_child()
    await expect(child, Ready)
    # As of one in an uninterruptible wait: the signal does nothing yet.
    with monkeypatch.context() as patch:
        patch.setattr(child.process, "kill", lambda: None)
        child.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert await child.kill() == -signal.SIGKILL
        assert time.monotonic() - began < 5
    child.process.kill()


def test_a_child_outlives_a_pause_of_its_supervisor_and_a_paused_child_does_not(tmp_path: Path) -> None:
    silence_s = 1.5
    command = [sys.executable, str(HERE / "keeping_process.py"), str(silence_s), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as keeper:
        assert keeper.stdout is not None
        first = int(keeper.stdout.readline().split()[1])
        time.sleep(1.0)
        keeper.send_signal(signal.SIGSTOP)
        time.sleep(3 * silence_s)
        keeper.send_signal(signal.SIGCONT)
        time.sleep(silence_s)
        os.kill(first, 0)
        os.kill(first, signal.SIGSTOP)
        assert keeper.stdout.readline() == "ended\n"
        second = int(keeper.stdout.readline().split()[1])
        assert second != first
        # It ends in time although its child is stopped.
        os.kill(second, signal.SIGSTOP)
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(10) == 0
