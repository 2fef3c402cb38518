"""A log that nobody reads stops nobody."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from adamix_server.limits.operators import MAX_WAITING_LOG_BYTES, MAX_WAITING_LOG_RECORDS
from adamix_server.telemetry.log_writer import LogWriter

SMALLEST_PIPE = 4096
STUCK = b"x" * 2 * SMALLEST_PIPE + b"\n"


class Log:
    """A pipe that is read only when asked to."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
        self.writer = LogWriter(self.write_fd, lambda count: b"%d dropped\n" % count)

    def fill(self) -> None:
        """The writing thread waits from here on."""
        self.writer.put(STUCK)
        while self.writer._lines:  # it has taken the line
            time.sleep(0.001)

    def read(self, until: bytes) -> list[bytes]:
        """Every line up to the first of this text."""
        data = b""
        while until + b"\n" not in data:
            data += os.read(self.read_fd, 1 << 20)
        return data.splitlines()


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    os.set_blocking(log.read_fd, False)
    while not log.writer.flush(0.0001):
        with suppress(BlockingIOError):
            os.read(log.read_fd, 1 << 20)
    os.close(log.read_fd)
    os.close(log.write_fd)


def test_so_many_records_wait_and_no_more(log: Log) -> None:
    log.fill()
    assert all(log.writer.put(b"%d\n" % number) for number in range(MAX_WAITING_LOG_RECORDS))
    assert not log.writer.put(b"one more\n")
    assert not log.writer.put(b"and one\n")
    assert log.writer.take_dropped() == 2
    assert log.writer.take_dropped() == 0
    # Said once, when the log goes on.
    last = b"%d" % (MAX_WAITING_LOG_RECORDS - 1)
    lines = log.read(last)
    assert lines.count(b"2 dropped") == 1
    assert [line for line in lines if line != b"2 dropped"] == [
        STUCK.strip(),
        *(b"%d" % number for number in range(MAX_WAITING_LOG_RECORDS)),
    ]


def test_so_many_bytes_of_records_wait_and_no_more(log: Log) -> None:
    log.fill()
    count = 64
    line = b"y" * (MAX_WAITING_LOG_BYTES // count - 1) + b"\n"
    assert all(log.writer.put(line) for _ in range(count))
    assert not log.writer.put(b"\n")
    assert log.writer.take_dropped() == 1


def test_a_flush_ends_when_its_time_is_over(log: Log) -> None:
    log.fill()
    began = time.monotonic()
    assert not log.writer.flush(0.2)
    assert 0.2 <= time.monotonic() - began < 2


def test_a_pipe_that_does_not_block_is_waited_for(log: Log) -> None:
    os.set_blocking(log.write_fd, False)
    log.fill()
    log.writer.put(b"last\n")
    assert log.read(b"last") == [STUCK.strip(), b"last"]


def test_a_reader_who_is_gone_and_a_full_disk_are_survived(log: Log) -> None:
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), log.write_fd)
    for number in range(3):
        log.writer.put(b"%d\n" % number)
    assert log.writer.flush(10)
    assert log.writer.take_dropped() == 3
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    os.dup2(write_fd, log.write_fd)
    os.close(write_fd)
    log.writer.put(b"3\n")
    assert log.writer.flush(10)
    # There is room, or a reader, again.
    read_fd, write_fd = os.pipe()
    os.dup2(write_fd, log.write_fd)
    os.close(write_fd)
    log.writer.put(b"4\n")
    assert log.writer.flush(10)
    assert os.read(read_fd, 100) == b"4\n4 dropped\n"
    os.close(read_fd)


def test_what_comes_after_half_a_line_begins_a_new_one(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write(fd: int, data: memoryview) -> int:
        written.append(bytes(data[:4]))
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "full")
        return min(len(data), 4)

    monkeypatch.setattr(os, "write", write)
    log.writer.put(b"aaaabbbb\n")
    log.writer.put(b"cc\n")
    assert log.writer.flush(10)
    assert written == [b"aaaa", b"bbbb", b"\ncc\n", b"1 dr", b"oppe", b"d\n"]


_PROCESS = """
import logging, os, sys, threading, warnings
from adamix_server.telemetry import logs
logs.divert("supervisor")
logs.configure("info", process="supervisor")
for number in range(3_000):
    logging.getLogger("adamix").info("a call", extra={"number": number})
    logging.getLogger("adamix").info("%d", "no number")
    warnings.warn(f"warned {number}")
    print("printed", file=sys.stderr)
threading.Thread(target=lambda: 1 / 0).start()
print("said", flush=True)
sys.stdin.read()
END
"""


@pytest.mark.parametrize(
    "end", ["", "raise KeyError('lost')", "raise SystemExit('a sentence')", "logs.flush(); os._exit(0)"]
)
def test_a_process_whose_log_is_not_read_works_and_ends(end: str) -> None:
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-c", _PROCESS.replace("END", end)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write_fd) as process:
        os.close(write_fd)
        assert process.stdout is not None
        assert process.stdout.readline() == b"said\n"
        began = time.monotonic()
        process.communicate(timeout=30)
        assert time.monotonic() - began < 3
    os.close(read_fd)


def test_a_process_whose_stderr_is_closed_writes_its_log_nowhere(tmp_path: Path) -> None:
    code = f"""
import os, sys
from adamix_server.telemetry import logs
logs.divert("supervisor")
logs.configure("info", process="supervisor")
catalog = os.open({str(tmp_path / "catalog")!r}, os.O_CREAT | os.O_RDWR)
import logging
logging.getLogger("adamix").error("said")
print("printed", file=sys.stderr)
assert logs.flush(10)
os.write(catalog, b"row")
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    subprocess.run(["sh", "-c", f"exec {sys.executable} {script} 2>&-"], check=True, timeout=60)
    assert (tmp_path / "catalog").read_bytes() == b"row"
