"""kill -9 of the engine and of the front end under load: who waits is told, and nobody has to help it back up."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamix.errors import AdamixError, Code
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Input, Predictions
from adamix_testing.servers import Callers, Eventually, Outcome, Server

MakeAdapter = Callable[..., AdapterFile]

TASKS = ("one", "two", "three")
TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird", "fish", "not the quick blue cat and a small dog"]
# One second is the promise, kept on an idle machine; the rest is for a machine that does other things.
TOLD_WITHIN_S = 3.0


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


@pytest.fixture(scope="module")
def mortal(start_module_server: Callable[..., Server]) -> Iterator[Any]:
    """A server whose processes are killed; whatever they died of, it ends in order."""
    server = start_module_server("--metrics-port", "0")
    yield server
    assert server.terminate() == 0


class Expected:
    """Three tasks with two versions each, and what they answer before anything goes wrong."""

    def __init__(self, server: Server, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
        self.inputs = [[Input(task=task, text=text) for text in TEXTS * 8] for task in TASKS]
        self._answers: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
        with server.client() as client:
            for number, task in enumerate(TASKS):
                client.register(task, data_of(make_adapter(number, spec=spec)))
                live = client.register(task, data_of(make_adapter(10 + number, num_labels=2 + number, spec=spec)))
                answers = client.predict(self.inputs[number], return_logits=True).predictions
                assert {answer.version for answer in answers} == {live.version.digest}
                self._answers[task] = [(answer.version, answer.logits) for answer in answers]

    def check(self, answer: Predictions, *, may_be_cut: bool = False) -> None:
        """`may_be_cut`: the engine may have died when some inputs of the call were computed and others were not."""
        for found, (version, logits) in zip(answer.predictions, self._answers[answer.predictions[0].task], strict=True):
            if may_be_cut and found.error is not None:
                assert (found.error.code, found.error.reason) == (Code.UNAVAILABLE, "ENGINE_RESTARTING")
                assert found.error.retry_after_s is not None
                continue
            assert found.error is None
            assert found.version == version
            np.testing.assert_allclose(found.logits, logits, atol=1e-5)


@pytest.fixture
def expected(mortal: Any, make_adapter: MakeAdapter, spec: BackboneSpec) -> Expected:
    return Expected(mortal, make_adapter, spec)


@contextmanager
def health_of(server: Server) -> Iterator[Callable[[], int | None]]:
    """What the health service says now; None when nobody answers."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def ask() -> int | None:
            try:
                return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)
            except grpc.RpcError:
                return None

        yield ask


