"""A server in processes of its own, for as long as a with-block runs: for demonstrations and benchmarks.

Knows how `adamix serve` is started and says where it answers; nothing of what is asked of it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from adamix.errors import Unavailable

_START_S = 120.0
_STOP_S = 20.0


class LocalServer:
    """`adamix serve` on a free port of the loopback interface, from the start of a with-block to its end.

    Args:
        log_path: where its log goes.
        flags: of `adamix serve`, beside those that the rest implies.
        python: the interpreter, of whose adamix it is.
        environment: of its processes; that of this one if None.

    Attributes:
        address: `host:port`, while the block runs.
        http: alike, over HTTP, if `flags` have asked for it.

    Entering raises Unavailable if it does not start.
    """

    def __init__(
        self,
        backbone: str,
        store: Path,
        log_path: Path,
        *flags: str,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [python, "-m", "adamix_server", "serve", "--backbone", backbone]
        self._command += ["--listen", "127.0.0.1:0", "--store", str(store), "--drain-delay", "0", *flags]
        self._environment = environment
        self._log_path = log_path
        self._serving = threading.Event()
        self.address = ""
        self.http = ""

    def __enter__(self) -> Self:
        log = self._log_path.open("w", encoding="utf-8")
        # A session of its own: Ctrl-C reaches whoever started it, who then stops it in order.
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        threading.Thread(target=self._follow_log, args=(log,), daemon=True).start()
        try:
            self._serving.wait(_START_S)
        finally:
            # Ctrl-C while it starts, too, must leave no server behind.
            if not self.address:
                self.__exit__(None, None, None)
        if not self.address:
            raise Unavailable(f"the server did not start; see {self._log_path}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self._process.pid

    def _follow_log(self, log: TextIO) -> None:
        with log:
            for line in self._process.stderr or ():
                log.write(line)
                log.flush()
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if record.get("process") == "supervisor" and record.get("message") == "serving":
                        self.http = str(record.get("http", ""))
                        self.address = str(record["address"])
                        self._serving.set()
        self._serving.set()
