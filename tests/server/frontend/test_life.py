"""A front end through its life: engines that come and go, draining, a supervisor that vanishes."""

import asyncio
import errno
import subprocess
import sys
from collections.abc import Awaitable
from typing import Any

import grpc.aio
import msgspec
import pytest

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, StoreFull, Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.access import rights
from adamix_server.channel.supervisor_frames import Drain, Drained, EngineDown, Fatal, Ready, StartFrontEnd, Stats
from adamix_server.frontend.front_end import FrontEnd
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.fake_supervisor import FakeSupervisor
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import details, failure, reason, status_of

ONE = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, bool]:
    """(code, reason, whether it says when to retry) of a call that must fail."""
    error = await failure(call)
    status = status_of(error)
    return error.code(), reason(status), "RetryInfo" in details(status)


async def code_of(call: Awaitable[object]) -> grpc.StatusCode | None:
    """The code of a call that failed; None for one that did not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


RESTARTING = (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTING", True)


async def test_an_engine_that_dies_fails_what_waits_and_a_new_one_serves(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    waiting = [asyncio.ensure_future(harness.inference.Predict(ONE)) for _ in range(5)]
    await harness.until(lambda: len(harness.engine.held) == 5)
    harness.kill_engine()
    for call in waiting:
        assert await refusal(call) == RESTARTING
    assert await refusal(harness.inference.Predict(ONE)) == RESTARTING
    # The control plane does not need an engine.
    assert len((await harness.adapters.ListTasks(adapters_pb2.ListTasksRequest())).tasks) == 1
    harness.engine.hold = False
    harness.start_engine()
    await harness.until(lambda: harness.front_end._link.is_up)
    assert (await harness.inference.Predict(ONE)).predictions[0].version


async def test_a_channel_that_breaks_is_like_an_engine_that_dies_and_is_mended(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    waiting = asyncio.ensure_future(harness.inference.Predict(ONE))
    await harness.until(lambda: len(harness.engine.held) == 1)
    broken = harness.engine.channel
    broken.frames.put_nowait(OSError("broken"))
    assert await refusal(waiting) == RESTARTING
    harness.engine.hold = False
    # The engine itself still stands, so the heartbeat connects again.
    await harness.until(lambda: harness.front_end._link.is_up)
    assert harness.engine.channel is not broken
    assert broken.closed
    await harness.inference.Predict(ONE)


async def test_draining_refuses_new_calls_and_ends_running_ones(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    running = [asyncio.ensure_future(harness.inference.Predict(ONE)) for _ in range(3)]
    await harness.until(lambda: len(harness.engine.held) == 3)
    harness.drain()
    while await code_of(harness.adapters.ListTasks(adapters_pb2.ListTasksRequest())) is None:
        pass
    assert await refusal(harness.inference.Predict(ONE)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING", True)
    harness.engine.hold = False
    harness.engine.answer_all()
    responses = await asyncio.gather(*running)
    assert all(response.predictions[0].classification.label for response in responses)
    await harness.supervisor.expect(Drained)


async def test_calls_that_outlast_the_grace_are_ended(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    running = asyncio.ensure_future(harness.inference.Predict(ONE))
    await harness.until(lambda: len(harness.engine.held) == 1)
    harness.drain(grace_s=0.1)
    with pytest.raises(grpc.aio.AioRpcError):
        await running
    await harness.supervisor.expect(Drained)


async def test_a_front_end_ends_with_its_supervisor(harness: Harness) -> None:
    async def gone(harness: Harness) -> None:
        while await code_of(harness.adapters.ListTasks(adapters_pb2.ListTasksRequest())) is None:
            pass

    harness.supervisor.tell(None)
    await gone(harness)


async def test_the_heartbeat_brings_metrics(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    await harness.inference.Predict(ONE)
    found: dict[str, Any] = {}
    while "adamix_task_requests_total" not in found:
        stats: Stats = await harness.supervisor.expect(Stats)
        found |= {sample.name: (sample.labels, sample.values) for sample in stats.samples if any(sample.values)}
    assert found["adamix_task_requests_total"] == (("default", "sst2"), [1.0])
    assert found["adamix_requests_total"] == (("adamix.v1.InferenceService/Predict", "OK"), [1.0])


async def test_a_port_that_is_taken_is_fatal_with_the_address(harness: Harness, settings: StartFrontEnd) -> None:
    supervisor = type(harness.supervisor)()
    engine = type(harness.engine)(harness.engine.spec)
    second = FrontEnd(msgspec.structs.replace(settings, listen=harness.address), supervisor, connect=engine.connect)
    supervisor.tell(engine.up())
    assert await second.run() == 1
    fatal: Fatal = await supervisor.expect(Fatal)
    assert harness.address in fatal.message


async def test_a_method_without_a_right_is_fatal_with_its_name(
    settings: StartFrontEnd, spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "/adamix.v1.AdapterService/WatchTasks"
    monkeypatch.setattr(rights, "NEEDS", {name: need for name, need in rights.NEEDS.items() if name != method})
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    supervisor.tell(engine.up())
    assert await FrontEnd(settings, supervisor, connect=engine.connect).run() == 1
    fatal: Fatal = await supervisor.expect(Fatal)
    assert method in fatal.message


async def test_an_engine_that_grants_nothing_at_first_is_asked_again(
    settings: StartFrontEnd, spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.engine_link.CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr("adamix_server.frontend.front_end.HEARTBEAT_S", 0.1)
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    attempts = 0

    async def connect(address: str, generation: int, engine_id: str) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError(errno.EMFILE, "no socket to be had")
        channel = await engine.connect(address, generation, engine_id)
        if attempts <= 3:
            # The credit never comes: the engine is in a long step.
            channel.frames.get_nowait()
        return channel

    running = asyncio.create_task(FrontEnd(settings, supervisor, connect=connect).run())
    supervisor.tell(engine.up())
    await supervisor.expect(Ready)
    assert attempts == 4
    # What the supervisor says afterwards is heard, in its order.
    supervisor.tell(Drain(delay_s=0, grace_s=1))
    await supervisor.expect(Drained)
    assert await running == 0


async def test_an_engine_that_was_called_down_is_not_asked_again(
    settings: StartFrontEnd, spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.engine_link.CONNECT_TIMEOUT_S", 0.01)
    monkeypatch.setattr("adamix_server.frontend.front_end.HEARTBEAT_S", 0.01)
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    attempts: list[int] = []

    async def connect(address: str, generation: int, engine_id: str) -> Any:
        attempts.append(generation)
        channel = await engine.connect(address, generation, engine_id)
        channel.frames.get_nowait()
        return channel

    front_end = FrontEnd(settings, supervisor, connect=connect)
    running = asyncio.create_task(front_end.run())
    supervisor.tell(engine.up())
    while len(attempts) < 3:  # noqa: ASYNC110 - nothing says when it tries again
        await asyncio.sleep(0.005)
    supervisor.tell(EngineDown(engine_id="engine-0", generation=engine.generation))
    while front_end._engine is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    count = len(attempts)
    await asyncio.sleep(0.1)
    assert len(attempts) == count
    supervisor.tell(None)
    assert await running == 0


@pytest.mark.parametrize(
    ("error", "is_fatal"),
    [
        (Unavailable("the catalog is busy; try again", reason="CATALOG_BUSY"), False),
        (Unavailable("the disk of the store reports errors", reason="STORE_IO"), False),
        (StoreFull("the server's disk is full"), False),
        (FailedPrecondition("catalog.db was not made by adamix", reason="STORE_FOREIGN"), True),
        (DataLoss("the catalog is damaged", reason="CATALOG_CORRUPT"), True),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
async def test_only_what_trying_again_cannot_cure_is_fatal(
    settings: StartFrontEnd,
    spec: BackboneSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: AdamixError,
    is_fatal: bool,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("adamix_server.frontend.assembly.Catalog", fail)
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    supervisor.tell(engine.up())
    assert await FrontEnd(settings, supervisor, connect=engine.connect).run() == 1
    await asyncio.sleep(0)
    said = [] if supervisor.from_child.empty() else [supervisor.from_child.get_nowait()]
    assert said == ([Fatal(message=error.message)] if is_fatal else [])
    if not is_fatal:
        assert error.message in caplog.text


@pytest.mark.parametrize("order", [None, Drain(delay_s=0, grace_s=1)])
async def test_told_to_end_before_there_was_an_engine(order: Drain | None, settings: StartFrontEnd) -> None:
    supervisor = FakeSupervisor()
    supervisor.tell(order)
    assert await FrontEnd(settings, supervisor).run() == 0


@pytest.mark.parametrize(
    "module", ["adamix_client", "adamix_server.frontend.front_end", "adamix_server.telemetry.logs"]
)
def test_no_torch_in_front_ends_and_clients(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_started_by_hand_the_process_says_who_starts_it() -> None:
    done = subprocess.run([sys.executable, "-m", "adamix_server.frontend"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "adamix serve" in done.stderr
