"""Whole servers in processes of their own, and threads that call them without pause."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prometheus_client.parser import text_string_to_metric_families

from adamix.errors import AdamixError
from adamix_client import Client, Input, Predictions


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait until a condition holds; fails with its name after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


class Server:
    """`adamix serve` in a process of its own, started by way of the command `before` if there is one."""

    def __init__(self, backbone: Path, store: Path, *flags: str, before: Sequence[str] = ()) -> None:
        command = [
            *before,
            sys.executable,
            "-m",
            "adamix_server",
            "serve",
            "--backbone",
            str(backbone),
            "--store",
            str(store),
        ]
        command += ["--listen", "127.0.0.1:0", "--drain-delay", "0", "--threads", "1", *flags]
        self.store = store
        self.records: list[dict[str, Any]] = []
        self._serving = threading.Event()
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                record = {"message": line.strip()}
            self.records.append(record)
            if record.get("process") == "supervisor" and record["message"] == "serving":
                self._serving.set()
        self._serving.set()

    def wait(self) -> "Server":
        assert self._serving.wait(120)
        assert self.address, [r["message"] for r in self.records]
        return self

    def find(self, **fields: Any) -> dict[str, Any] | None:
        return next((r for r in self.records if all(r.get(k) == v for k, v in fields.items())), None)

    @property
    def address(self) -> str:
        record = self.find(process="supervisor", message="serving")
        return "" if record is None else record["address"]

    @property
    def http(self) -> str:
        """Empty without `--http`."""
        record = self.find(process="supervisor", message="serving")
        return "" if record is None else record.get("http", "")

    def client(self) -> Client:
        return Client(self.address, timeout_s=30, retries=None)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """Everything at once, as a power cut would."""
        if self.process.poll() is None:
            # The supervisor stands still meanwhile: it replaces whoever dies, and whoever outlives it ends in order.
            os.kill(self.process.pid, signal.SIGSTOP)
            for child in self.children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def child(self, module: str) -> int:
        """The process id of the engine or the front end."""
        (pid,) = self.pids(module)
        return pid

    def pids(self, module: str) -> list[int]:
        """The process ids of all children that run `module`."""
        return [pid for pid in self.children() if module in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")]

    def wait_for_end(self) -> int:
        """The exit status, when everything it said has been read."""
        status = self.process.wait(60)
        self._reader.join(10)
        return status

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name and these labels. The server needs `--metrics-port`."""
        record = self.find(process="supervisor", message="metrics")
        assert record is not None
        text = urllib.request.urlopen(f"http://{record['address']}/metrics", timeout=5).read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@dataclass(frozen=True)
class Outcome:
    """One call of a `Callers` thread: when it began and ended (monotonic seconds), and how."""

    began: float
    ended: float
    answer: Predictions | AdamixError


class Callers:
    """Threads that call without pause, each on a connection of its own; a refused one waits a moment."""

    def __init__(self, server: Server, inputs: Sequence[Sequence[Input]], count: int = 8) -> None:
        self.outcomes: list[Outcome] = []
        self.errors: list[BaseException] = []
        self._server = server
        self._inputs = inputs
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(count)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call hangs"
        assert not self.errors, self.errors

    def answered_since(self, moment: float) -> list[Outcome]:
        return [o for o in list(self.outcomes) if o.began > moment and isinstance(o.answer, Predictions)]

    def _call(self, number: int) -> None:
        try:
            with self._server.client() as client:
                while not self._stop.is_set():
                    inputs = self._inputs[number % len(self._inputs)]
                    number += 1
                    began = time.monotonic()
                    answer: Predictions | AdamixError
                    try:
                        found = client.predict(inputs, return_logits=True, on_error="return")
                        # As the server has it: a call fails where all its inputs do.
                        failed = [one.error for one in found if one.error is not None]
                        answer = failed[0] if len(failed) == len(found) else found
                    except AdamixError as error:
                        answer = error
                    self.outcomes.append(Outcome(began, time.monotonic(), answer))
                    if isinstance(answer, AdamixError):
                        time.sleep(0.02)
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread, by __exit__
            self.errors.append(error)


class StartServer(Protocol):
    """The fixture `start_server`: starts a server that is killed after the test."""

    def __call__(self, *flags: str, store: Path = ..., before: Sequence[str] = ()) -> Server: ...


class Eventually(Protocol):
    """The fixture `eventually`."""

    def __call__(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None: ...
