"""Two thousand calls given up at random moments: not a slot, not a credit and no memory stays with them."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.api import status
from adamix_testing.servers import Eventually, Server, StartServer

MakeAdapter = Callable[..., AdapterFile]

SOME, MANY = 800, 2_000
THREADS = 8
WARM_UP = 800
LONGEST_S = 0.03
# A leak of a request or a future per call would cost more than this.
GROWTH_BYTES = 24 << 20
# The queue takes 4,096 inputs at most, and 1,024 more wait for room in it.
INPUTS_PER_CALL, MORE_THAN_FIT = 64, 100
# Half of the tasks have no slot at any moment: their calls are given up while they wait for one, too.
TASKS, SLOTS = 8, 4

ANSWERED, CANCELLED, LATE = (
    code.name for code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
)
REFUSED = "refused by the transport"
TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird", "fish", "not the quick blue cat and a small dog"]


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def request(generator: random.Random) -> inference_pb2.PredictRequest:
    inputs = [
        inference_pb2.PredictInput(task=f"task-{generator.randrange(TASKS)}", text=generator.choice(TEXTS))
        for _ in range(generator.choice([1, 4, 16]))
    ]
    return inference_pb2.PredictRequest(inputs=inputs)


def unary(stub: Any, generator: random.Random, timeout_s: float) -> Any:
    return stub.Predict.future(request(generator), timeout=timeout_s)


def stream(stub: Any, generator: random.Random, timeout_s: float) -> Any:
    """A stream that has sent its inputs and stays open."""
    ended = threading.Event()

    def inputs() -> Iterator[inference_pb2.PredictStreamRequest]:
        for number, item in enumerate(request(generator).inputs):
            yield inference_pb2.PredictStreamRequest(id=str(number), input=item)
        ended.wait(60)

    call = stub.PredictStream(inputs(), timeout=timeout_s)
    call.add_callback(ended.set)
    return call


def end_of(call: Any) -> str:
    """How a call ended: the name of its code, with whatever was said of one that this test does not expect."""
    try:
        code = call.code()
    except grpc.FutureCancelledError:
        return CANCELLED
    if code.name in (ANSWERED, CANCELLED, LATE):
        return str(code.name)
    details = call.details() or ""
    is_of_server = any(key == status.DETAILS_KEY for key, _ in call.trailing_metadata() or ())
    # Channels of one process share a connection. The transport refuses new streams to one with too many that are not
    # yet cleared away: nothing was done, and a caller tries again (docs/failures.md).
    if code is grpc.StatusCode.UNAVAILABLE and "RST_STREAM" in details and not is_of_server:
        return REFUSED
    return f"{code.name}: {details}"


def storm(address: str, calls: int, seed: int, start: Callable[..., Any]) -> Counter[str]:
    """Make calls and give each up at a random moment, in one of three ways; returns how they ended."""
    generator = random.Random(seed)
    ends: Counter[str] = Counter()
    with ExitStack() as kept:
        keep = kept.enter_context(grpc.insecure_channel(address))
        for _ in range(calls):
            way = generator.choice(["cancel", "cancel", "deadline", "deadline", "deadline", "close"])
            moment_s = generator.uniform(0, LONGEST_S)
            channel = grpc.insecure_channel(address) if way == "close" else keep
            stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            call = start(stub, generator, max(moment_s, 1e-3) if way == "deadline" else 60)
            if way != "deadline":
                time.sleep(moment_s)
                channel.close() if way == "close" else call.cancel()
            ends[end_of(call)] += 1
    return ends


def storms(address: str, calls: int, seed: int, ways: list[Callable[..., Any]]) -> Counter[str]:
    found: list[Counter[str]] = []

    def one(number: int) -> None:
        found.append(storm(address, calls // THREADS, seed + number, ways[number % len(ways)]))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found, Counter())


@pytest.mark.slow
@pytest.mark.parametrize("count", [SOME, pytest.param(MANY, marks=pytest.mark.long)])
def test_two_thousand_calls_given_up(
    count: int, start_server: StartServer, make_adapter: MakeAdapter, spec: BackboneSpec, eventually: Eventually
) -> None:
    server = start_server("--metrics-port", "0", "--slots", str(SLOTS)).wait()
    with server.client() as client:
        for number in range(TASKS):
            client.register(f"task-{number}", data_of(make_adapter(number, spec=spec)))
    children = [server.child("adamix_server.engine"), server.child("adamix_server.frontend")]
    ways = [unary, stream]
    storms(server.address, WARM_UP, 0, ways)
    fitted = calls_that_fit(server)
    before = [resident_bytes(pid) for pid in children]
    ends = storms(server.address, count, 1_000, ways)
    assert ends.total() == count
    assert set(ends) <= {ANSWERED, CANCELLED, LATE, REFUSED}, ends
    assert min(ends[CANCELLED], ends[LATE]) > 0, ends
    assert ends[REFUSED] < count // 2, "most calls get as far as the server"
    eventually(lambda: server.metric("adamix_slots", state="pinned") == 0, "no slot is pinned")
    eventually(lambda: server.metric("adamix_queue_requests") == 0, "the queue is empty")
    eventually(lambda: server.metric("adamix_running_requests") == 0, "nothing runs")
    assert [server.child("adamix_server.engine"), server.child("adamix_server.frontend")] == children
    growth = [resident_bytes(pid) - size for pid, size in zip(children, before, strict=True)]
    print(f"ends: {dict(ends)}")
    print(f"growth of engine and front end: {[round(g / 2**20, 1) for g in growth]} MiB")
    assert max(growth) < GROWTH_BYTES
    # All of the queue is free again; what it takes goes by what the engine was measured to do, which is never the same.
    assert calls_that_fit(server) == pytest.approx(fitted, rel=0.15)
    assert server.terminate() == 0


def calls_that_fit(server: Server) -> int:
    """With the engine held still: of so many whole calls as there is never room for, those that are let in."""
    whole = inference_pb2.PredictRequest(
        inputs=[inference_pb2.PredictInput(task="task-0", text="fish")] * INPUTS_PER_CALL
    )
    engine = server.child("adamix_server.engine")
    with grpc.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.Predict(whole, timeout=30)
        os.kill(engine, signal.SIGSTOP)
        try:
            calls = [stub.Predict.future(whole, timeout=60) for _ in range(MORE_THAN_FIT)]
            # Nobody else ends: the refused are all that do, as soon as all have been looked at.
            refused, before, end = 0, -1, time.monotonic() + 8
            while time.monotonic() < end and (not refused or refused != before):
                time.sleep(1)
                before, refused = refused, sum(call.done() for call in calls)
        finally:
            os.kill(engine, signal.SIGCONT)
        ends = Counter(end_of(call).partition(":")[0] for call in calls)
        assert ends == {ANSWERED: MORE_THAN_FIT - refused, grpc.StatusCode.RESOURCE_EXHAUSTED.name: refused}
    return MORE_THAN_FIT - refused
