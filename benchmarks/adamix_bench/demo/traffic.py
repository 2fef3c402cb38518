"""Demo, steps c to f: clients that never pause while adapters change, and what they saw."""

import itertools
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from adamix.errors import AdamixError
from adamix_client import Client, Input


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
        with Client(self._address, retries=None) as client:
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
            predictions = client.predict(inputs, on_error="return")
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
