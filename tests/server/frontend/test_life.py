"""A front end through its life: engines that come and go, draining, a supervisor that vanishes."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc.aio
import msgspec
import pytest
from google.rpc import error_details_pb2, status_pb2

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, StoreFull, Unavailable
from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.frontend.server import FrontEnd
from adamix_server.supervisor_frames import Drain, Drained, EngineDown, Fatal, Ready, StartFrontEnd, Stats

ONE = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, bool]:
    """(code, reason, whether it says when to retry) of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code(), info.reason, any(detail.Unpack(retry) for detail in status.details)


async def code_of(call: Any) -> grpc.StatusCode | None:
    """The code of a call that failed; None for one that did not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


RESTARTING = (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTING", True)


def test_an_engine_that_dies_fails_what_waits_and_a_new_one_serves(
    serve: Any, seed: Any, make_adapter: Callable[..., bytes]
) -> None:
    seed("sst2", make_adapter())

    async def scenario(harness: Any) -> None:
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

    serve(scenario)


def test_a_channel_that_breaks_is_like_an_engine_that_dies_and_is_mended(
    serve: Any, seed: Any, make_adapter: Callable[..., bytes]
) -> None:
    seed("sst2", make_adapter())

    async def scenario(harness: Any) -> None:
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

    serve(scenario)


def test_draining_refuses_new_calls_and_ends_running_ones(
    serve: Any, seed: Any, make_adapter: Callable[..., bytes]
) -> None:
    seed("sst2", make_adapter())

    async def scenario(harness: Any) -> None:
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

    serve(scenario)


def test_calls_that_outlast_the_grace_are_ended(serve: Any, seed: Any, make_adapter: Callable[..., bytes]) -> None:
    seed("sst2", make_adapter())

    async def scenario(harness: Any) -> None:
        harness.engine.hold = True
        running = asyncio.ensure_future(harness.inference.Predict(ONE))
        await harness.until(lambda: len(harness.engine.held) == 1)
        harness.drain(grace_s=0.1)
        with pytest.raises(grpc.aio.AioRpcError):
            await running
        await harness.supervisor.expect(Drained)

    serve(scenario)


def test_a_front_end_ends_with_its_supervisor(serve: Any) -> None:
    async def scenario(harness: Any) -> None:
        harness.supervisor.tell(None)
        await gone(harness)

    async def gone(harness: Any) -> None:
        while await code_of(harness.adapters.ListTasks(adapters_pb2.ListTasksRequest())) is None:
            pass

    serve(scenario)


def test_the_heartbeat_brings_metrics(serve: Any, seed: Any, make_adapter: Callable[..., bytes]) -> None:
    seed("sst2", make_adapter())

    async def scenario(harness: Any) -> None:
        await harness.inference.Predict(ONE)
        found: dict[str, Any] = {}
        while "adamix_task_requests_total" not in found:
            stats: Stats = await harness.supervisor.expect(Stats)
            found |= {sample.name: (sample.labels, sample.values) for sample in stats.samples}
        assert found["adamix_task_requests_total"] == (("default", "sst2"), [1.0])
        assert found["adamix_requests_total"] == (("adamix.v1.InferenceService/Predict", "OK"), [1.0])

    serve(scenario)


def test_a_port_that_is_taken_is_fatal_with_the_address(serve: Any, settings: StartFrontEnd) -> None:
    async def scenario(harness: Any) -> None:
        supervisor = type(harness.supervisor)()
        engine = type(harness.engine)(harness.engine.spec)
        second = FrontEnd(msgspec.structs.replace(settings, listen=harness.address), supervisor, connect=engine.connect)
        supervisor.tell(engine.up())
        assert await second.run() == 1
        fatal: Fatal = await supervisor.expect(Fatal)
        assert harness.address in fatal.message

    serve(scenario)


def test_an_engine_that_grants_nothing_at_first_is_asked_again(
    play: Any, settings: StartFrontEnd, supervisor_type: Any, engine_type: Any, spec: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("adamix_server.frontend.engine_link.CONNECT_TIMEOUT_S", 0.05)

    async def scene() -> None:
        engine, supervisor = engine_type(spec), supervisor_type()
        attempts = 0

        async def connect(address: str, generation: int, engine_id: str) -> Any:
            nonlocal attempts
            attempts += 1
            channel = await engine.connect(address, generation, engine_id)
            if attempts <= 2:
                # The credit never comes: the engine is in a long step.
                channel.frames.get_nowait()
            return channel

        running = asyncio.create_task(FrontEnd(settings, supervisor, connect=connect).run())
        supervisor.tell(engine.up())
        await supervisor.expect(Ready)
        assert attempts == 3
        # What the supervisor says afterwards is heard, in its order.
        supervisor.tell(Drain(delay_s=0, grace_s=1))
        await supervisor.expect(Drained)
        assert await running == 0

    play(scene())


def test_an_engine_that_was_called_down_is_not_asked_again(
    play: Any, settings: StartFrontEnd, supervisor_type: Any, engine_type: Any, spec: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("adamix_server.frontend.engine_link.CONNECT_TIMEOUT_S", 0.01)
    monkeypatch.setattr("adamix_server.frontend.server.HEARTBEAT_S", 0.01)

    async def scene() -> None:
        engine, supervisor = engine_type(spec), supervisor_type()
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

    play(scene())


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
def test_only_what_trying_again_cannot_cure_is_fatal(
    play: Any,
    settings: StartFrontEnd,
    supervisor_type: Any,
    engine_type: Any,
    spec: Any,
    monkeypatch: Any,
    caplog: pytest.LogCaptureFixture,
    error: AdamixError,
    is_fatal: bool,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("adamix_server.frontend.server.Catalog", fail)

    async def scene() -> None:
        engine, supervisor = engine_type(spec), supervisor_type()
        supervisor.tell(engine.up())
        assert await FrontEnd(settings, supervisor, connect=engine.connect).run() == 1
        await asyncio.sleep(0)
        said = [] if supervisor.from_child.empty() else [supervisor.from_child.get_nowait()]
        assert said == ([Fatal(message=error.message)] if is_fatal else [])

    play(scene())
    if not is_fatal:
        assert error.message in caplog.text


@pytest.mark.parametrize("order", [None, Drain(delay_s=0, grace_s=1)])
def test_told_to_end_before_there_was_an_engine(
    play: Any, order: Drain | None, settings: StartFrontEnd, supervisor_type: Any
) -> None:
    async def scene() -> None:
        supervisor = supervisor_type()
        supervisor.tell(order)
        assert await FrontEnd(settings, supervisor).run() == 0

    play(scene())


@pytest.mark.parametrize(
    "module", ["adamix_server.client", "adamix_server.frontend.server", "adamix_server.telemetry.logs"]
)
def test_no_torch_in_front_ends_and_clients(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_started_by_hand_the_process_says_who_starts_it() -> None:
    done = subprocess.run([sys.executable, "-m", "adamix_server.frontend"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "adamix serve" in done.stderr
