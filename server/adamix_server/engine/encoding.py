"""Steps of an encoder: one batch, each request of it computed as a whole and answered by its head."""

import time
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from adamix.errors import AdamixError, Cancelled, DeadlineExceeded, FailedPrecondition
from adamix_server.channel.engine_frames import Row, Timing
from adamix_server.engine.desk import Desk
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Batch, Request
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.steps import Step, compute, failed_alone
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder


class Encoding:
    """See `steps.Steps`."""

    used_pages = 0

    def __init__(self, runner: ModelRunner, scheduler: Scheduler) -> None:
        self.runner = runner
        self.queue = scheduler

    @property
    def num_queued(self) -> int:
        return len(self.queue)

    def refusal(self, row: Row) -> AdamixError | None:
        # Front ends refuse these themselves, as they know the task.
        if row.generate is not None or not row.digest:
            return FailedPrecondition("this server's backbone is an encoder, which generates no text")
        return None

    def add(self, request: Request) -> None:
        self.queue.add(request)

    def cancel(self, request: Request, desk: Desk) -> None:
        desk.end(request, Cancelled("the caller is gone"))

    def expire(self, request: Request, desk: Desk) -> None:
        desk.end(request, DeadlineExceeded("the deadline passed before the request ran"))

    def kept(self) -> Collection[str]:
        # What runs has ended before anybody asks.
        return ()

    def arrange(self, order: list[str], _adapters: AdapterLoader, /) -> list[str]:
        return order

    def take(self, desk: Desk, rate: TokenRate) -> Step | None:
        batch = self.queue.next_batch(desk.adapters.is_ready, time.monotonic(), rate.tokens_per_s)
        if batch is None:
            return None
        is_behind = self.queue.is_behind
        started = time.monotonic()
        for request in batch.requests:
            request.slot = desk.adapters.slot_for(request.hold)
        outcomes = self._compute(batch, desk, rate)
        compute_s = time.monotonic() - started
        for request, outcome in zip(batch.requests, outcomes, strict=True):
            request.timing = Timing(
                queue_s=started - request.arrived,
                load_s=request.hold.waited_s,
                compute_s=compute_s,
                batch_requests=len(batch.requests),
                batch_tokens=batch.num_tokens,
                batch_tasks=batch.num_adapters,
            )
            desk.end(request, outcome)
        desk.judge(batch.requests, outcomes)
        _record(desk.recorder, batch, compute_s)
        return Step(len(batch.requests), batch.num_tokens, is_behind)

    def leaving_per_s(self, rate: TokenRate, /) -> float:
        return rate.tokens_per_s

    def report(self, recorder: Recorder) -> None:
        """There is nothing that only encoders have."""

    def _compute(self, batch: Batch, desk: Desk, rate: TokenRate) -> list[NDArray[np.float32] | AdamixError]:
        def alone(request: Request, error: Exception) -> AdamixError:
            # What takes the memory now is no longer there when all that waits has been computed.
            retry_after_s = rate.seconds(self.queue.queued_tokens + request.num_tokens)
            return failed_alone(request, error, self.runner, retry_after_s)

        def run(requests: Sequence[Request]) -> list[NDArray[np.float32]]:
            return self.runner.run(requests)

        return compute(run, batch.requests, alone, desk.progress)


def _record(recorder: Recorder, batch: Batch, compute_s: float) -> None:
    recorder.observe("adamix_batch_tokens", value=batch.num_tokens)
    recorder.observe("adamix_batch_requests", value=len(batch.requests))
    recorder.observe("adamix_batch_tasks", value=batch.num_adapters)
    recorder.observe("adamix_compute_seconds", value=compute_s)
    for request in batch.requests:
        recorder.observe("adamix_queue_seconds", value=request.timing.queue_s)
