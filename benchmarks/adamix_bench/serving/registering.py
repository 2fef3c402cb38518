"""Does registering disturb others? The same open loop of calls with and without registrations beside it, in turns."""

import threading
import time
from collections.abc import Sequence
from itertools import count

import numpy as np

from adamix.errors import AdamixError
from adamix_bench.measure import Spread, in_turns
from adamix_bench.serving.load import LoadProcess, Outcome, Plan
from adamix_bench.serving.servers import Say
from adamix_bench.serving.synthesis import make_task
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import draw_arrivals
from adamix_client import Client

# New tasks a second: far more than people make, and each costs a process that judges the file.
REGISTRATIONS_PER_S = 1.0
_CONNECTIONS = 4
# Weights that no other task of the run has: the server must take each file for a new one.
_LATE = 1_000_000


def p99s(
    bench: Workbench,
    load: LoadProcess,
    address: str,
    payloads: Sequence[bytes],
    rate: float,
    seconds: float,
    repetitions: int,
    say: Say,
) -> tuple[Spread, Spread, list[int]]:
    """The p99 latency of calls in milliseconds without registrations and with them, and how many there were.

    Args:
        payloads: of the calls, sent in circles.
        rate: calls a second of the open loop, Poisson.
        seconds: of each run.

    Raises:
        AdamixError: a call failed, or a registration.
    """
    random = bench.arrivals_random()
    arrivals_s = draw_arrivals(rate, 1.0, max(1, round(rate * seconds)), random).tolist()
    plan = Plan(address=address, payloads=list(payloads), arrivals_s=arrivals_s, connections=_CONNECTIONS)
    numbers, registered = count(), []

    def loud() -> Outcome:
        with _Registrations(bench, address, numbers) as registrations:
            outcome = load.run(plan)
        registered.append(registrations.done)
        return outcome

    found = in_turns(
        {"quiet": lambda: load.run(plan), "loud": loud},
        repetitions,
        lambda turn, _: say(f"f: turn {turn} of {repetitions}"),
    )
    return _p99_ms(found["quiet"]), _p99_ms(found["loud"]), registered[1:]


class _Registrations:
    """Registers one new task after another, at a steady pace, until the with-block ends."""

    def __init__(self, bench: Workbench, address: str, numbers: "count[int]") -> None:
        self._bench, self._address, self._numbers = bench, address, numbers
        self._stop = threading.Event()
        self._error: AdamixError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done = 0

    def __enter__(self) -> "_Registrations":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        # A registration that is refused is an outcome, not something to ask again.
        with Client(self._address, retries=None) as client:
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                task = make_task(
                    self._bench.backbone.spec, _LATE + next(self._numbers), self._bench.seed, prefix="late"
                )
                try:
                    client.register(task.name, task.data)
                except AdamixError as error:
                    self._error = error
                    return
                self.done += 1
                due += 1 / REGISTRATIONS_PER_S


def _p99_ms(outcomes: Sequence[Outcome]) -> Spread:
    for outcome in outcomes:
        if outcome.errors:
            raise AdamixError(f"calls failed under load: {outcome.errors}")
    return Spread(tuple(float(np.percentile(outcome.latency_s, 99)) * 1e3 for outcome in outcomes))
