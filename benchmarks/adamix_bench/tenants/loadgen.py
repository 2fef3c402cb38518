"""The load generator's process: `python -m adamix_bench.tenants.loadgen`, plans on stdin, outcomes on stdout.

An open loop of several tenants: a call is sent when it is due, whatever became of those before; or, if a plan says so,
one call after another. Requests arrive serialised and answers are looked at only when the clock has stopped; of calls
that are made again, refusals at once.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np
from google.rpc import status_pb2

from adamix.errors import AdamixError, Code, DeadlineExceeded
from adamix_bench.serving.generator_process import read_frame, write_frame
from adamix_bench.tenants.load import Due, Outcome, Plan
from adamix_bench.tenants.trace import Ended
from adamix_bench.tenants.trace import Outcome as Kind
from adamix_client import status
from adamix_client.connection import channel_options
from adamix_protos.v1 import inference_pb2

_METHOD = "/adamix.v1.InferenceService/Predict"
_CONNECT_S = 20.0
# Who is refused so often gives up.
_MOST_TRIES = 8
_MOST_REASON = 120


@dataclass
class _Call:
    """`due` and `ended` count seconds of the monotonic clock."""

    asked: Due
    due: float
    ended: float = 0.0
    answer: bytes = b""
    error: grpc.aio.AioRpcError | None = None


@dataclass
class _Run:
    """One plan being carried out."""

    plan: Plan
    asks: list[Any]
    metadata: list[Any]
    started: float = field(default_factory=time.perf_counter)
    calls: list[_Call] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    async def all(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for number, asked in enumerate(self.plan.calls):
            due = self.started + asked.due_s
            left_s = due - time.perf_counter()
            if left_s > 0:
                await asyncio.sleep(left_s)
            elif number % 16 == 0:
                # A generator that is late must not forget the answers.
                await asyncio.sleep(0)
            self.late_s.append(max(0.0, time.perf_counter() - due))
            task = asyncio.create_task(self._ask(_Call(asked, due), self.asks[number % len(self.asks)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            until = self.started + self.plan.seconds + self.plan.cut_s
            _, given_up = await asyncio.wait(tasks, timeout=max(0.0, until - time.perf_counter()))
            for task in given_up:
                task.cancel()
            await asyncio.gather(*given_up, return_exceptions=True)

    async def in_turn(self) -> None:
        for number, asked in enumerate(self.plan.calls):
            now = time.perf_counter()
            if now > self.started + self.plan.seconds:
                return
            await self._ask(_Call(asked, now), self.asks[number % len(self.asks)])

    async def _ask(self, call: _Call, ask: Any) -> None:
        asked = call.asked
        payload, metadata = self.plan.groups[asked.group].payloads[asked.payload], self.metadata[asked.group]
        for _ in range(_MOST_TRIES):
            self.calls.append(call)
            if (after_s := await self._try(call, ask, payload, metadata)) is None:
                return
            if call.ended + after_s > self.started + self.plan.seconds:
                return
            await asyncio.sleep(after_s)
            call = _Call(asked, call.ended + after_s)

    async def _try(self, call: _Call, ask: Any, payload: bytes, metadata: Any) -> float | None:
        """In how many seconds it may be made again; None if that is of no use, or nobody would."""
        try:
            call.answer = await ask(payload, timeout=call.asked.deadline_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            call.error = error
        call.ended = time.perf_counter()
        if call.error is None or not call.asked.retries:
            return None
        kind, _, after_s = _judged(call.error)
        return after_s if kind == "refused" else None


async def carry_out(plan: Plan) -> Outcome:
    """Send what the plan says and wait for every answer."""
    options = channel_options(extra={"grpc.max_receive_message_length": -1})
    channels = [grpc.aio.insecure_channel(plan.address, options=options) for _ in range(plan.connections)]
    metadata = [(("authorization", f"Bearer {group.key}"),) if group.key else () for group in plan.groups]
    try:
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
        # What a collection would stop the loop for has been there since before.
        gc.collect()
        gc.freeze()
        cpu = time.process_time()
        run = _Run(plan, [_raw(channel.unary_unary) for channel in channels], metadata)
        await (run.in_turn() if plan.in_turn else run.all())
        return _outcome(run, time.process_time() - cpu)
    finally:
        for channel in channels:
            await channel.close(None)


def _raw(make: Callable[..., Any]) -> Any:
    """Predict, of a channel, that takes and gives bytes."""
    return make(_METHOD)


def _outcome(run: _Run, cpu_s: float) -> Outcome:
    batches: set[tuple[int, float]] = set()
    ended = sorted((_ended(run, call, batches) for call in run.calls if call.ended), key=lambda each: each.ended_s)
    return Outcome(
        calls=ended,
        late_s=float(np.percentile(run.late_s, 99)) if run.late_s else 0.0,
        most_late_s=max(run.late_s, default=0.0),
        cpu_s=cpu_s,
        batches=sorted(batches),
    )


def _ended(run: _Run, call: _Call, batches: set[tuple[int, float]]) -> Ended:
    group = run.plan.groups[call.asked.group]
    lengths = group.lengths[call.asked.payload]
    kind, reason, answered = _read(call, lengths, batches)
    return Ended(
        tenant=group.tenant,
        due_s=call.due - run.started,
        ended_s=call.ended - run.started,
        tokens=sum(lengths),
        answered=answered,
        outcome=kind,
        reason=reason,
    )


def _read(call: _Call, lengths: list[int], batches: set[tuple[int, float]]) -> tuple[Kind, str, int]:
    """How a call ended, why, and the tokens that were answered."""
    if call.error is not None:
        kind, reason, _ = _judged(call.error)
        return kind, reason, 0
    response = inference_pb2.PredictResponse.FromString(call.answer)
    if response.timing.batch_tokens:
        batches.add((response.timing.batch_tokens, response.timing.compute_s))
    answered, worst = 0, None
    for prediction, tokens in zip(response.predictions, lengths, strict=True):
        if prediction.WhichOneof("result") == "error":
            worst = worst or status.from_status(prediction.error)
        else:
            answered += tokens
    if worst is None:
        return "ok", "", answered
    return _kind_of(worst), worst.reason, answered


def _judged(error: grpc.aio.AioRpcError) -> tuple[Kind, str, float | None]:
    """How a call that failed ended, why, and when it may come again."""
    trailers: Any = error.trailing_metadata() or ()
    for name, value in trailers:
        if name == status.DETAILS_KEY:
            found = status.from_status(status_pb2.Status.FromString(value))
            return _kind_of(found), found.reason, found.retry_after_s
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "expired", "", None
    return "failed", f"{error.code().name} {error.details() or ''}"[:_MOST_REASON].strip(), None


def _kind_of(error: AdamixError) -> Kind:
    if isinstance(error, DeadlineExceeded):
        return "refused" if error.reason == "DEADLINE_UNREACHABLE" else "expired"
    return "refused" if error.code is Code.RESOURCE_EXHAUSTED else "failed"


def main() -> None:
    # One event loop for all plans: grpc.aio does not move to a second one.
    with asyncio.Runner() as runner:
        while (data := read_frame(sys.stdin.buffer)) is not None:
            outcome = runner.run(carry_out(msgspec.msgpack.decode(data, type=Plan)))
            write_frame(sys.stdout.buffer, msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    main()
