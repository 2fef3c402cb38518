"""The store is taken away under a front end that serves, and put back."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamix.errors import InternalError, Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.blobs.os_errors import store_lost
from adamix_server.channel.supervisor_frames import Health, StartFrontEnd
from adamix_server.frontend import store_watch
from adamix_server.frontend.front_end import FrontEnd
from adamix_server.frontend.readiness import Readiness
from adamix_server.frontend.store_watch import StoreWatch
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.fake_supervisor import FakeSupervisor
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import details, failure, refusal, status_of


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_watch, "STORE_CHECK_S", 0.02)


async def health(harness: Harness) -> int:
    stub = health_pb2_grpc.HealthStub(harness.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest())
    return int(response.status)


async def until_health(harness: Harness, status: int) -> None:
    while await health(harness) != status:  # noqa: ASYNC110 - asked, as a load balancer does
        await asyncio.sleep(0.02)


async def predict(harness: Harness, task: str) -> inference_pb2.PredictResponse:
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task=task, text="w1")])
    return await harness.inference.Predict(request)


def upload(data: bytes) -> list[pb.RegisterAdapterRequest]:
    header = pb.RegisterAdapterHeader(task="new")
    return [pb.RegisterAdapterRequest(header=header), pb.RegisterAdapterRequest(chunk=data)]


async def test_a_lost_store_is_told_and_survived(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("resident", make_adapter())
    cold = seed("cold", make_adapter(seed=1))
    harness = await start_serving()
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert await health(harness) == serving
    away = harness.store.rename(harness.store.with_name("away"))
    harness.engine.fail = lambda row: store_lost() if row.digest == cold else None
    await until_health(harness, not_serving)
    while (await harness.supervisor.expect(Health)).reasons != ("STORE_LOST",):
        pass
    # The engine has it, and the task is in the snapshot: no file is needed.
    assert (await predict(harness, "resident")).predictions[0].version
    lost = (grpc.StatusCode.UNAVAILABLE, "STORE_LOST")
    for call in (
        lambda: predict(harness, "cold"),
        lambda: harness.adapters.GetTask(pb.GetTaskRequest(task="cold")),
        lambda: harness.adapters.ListTasks(pb.ListTasksRequest()),
        lambda: harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="cold")),
        lambda: harness.adapters.Rollback(pb.RollbackRequest(task="cold")),
        lambda: harness.adapters.RegisterAdapter(iter(upload(make_adapter(seed=2)))),
    ):
        assert await refusal(call()) == lost
    error = await failure(harness.adapters.ListTasks(pb.ListTasksRequest()))
    assert "RetryInfo" in details(status_of(error))
    assert not harness.store.exists(), "nothing was made in its place"
    away.rename(harness.store)
    harness.engine.fail = lambda row: None
    await until_health(harness, serving)
    assert (await predict(harness, "cold")).predictions[0].version == cold
    await harness.adapters.RegisterAdapter(iter(upload(make_adapter(seed=2))))
    assert len((await harness.adapters.ListTasks(pb.ListTasksRequest())).tasks) == 3


async def test_another_store_in_its_place_is_not_taken_for_it(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """A copy looks alike, but whatever was written since it was made is not in it: a restart decides, not a glance."""
    seed("t", make_adapter())
    harness = await start_serving()
    away = harness.store.rename(harness.store.with_name("away"))
    shutil.copytree(away, harness.store)
    await until_health(harness, health_pb2.HealthCheckResponse.NOT_SERVING)
    call = harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="t"))
    assert await refusal(call) == (grpc.StatusCode.UNAVAILABLE, "STORE_LOST")
    shutil.rmtree(harness.store)
    away.rename(harness.store)
    await until_health(harness, health_pb2.HealthCheckResponse.SERVING)


async def test_a_front_end_that_starts_while_the_store_is_away_makes_none(
    settings: StartFrontEnd, spec: BackboneSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """The supervisor starts the next one, and one of them finds it back."""
    away = settings.store.rename(settings.store.with_name("away"))
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    supervisor.tell(engine.up())
    assert await FrontEnd(settings, supervisor, connect=engine.connect).run() == 1
    assert "STORE_LOST" in {getattr(record, "reason", "") for record in caplog.records}
    assert not settings.store.exists()
    away.rename(settings.store)


@asynccontextmanager
async def watching(look: Callable[[], None]) -> AsyncIterator[Readiness]:
    readiness = Readiness()
    watch = asyncio.create_task(StoreWatch(look, readiness).run())
    yield readiness
    watch.cancel()
    await asyncio.wait({watch})


async def test_a_look_that_hangs_is_a_lost_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one at a file server that is gone; none is sent after it."""
    monkeypatch.setattr(store_watch, "ANSWER_S", 0.02)
    back, looks = threading.Event(), 0

    def look() -> None:
        nonlocal looks
        looks += 1
        back.wait()

    async with watching(look) as readiness:
        assert await readiness.changed(()) == ("STORE_LOST",)
        await asyncio.sleep(0.1)
        assert looks == 1
        back.set()
        assert await readiness.changed(("STORE_LOST",)) == ()


async def test_only_a_lost_store_takes_a_front_end_out_of_service(caplog: pytest.LogCaptureFixture) -> None:
    """What else goes wrong in a look is said, and looked at again."""
    outcomes = [Unavailable("busy", reason="STORE_IO"), InternalError("a bug"), RuntimeError("another"), store_lost()]

    def look() -> None:
        if outcomes:
            raise outcomes.pop(0)

    async with watching(look) as readiness:
        told = await readiness.changed(())
        assert (told, outcomes) == (("STORE_LOST",), [])
        assert await readiness.changed(told) == ()
    said = [record.message for record in caplog.records if record.name == store_watch.log.name]
    assert [line.partition(":")[0] for line in said] == [
        "the store cannot be looked at",
        "the store is lost",
        "the store is back",
    ]
