"""Lines for a log that may stand still: a pipe that nobody reads, a terminal that was stopped, a full disk.

Whoever has something to say never waits. Lines go to a bounded queue; one thread writes them, and it alone is stopped
by a reader who is. What finds no room, or cannot be written, is dropped, counted, and said once when the log goes on.
Knows bytes and a descriptor; what a line says is `logs.py`'s matter.
"""

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable

from adamix_server.limits.operators import MAX_WAITING_LOG_BYTES, MAX_WAITING_LOG_RECORDS

_MAX_PARTIAL_LINE_CHARS = 65_536


class LogWriter:
    """A queue before a descriptor. Thread-safe, also where a finaliser or a signal's function interrupts a call.

    Args:
        fd: of the log; what it refers to may be non-blocking, and is shared with other processes.
        dropped_line: the line that says how many are missing.
    """

    def __init__(self, fd: int, dropped_line: Callable[[int], bytes]) -> None:
        self._fd = fd
        self._dropped_line = dropped_line
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        # Re-entrant, and no other lock is taken under it.
        self._changed = threading.Condition(threading.RLock())
        self._is_writing = False
        self._is_torn = False
        # Not yet said in the log, and not yet counted by `take_dropped`.
        self._unsaid = 0
        self._uncounted = 0
        threading.Thread(target=self._run, daemon=True, name="log-writer").start()

    def put(self, line: bytes) -> bool:
        """Take a line, its newline included; False if there is no room. Never waits."""
        with self._changed:
            has_room = len(self._lines) < MAX_WAITING_LOG_RECORDS and self._bytes + len(line) <= MAX_WAITING_LOG_BYTES
            if has_room:
                self._lines.append(line)
                self._bytes += len(line)
                self._changed.notify_all()
            else:
                self._count(1)
        return has_room

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written, but not for ever; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._is_writing, timeout_s)

    def take_dropped(self) -> int:
        """Lines dropped since this was last asked."""
        with self._changed:
            count, self._uncounted = self._uncounted, 0
        return count

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines))
                line = self._lines.popleft()
                self._bytes -= len(line)
                self._is_writing = True
            if self._write(line):
                self._say_dropped()
            else:
                with self._changed:
                    self._count(1)

    def _say_dropped(self) -> None:
        """Once, when the log goes on; under lasting pressure not before half of what waited is written."""
        with self._changed:
            if not self._unsaid or len(self._lines) > MAX_WAITING_LOG_RECORDS // 2:
                return
            count, self._unsaid = self._unsaid, 0
        if not self._write(self._dropped_line(count)):
            with self._changed:
                self._unsaid += count

    def _count(self, lines: int) -> None:
        self._unsaid += lines
        self._uncounted += lines

    def _write(self, line: bytes) -> bool:
        """One write a line, so that lines of several processes do not mix where the system keeps writes apart."""
        data = memoryview(b"\n" + line if self._is_torn else line)
        size = len(data)
        try:
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:
                    self._wait_for_room()
        except OSError:
            # Nobody reads any more, or the disk is full. Nothing is left to say it to.
            self._is_torn |= len(data) < size
            return False
        self._is_torn = False
        return True

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll()


class LogStream(io.TextIOBase):
    """A text stream over a `LogWriter`, in the place of `sys.stderr`: whoever prints does not wait either.

    Lines are those of a thread, and leave it whole.
    """

    def __init__(self, writer: LogWriter, fd: int) -> None:
        self._writer = writer
        self._fd = fd
        self._of_thread = threading.local()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute there
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str, /) -> int:
        lines, newline, partial = (self._take_partial() + text).rpartition("\n")
        if len(partial) < _MAX_PARTIAL_LINE_CHARS:
            self._of_thread.partial = partial
        else:
            newline += partial
        self._put(lines + newline)
        return len(text)

    def flush(self) -> None:
        self._put(self._take_partial())

    def _take_partial(self) -> str:
        partial: str = getattr(self._of_thread, "partial", "")
        self._of_thread.partial = ""
        return partial

    def _put(self, text: str) -> None:
        if text:
            self._writer.put(text.encode(self.encoding, self.errors))
