"""Nothing touches a call's context once the call is gone: clients leave every streaming method at any moment."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc, inference_pb2, inference_pb2_grpc, server_pb2
from adamix_testing import catalogs
from adamix_testing.adapters import MakeAdapter
from adamix_testing.bare_boundary import connect
from adamix_testing.harness import Harness, StartServing


async def inputs() -> AsyncIterator[inference_pb2.PredictStreamRequest]:
    for number in range(50):
        text = inference_pb2.PredictInput(task="task-0", text="w1")
        yield inference_pb2.PredictStreamRequest(id=str(number), input=text)
    await asyncio.Event().wait()


async def header() -> AsyncIterator[adapters_pb2.RegisterAdapterRequest]:
    yield adapters_pb2.RegisterAdapterRequest(header=adapters_pb2.RegisterAdapterHeader(task="other"))
    await asyncio.Event().wait()


async def listing() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    for _ in range(50):
        yield reflection_pb2.ServerReflectionRequest(list_services="")
    await asyncio.Event().wait()


def opened(channel: Any) -> list[Any]:
    """A call of every streaming method."""
    adapters, inference = (
        adapters_pb2_grpc.AdapterServiceStub(channel),
        inference_pb2_grpc.InferenceServiceStub(channel),
    )
    return [
        adapters.WatchTasks(adapters_pb2.WatchTasksRequest()),
        adapters.RegisterAdapter(header()),
        inference.PredictStream(inputs()),
        inference.Generate(inference_pb2.GenerateRequest()),
        health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()),
        reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(listing()),
    ]


async def open_and_drop(harness: Harness, times: int) -> None:
    for number in range(times):
        async with connect(harness.address) as channel:
            calls = opened(channel)
            # Some leave before they have anything, some after their first answer, some in the middle.
            await asyncio.sleep(0.002 * (number % 5))
            if number % 3:
                await calls[0].read()
            if number % 2:
                for call in calls:
                    call.cancel()
        await harness.server.GetServerInfo(server_pb2.GetServerInfoRequest())


@pytest.mark.parametrize(
    ("tasks", "times"), [(200, 15), pytest.param(500, 100, marks=pytest.mark.long)], ids=["some", "many"]
)
async def test_clients_may_leave_a_stream_at_any_moment(
    start_serving: StartServing, store: Path, spec: BackboneSpec, make_adapter: MakeAdapter, tasks: int, times: int
) -> None:
    names = [f"task-{number}" for number in range(tasks)]
    catalogs.register_many(store, names, make_adapter(), here=spec.fingerprint)
    harness = await start_serving()
    await open_and_drop(harness, times)
