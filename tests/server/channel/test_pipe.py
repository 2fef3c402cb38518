"""The child's end of its pipe to a supervisor that reads late, never, or is gone."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from adamix_server.channel.codec import from_child
from adamix_server.channel.pipe import SupervisorPipe
from adamix_server.channel.supervisor_frames import Drained, DrainWanted, Fatal, Ready, Sample, Seen, Stats

SMALLEST_PIPE = 4096


class Supervisor:
    """The other end; reads only when asked to."""

    def __init__(self) -> None:
        self._read_fd, write_fd = os.pipe()
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
        self._unused = os.pipe()
        self.pipe = SupervisorPipe(self._unused[0], write_fd)
        self._write_fd = write_fd

    def read(self, until: type[Any]) -> list[Any]:
        """Every frame up to the first of this kind."""
        frames: list[Any] = []
        while not frames or not isinstance(frames[-1], until):
            frames.append(from_child.decode(self._take(int.from_bytes(self._take(4), "little"))))
        return frames

    def leave(self) -> None:
        os.close(self._read_fd)

    def close(self) -> None:
        with suppress(OSError):
            self.leave()
        self.pipe.flush()
        for fd in (*self._unused, self._write_fd):
            os.close(fd)

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += os.read(self._read_fd, count - len(data))
        return data


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.close()


def fill(supervisor: Supervisor) -> None:
    """More than the pipe takes: the writing thread waits from here on."""
    supervisor.pipe.send(Fatal(message="x" * 2 * SMALLEST_PIPE))
    supervisor.pipe.flush(0.1)


def test_nothing_waits_for_a_supervisor_that_does_not_read_and_late_it_hears_how_things_stand(
    supervisor: Supervisor,
) -> None:
    fill(supervisor)
    began = time.monotonic()
    counted: list[int] = []
    for revision in range(20_000):
        supervisor.pipe.send(Seen(revision=revision, oldest=0))
        supervisor.pipe.send(DrainWanted())
        supervisor.pipe.report(lambda: [Sample(name="n", labels=(), values=[float(len(counted))])])
        counted.append(revision)
    supervisor.pipe.send(Ready())
    supervisor.pipe.send(Drained())
    assert time.monotonic() - began < 10
    assert len(supervisor.pipe._outbox) == 5
    assert supervisor.read(Drained)[1:] == [
        Seen(revision=19_999, oldest=0),
        DrainWanted(),
        # What was gathered until it was read.
        Stats(samples=[Sample(name="n", labels=(), values=[20_000.0])]),
        Ready(),
        Drained(),
    ]


def test_a_frame_is_whole_however_small_the_pipe(supervisor: Supervisor) -> None:
    message = "y" * 10 * SMALLEST_PIPE
    supervisor.pipe.send(Fatal(message=message))
    assert supervisor.read(Fatal) == [Fatal(message=message)]


def test_last_words_are_waited_for_but_not_for_ever(supervisor: Supervisor) -> None:
    supervisor.pipe.send(Drained())
    supervisor.pipe.flush(10)
    assert supervisor.read(Drained) == [Drained()]
    fill(supervisor)
    began = time.monotonic()
    supervisor.pipe.flush(0.2)
    assert 0.2 <= time.monotonic() - began < 2
    reader = threading.Thread(target=supervisor.read, args=(Fatal,))
    reader.start()
    supervisor.pipe.flush(10)
    reader.join()


def test_what_is_said_to_a_supervisor_that_is_gone_is_forgotten(supervisor: Supervisor) -> None:
    supervisor.leave()
    supervisor.pipe.send(Ready())
    supervisor.pipe.flush(10)
    for _ in range(3):
        supervisor.pipe.send(Drained())
        supervisor.pipe.report(list)
    assert len(supervisor.pipe._outbox) == 0
    supervisor.pipe.flush(0)