def told_s(outcomes: list[Outcome], killed: float) -> float:
    """The longest that a call which was under way at the kill had to wait for its end."""
    return max((o.ended - killed for o in outcomes if o.began < killed < o.ended), default=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("cycles", [2, pytest.param(5, marks=pytest.mark.long)])
def test_an_engine_killed_under_load(
    cycles: int, mortal: Any, expected: Expected, spec: BackboneSpec, callers: type[Callers], eventually: Eventually
) -> None:
    server = mortal
    front_end = server.child("adamix_server.frontend")
    told: list[float] = []
    back: list[float] = []
    with callers(server, expected.inputs) as load, health_of(server) as health, server.client() as client:
        for _ in range(cycles):
            start = time.monotonic()
            eventually(lambda since=start: len(load.answered_since(since)) >= 8, "the server answers")
            os.kill(server.child("adamix_server.engine"), signal.SIGKILL)
            killed = time.monotonic()
            eventually(lambda: health() == health_pb2.HealthCheckResponse.NOT_SERVING, "health says NOT_SERVING")
            assert client.server_info().backbone["fingerprint"] == spec.fingerprint
            eventually(lambda: health() == health_pb2.HealthCheckResponse.SERVING, "health says SERVING")
            eventually(lambda since=killed: len(load.answered_since(since)) > 0, "the server answers again")
            back.append(min(o.ended for o in load.answered_since(killed)) - killed)
            told.append(told_s(list(load.outcomes), killed))
    refusals = [o.answer for o in load.outcomes if isinstance(o.answer, AdamixError)]
    print(
        f"told after at most {max(told):.3f} s, serving again after at most {max(back):.1f} s, {len(refusals)} refused"
    )
    assert refusals, "no kill met a call"
    assert {refusal.code for refusal in refusals} == {Code.UNAVAILABLE}
    assert {refusal.reason for refusal in refusals} == {"ENGINE_RESTARTING"}
    assert all(refusal.retry_after_s is not None for refusal in refusals)
    assert max(told) < TOLD_WITHIN_S
    for outcome in load.outcomes:
        if isinstance(outcome.answer, Predictions):
            expected.check(outcome.answer, may_be_cut=True)
    # What an operator needs to tell a crash from the kernel's killing for memory.
    assert server.find(message="child ended", child="engine", status=-signal.SIGKILL)
    assert server.child("adamix_server.frontend") == front_end, "the front end has lived through all of it"
    eventually(lambda: server.metric("adamix_slots", state="pinned") == 0, "no slot is pinned")


@pytest.mark.long
def test_an_engine_that_stands_still_under_load(
    start_module_server: Callable[..., Server],
    make_adapter: MakeAdapter,
    spec: BackboneSpec,
    callers: type[Callers],
    eventually: Eventually,
) -> None:
    server = start_module_server("--metrics-port", "0", "--engine-stall-s", "1.5")
    expected = Expected(server, make_adapter, spec)
    engine = server.child("adamix_server.engine")
    with callers(server, expected.inputs) as load, health_of(server) as health:
        eventually(lambda: len(load.answered_since(0.0)) >= 8, "the server answers")
        # For a while: who waits is answered after all, who comes meanwhile is refused, and all is well by itself.
        os.kill(engine, signal.SIGSTOP)
        eventually(lambda: health() == health_pb2.HealthCheckResponse.NOT_SERVING, "health says NOT_SERVING")
        assert server.metric("adamix_engine_stalled") == 1.0
        with server.client() as client, pytest.raises(AdamixError) as refused:
            client.predict(task="one", texts=["fish"])
        assert (refused.value.code, refused.value.reason) == (Code.UNAVAILABLE, "ENGINE_STALLED")
        os.kill(engine, signal.SIGCONT)
        eventually(lambda: health() == health_pb2.HealthCheckResponse.SERVING, "health says SERVING")
        assert server.child("adamix_server.engine") == engine
        assert all(isinstance(o.answer, Predictions) or o.answer.reason == "ENGINE_STALLED" for o in load.outcomes[:])
        # For good.
        os.kill(engine, signal.SIGSTOP)
        stopped = time.monotonic()
        eventually(lambda: server.find(message="child ended", child="engine") is not None, "it is killed")
        assert 4.0 < time.monotonic() - stopped < 15.0
        eventually(lambda: health() == health_pb2.HealthCheckResponse.SERVING, "health says SERVING")
        eventually(lambda: len(load.answered_since(stopped)) > 0, "the server answers again")
    refusals = [o.answer for o in load.outcomes if isinstance(o.answer, AdamixError)]
    assert {error.code for error in refusals} == {Code.UNAVAILABLE}
    assert {error.reason for error in refusals} <= {"ENGINE_STALLED", "ENGINE_RESTARTING"}
    assert all(error.retry_after_s is not None for error in refusals)
    assert server.metric("adamix_engine_stalled") == 0.0
    assert server.terminate() == 0


@pytest.mark.slow
def test_a_front_end_killed_under_load(
    mortal: Any,
    expected: Expected,
    make_adapter: MakeAdapter,
    spec: BackboneSpec,
    callers: type[Callers],
    eventually: Eventually,
) -> None:
    server = mortal
    engine, address = server.child("adamix_server.engine"), server.address
    registered: list[str] = []
    stop = threading.Event()

    def register() -> None:
        number = 100
        while not stop.is_set():
            number += 1
            with server.client() as client:
                try:
                    registered.append(
                        client.register("growing", data_of(make_adapter(number, spec=spec))).version.digest
                    )
                except AdamixError:
                    stop.wait(0.05)

    registering = threading.Thread(target=register)
    with callers(server, expected.inputs) as load, health_of(server) as health, server.client() as client:
        registering.start()
        try:
            for cycle in range(2):
                start = time.monotonic()
                eventually(lambda since=start: len(load.answered_since(since)) >= 8, "the server answers")
                eventually(lambda count=cycle: len(registered) > count, "a version is registered")
                os.kill(server.child("adamix_server.frontend"), signal.SIGKILL)
                killed = time.monotonic()
                eventually(lambda since=killed: len(load.answered_since(since)) > 0, "the server answers again")
                eventually(lambda: health() == health_pb2.HealthCheckResponse.SERVING, "health says SERVING")
                # So does a client that was connected to the dead one.
                client.wait_until_serving(60)
                assert client.predict(task="one", texts=["fish"]).predictions[0].error is None
                assert told_s(list(load.outcomes), killed) < TOLD_WITHIN_S
        finally:
            stop.set()
            registering.join(60)
    refusals = [o.answer for o in load.outcomes if isinstance(o.answer, AdamixError)]
    assert refusals, "no kill met a call"
    assert {refusal.code for refusal in refusals} == {Code.UNAVAILABLE}
    for outcome in load.outcomes:
        if isinstance(outcome.answer, Predictions):
            expected.check(outcome.answer)
    assert (server.child("adamix_server.engine"), server.address) == (engine, address)
    with server.client() as client:
        assert set(registered) <= {version.digest for version in client.versions("growing")}
    # What the dead front end had asked for is computed, answered to nobody, and lets go of its slot.
    eventually(lambda: server.metric("adamix_slots", state="pinned") == 0, "no slot is pinned")
    eventually(lambda: server.metric("adamix_queue_requests") == 0, "the queue is empty")
