"""Runs a program to its end, behind everything else on the machine, and tells what processor time it has had.

Of each child by itself: what the system adds up over all children says nothing of one among several. Knows nothing of
what the program does.
"""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# About a tenth of what a process has that is not nice, where both want the same core.
NICENESS = 10
_MAX_NICENESS = 19

_FIRST_LOOK_S = 0.000_5
_LAST_LOOK_S = 0.05


def run(
    command: Sequence[str],
    given: bytes,
    *,
    timeout_s: float,
    environment: Mapping[str, str],
    spent: Callable[[float], None],
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program; blocks.

    Args:
        given: its stdin.
        timeout_s: wall-clock seconds until it is killed.
        spent: is told the CPU seconds of the child, however it ended, from this thread.

    Raises:
        subprocess.TimeoutExpired: it was killed at the end of that time.
        OSError: it could not be started.
    """
    with Child(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment,
        # A Ctrl-C for the server is not for the child.
        start_new_session=True,
    ) as child:
        try:
            _stand_back(child.pid)
            said, complaints = child.communicate(given, timeout_s)
        except BaseException:  # nothing is handled: it goes on, without the child
            if child.returncode is None:
                os.kill(child.pid, signal.SIGKILL)
            child.wait()
            raise
        finally:
            spent(child.cpu_s)
        return subprocess.CompletedProcess(command, child.wait(), said, complaints)


class Child(subprocess.Popen[bytes]):
    """A process whose CPU seconds, `cpu_s`, are known once it was waited for.

    Waits for itself alone, by its id, and so takes no child from an event loop that watches its own.
    """

    cpu_s = 0.0

    def wait(self, timeout: float | None = None) -> int:
        ends_at = math.inf if timeout is None else time.monotonic() + timeout
        look_s = _FIRST_LOOK_S
        while self.returncode is None:
            pid, status, usage = os.wait4(self.pid, 0 if timeout is None else os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_s = usage.ru_utime + usage.ru_stime
            elif timeout is not None and time.monotonic() >= ends_at:
                raise subprocess.TimeoutExpired(self.args, timeout)
            else:
                time.sleep(look_s)
                look_s = min(2 * look_s, _LAST_LOOK_S)
        return self.returncode


def _stand_back(pid: int) -> None:
    """Make a child nice, from its first moment on: it has to load its libraries before it could do so itself."""
    with contextlib.suppress(OSError):
        niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS, _MAX_NICENESS)
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
        # Where sessions share the processor as groups, being nice counts only among the processes of one session; the
        # child is alone in its own, which would have as much as the whole server.
        Path(f"/proc/{pid}/autogroup").write_text(f"{niceness}")
