"""The load generator's process: `python -m adamix_bench.serving.loadgen`, plans on stdin, outcomes on stdout.

Requests arrive serialised and answers are looked at only when the clock has stopped, so that a call costs this process
little more than grpc itself does. Knows nothing of tasks or models.
"""

import asyncio
import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import msgspec

from adamix_bench.serving.generator_process import read_frame, write_frame
from adamix_bench.serving.load import Outcome, Plan
from adamix_client.connection import channel_options
from adamix_protos.v1 import inference_pb2

_CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_METHOD = "/adamix.v1.InferenceService/"


@dataclass
class _Call:
    """`due` and `ended` count seconds of the monotonic clock."""

    payload: int
    due: float
    ended: float = 0.0
    answer: bytes = b""
    code: str = ""


@dataclass
class _Run:
    """One plan being carried out."""

    plan: Plan
    started: float = field(default_factory=time.perf_counter)
    late_s: float = 0.0
    calls: list[_Call] = field(default_factory=list)

    def numbers(self) -> Iterator[int]:
        """Numbers of the calls to make, as long as there are any."""
        count = len(self.plan.payloads)
        for number in itertools.count() if self.plan.seconds is not None else range(count):
            if self.plan.seconds is not None and time.perf_counter() - self.started >= self.plan.seconds:
                return
            yield number

    def begin(self, number: int, due: float | None = None) -> _Call:
        now = time.perf_counter()
        call = _Call(number % len(self.plan.payloads), now if due is None else due)
        self.late_s = max(self.late_s, now - call.due)
        self.calls.append(call)
        return call

    def payload(self, call: _Call) -> bytes:
        return self.plan.payloads[call.payload]

    async def until_due(self, due: float) -> None:
        """Sleep until then; not at all if it has passed."""
        left_s = due - time.perf_counter()
        if left_s > 0:
            await asyncio.sleep(left_s)


async def carry_out(plan: Plan) -> Outcome:
    """Send what the plan says and wait for every answer."""
    options = channel_options(extra={"grpc.max_receive_message_length": -1})
    channels = [grpc.aio.insecure_channel(plan.address, options=options) for _ in range(plan.connections)]
    try:
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), plan.timeout_s)
        cpu = time.process_time()
        run = _Run(plan)
        if plan.rpc == "PredictStream":
            await _stream(run, channels[0])
        elif plan.arrivals_s is not None:
            await _open_loop(run, plan.arrivals_s, channels)
        else:
            await _closed_loop(run, channels)
        return _outcome(run, time.process_time() - cpu)
    finally:
        for channel in channels:
            await channel.close(None)


def _raw(make: Callable[..., Any], method: str) -> Any:
    """A method of a channel that takes and gives bytes."""
    return make(_METHOD + method)


async def _closed_loop(run: _Run, channels: list[grpc.aio.Channel]) -> None:
    numbers = run.numbers()

    async def one_after_another(ask: Any) -> None:
        for number in numbers:
            await _ask(run, ask, run.begin(number))

    asks = [_raw(channel.unary_unary, "Predict") for channel in channels]
    await asyncio.gather(*(one_after_another(asks[i % len(asks)]) for i in range(run.plan.in_flight)))


async def _open_loop(run: _Run, arrivals_s: list[float], channels: list[grpc.aio.Channel]) -> None:
    asks = [_raw(channel.unary_unary, "Predict") for channel in channels]
    async with asyncio.TaskGroup() as group:
        for number, arrival_s in enumerate(arrivals_s):
            due = run.started + arrival_s
            await run.until_due(due)
            group.create_task(_ask(run, asks[number % len(asks)], run.begin(number, due)))


async def _ask(run: _Run, ask: Any, call: _Call) -> None:
    try:
        call.answer = await ask(run.payload(call), timeout=run.plan.timeout_s)
        call.code = "OK"
    except grpc.aio.AioRpcError as error:
        call.code = error.code().name
    call.ended = time.perf_counter()


async def _stream(run: _Run, channel: grpc.aio.Channel) -> None:
    """One stream; a call is one input of it."""
    stream = _raw(channel.stream_stream, "PredictStream")()
    room = asyncio.Semaphore(run.plan.in_flight)
    writer = asyncio.create_task(_write(run, stream, room))
    try:
        async for answer in stream:
            call = run.calls[int(inference_pb2.PredictStreamResponse.FromString(answer).id)]
            call.answer, call.code, call.ended = answer, "OK", time.perf_counter()
            room.release()
        code = "UNAVAILABLE"  # for what is left when the server ends the stream early
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    finally:
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await writer
    for call in run.calls:
        if not call.ended:
            call.code, call.ended = code, time.perf_counter()


async def _write(run: _Run, stream: Any, room: asyncio.Semaphore) -> None:
    for number in run.numbers():
        due = None
        if run.plan.arrivals_s is None:
            await room.acquire()
        else:
            due = run.started + run.plan.arrivals_s[number]
            await run.until_due(due)
        call = run.begin(number, due)
        # Serialised messages may be joined: a field of the second wins.
        name = inference_pb2.PredictStreamRequest(id=str(len(run.calls) - 1)).SerializeToString()
        await stream.write(run.payload(call) + name)
    await stream.done_writing()


def _outcome(run: _Run, cpu_s: float) -> Outcome:
    errors: Counter[str] = Counter()
    answered = [_count(run, call, errors) for call in run.calls]
    return Outcome(
        wall_s=max((call.ended for call in run.calls), default=run.started) - run.started,
        cpu_s=cpu_s,
        late_s=run.late_s,
        calls=[call.payload for call in run.calls],
        latency_s=[max(0.0, call.ended - call.due) for call in run.calls],
        answered=answered,
        errors=dict(errors),
        answers=[call.answer for call in run.calls] if run.plan.keep_answers else [],
    )


def _count(run: _Run, call: _Call, errors: Counter[str]) -> int:
    """Inputs of a call that were answered; the others are entered among the errors."""
    if call.code != "OK":
        is_stream = run.plan.rpc == "PredictStream"
        errors[call.code] += 1 if is_stream else len(inference_pb2.PredictRequest.FromString(run.payload(call)).inputs)
        return 0
    if run.plan.rpc == "PredictStream":
        predictions = [inference_pb2.PredictStreamResponse.FromString(call.answer).prediction]
    else:
        predictions = list(inference_pb2.PredictResponse.FromString(call.answer).predictions)
    failed = [p.error.code for p in predictions if p.WhichOneof("result") == "error"]
    errors.update(_CODES.get(code, str(code)) for code in failed)
    return len(predictions) - len(failed)


def main() -> None:
    # One event loop for all plans: grpc.aio does not move to a second one.
    with asyncio.Runner() as runner:
        while (data := read_frame(sys.stdin.buffer)) is not None:
            outcome = runner.run(carry_out(msgspec.msgpack.decode(data, type=Plan)))
            write_frame(sys.stdout.buffer, msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    main()
