"""The load generator over HTTP: `python -m adamix_bench.faces.http_loadgen`, plans on stdin, outcomes on stdout.

As that over gRPC, for closed loops alone: bodies arrive made, each loop has a connection and a thread of its own, and
answers are looked at only when the clock has stopped. Knows nothing of tasks or models.
"""

import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from adamix_bench.serving.generator_process import GeneratorProcess, read_frame, write_frame
from adamix_bench.serving.load import Outcome, Plan

_PATH = "/v1/predict"
_HEADERS = {"content-type": "application/json"}


@dataclass
class _Call:
    """`began` and `ended` count seconds; `status` is 0 if nothing was heard."""

    payload: int
    began: float
    ended: float = 0.0
    status: int = 0
    answer: bytes = b""


class HttpLoadProcess(GeneratorProcess[Plan, Outcome]):
    """The load generator's process. The address of a plan is that of `--http`; its payloads are bodies."""

    def __init__(self) -> None:
        super().__init__("adamix_bench.faces.http_loadgen", Outcome)


def carry_out(plan: Plan) -> Outcome:
    """Send what the plan says and wait for every answer."""
    cpu = time.process_time()
    started = time.perf_counter()
    numbers = _shared(iter(range(len(plan.payloads))))
    with ThreadPoolExecutor(plan.in_flight) as pool:
        loops = [pool.submit(_one_after_another, plan, numbers) for _ in range(plan.in_flight)]
        calls = [call for loop in loops for call in loop.result()]
    cpu = time.process_time() - cpu
    errors: Counter[str] = Counter()
    answered = [_count(plan, call, errors) for call in calls]
    return Outcome(
        wall_s=max((call.ended for call in calls), default=started) - started,
        cpu_s=cpu,
        late_s=0.0,
        calls=[call.payload for call in calls],
        latency_s=[call.ended - call.began for call in calls],
        answered=answered,
        errors=dict(errors),
        answers=[call.answer for call in calls] if plan.keep_answers else [],
    )


def _one_after_another(plan: Plan, numbers: Iterator[int]) -> list[_Call]:
    found = []
    connection = http.client.HTTPConnection(plan.address, timeout=plan.timeout_s)
    try:
        for number in numbers:
            call = _Call(number, time.perf_counter())
            found.append(call)
            try:
                connection.request("POST", _PATH, plan.payloads[number], _HEADERS)
                response = connection.getresponse()
                call.answer, call.status = response.read(), response.status
            except (OSError, http.client.HTTPException):
                # The next one makes a new connection.
                connection.close()
            call.ended = time.perf_counter()
    finally:
        connection.close()
    return found


def _shared(numbers: Iterator[int]) -> Iterator[int]:
    """The numbers, each for one thread."""
    lock = threading.Lock()

    def next_one() -> int:
        with lock:
            return next(numbers, -1)

    return iter(next_one, -1)


def _count(plan: Plan, call: _Call, errors: Counter[str]) -> int:
    """Inputs of a call that were answered; the others are entered among the errors."""
    if call.status != http.client.OK:
        errors[f"HTTP_{call.status}"] += len(msgspec.json.decode(plan.payloads[call.payload])["inputs"])
        return 0
    predictions = msgspec.json.decode(call.answer)["predictions"]
    failed = [prediction["error"] for prediction in predictions if "error" in prediction]
    errors.update(str(error["code"]) for error in failed)
    return len(predictions) - len(failed)


def main() -> None:
    while (data := read_frame(sys.stdin.buffer)) is not None:
        outcome = carry_out(msgspec.msgpack.decode(data, type=Plan))
        write_frame(sys.stdout.buffer, msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    main()
