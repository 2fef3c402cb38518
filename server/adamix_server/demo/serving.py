"""Demo, steps c to f: a server in a process of its own, and clients that never pause while adapters change."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from adamix.errors import AdamixError, Unavailable
from adamix_server.client import Client, Input

_START_S = 120.0
_STOP_S = 20.0


class ServerProcess:
    """`adamix serve` on a free port of the loopback interface; its log goes to `log_path`.

    Args:
        python: the interpreter, of whose adamix it is.
        environment: of the processes.  (default: that of this one)
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

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C reaches the demo, which then stops the server in order.
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        threading.Thread(target=self._follow_log, daemon=True).start()
        if not self._serving.wait(_START_S) or not self.address:
            self.__exit__(None, None, None)
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

    def _follow_log(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        with self._log_path.open("w", encoding="utf-8") as log:
            for line in stderr:
                log.write(line)
                log.flush()
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if record.get("process") == "supervisor" and record.get("message") == "serving":
                        self.address = str(record["address"])
                        self._serving.set()
        self._serving.set()


@dataclass
class Tally:
    """What the clients saw. `versions` counts answers by (task, digest)."""

    sent: int = 0
    failed: int = 0
    versions: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Traffic:
    """Clients that send one small mixed call after another until the with-block ends."""

    def __init__(
        self, address: str, texts: Mapping[str, Sequence[str]], clients: int = 2, inputs_per_call: int = 4
    ) -> None:
        self._address = address
        self._texts = texts
        self._inputs_per_call = inputs_per_call
        self._tasks: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)]
        self.tally = Tally()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def add(self, task: str) -> None:
        """Send requests for this task, too, from now on."""
        with self._lock:
            self._tasks.append(task)

    def wait_for(self, task: str, digest: str, answers: int, timeout_s: float = 30.0) -> bool:
        """Wait until a version has answered so many requests."""
        with self._answered:
            return self._answered.wait_for(lambda: self.tally.versions[task, digest] >= answers, timeout_s)

    def _run(self, first: int) -> None:
        with Client(self._address) as client:
            for turn in itertools.count(first):
                if self._stop.is_set():
                    return
                with self._lock:
                    tasks = list(self._tasks)
                if not tasks:
                    self._stop.wait(0.01)
                    continue
                self._call(client, [tasks[(turn + i) % len(tasks)] for i in range(self._inputs_per_call)], turn)

    def _call(self, client: Client, tasks: Sequence[str], turn: int) -> None:
        inputs = [
            Input(task=task, text=self._texts[task][turn % len(self._texts[task])], truncate=True) for task in tasks
        ]
        try:
            predictions = client.predict(inputs).predictions
        except AdamixError as error:
            with self._answered:
                self.tally.sent += len(inputs)
                self.tally.failed += len(inputs)
                self.tally.errors[error.reason] += len(inputs)
            return
        with self._answered:
            for prediction in predictions:
                self.tally.sent += 1
                if prediction.error is None:
                    self.tally.versions[prediction.task, prediction.version] += 1
                else:
                    self.tally.failed += 1
                    self.tally.errors[prediction.error.reason] += 1
            self._answered.notify_all()
