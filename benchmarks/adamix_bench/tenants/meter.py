"""What an engine computes, by its own count: calls that are under way at both ends of a scenario do not blur it.

Reads the metrics of a server while a scenario runs. The engine counts about once a second; what is compared are the
moments at which its count changed.
"""

import contextlib
import socket
import threading
import time
import urllib.request
from types import TracebackType
from typing import Self

_EVERY_S = 0.1
_TIMEOUT_S = 2.0
_COUNT = "adamix_batch_tokens_sum"


def free_port() -> int:
    """One of the loopback interface that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def read_count(text: str) -> float | None:
    """Tokens of all batches so far, by the text of `/metrics`; None before the first."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.partition("{")[0] == _COUNT:
            return float(value)
    return None


class Meter:
    """Counts as long as a with-block runs. `port`: of the server's metrics."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = 0.0
        # Seconds from the start, and the count from then on.
        self.changes: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def tokens_per_s(self, begin_s: float, end_s: float) -> float | None:
        """Between the first change and the last that were seen in between; None without two."""
        seen = [change for change in self.changes if begin_s <= change[0] <= end_s]
        if len(seen) < 2:
            return None
        (first_s, first), (last_s, last) = seen[0], seen[-1]
        return (last - first) / (last_s - first_s)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            # A scrape that fails is made up for by the next.
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(self._url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - of this machine
                    count = read_count(answer.read().decode())
                if count is not None and (not self.changes or self.changes[-1][1] != count):
                    self.changes.append((time.monotonic() - self._began, count))
