"""The boundary alone, around one servicer of each kind of RPC, on a real port."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from adamix_client.connection import channel_options
from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc, inference_pb2, inference_pb2_grpc
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.boundary.boundary import Boundary
from adamix_server.frontend.boundary.bounds import BOUNDS, Bounds
from adamix_server.frontend.boundary.gate import Gate
from adamix_server.frontend.boundary.quota import Quota
from adamix_server.frontend.boundary.sessions import Sessions
from adamix_server.frontend.health import HealthServicer
from adamix_server.frontend.readiness import Readiness
from adamix_server.telemetry.metrics import Recorder

# grpc.aio.Channel: the stubs know it with more arguments than it needs.
Channel = Any
PREDICT = "/adamix.v1.InferenceService/Predict"
PREDICT_STREAM = "/adamix.v1.InferenceService/PredictStream"


def connect(address: str) -> Channel:
    """A connection of its own, that takes what it has asked for and little more."""
    options = channel_options(extra={"grpc.use_local_subchannel_pool": 1, "grpc.http2.bdp_probe": 0})
    return grpc.aio.insecure_channel(address, options=options)


class PlayedServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Whatever the test says, once a message: `behave` gives an answer of Predict, or raises, or is to be awaited."""

    def __init__(self) -> None:
        self.behave: Callable[[], Any] = inference_pb2.PredictResponse
        self.delta = "x" * 10_000
        self.closed = asyncio.Event()

    async def _behave(self) -> Any:
        outcome = self.behave()
        return await outcome if inspect.isawaitable(outcome) else outcome

    async def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> Any:
        return await self._behave()

    async def PredictStream(
        self, requests: AsyncIterator[inference_pb2.PredictStreamRequest], context: Any
    ) -> AsyncIterator[inference_pb2.PredictStreamResponse]:
        async for _ in requests:
            await self._behave()
            yield inference_pb2.PredictStreamResponse(id="x")

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        try:
            for _ in range(10_000):
                yield inference_pb2.GenerateResponse(text_delta=self.delta)
                await self._behave()
        finally:
            self.closed.set()


class PlayedAdapters(adapters_pb2_grpc.AdapterServiceServicer):
    """Counts the messages of an upload."""

    async def RegisterAdapter(
        self, requests: AsyncIterator[adapters_pb2.RegisterAdapterRequest], context: Any
    ) -> adapters_pb2.RegisterAdapterResponse:
        count = 0
        async for _ in requests:
            count += 1
        return adapters_pb2.RegisterAdapterResponse(version=adapters_pb2.Version(num_bytes=count))


class BareBoundary:
    """A server of played servicers, and connections to it."""

    def __init__(
        self,
        bounds: Bounds = BOUNDS,
        listen: str = "127.0.0.1:0",
        is_shared: Callable[[], bool] = lambda: False,
        gate: Gate | None = None,
        quota: Quota | None = None,
        sessions: Sessions | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.servicer = PlayedServicer()
        self.admission = admission or Admission(bounds)
        self.recorder = Recorder()
        self.boundary = Boundary(
            self.admission, self.recorder, bounds, gate=gate, quota=quota, sessions=sessions, is_shared=is_shared
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.servicer, self.boundary)
        adapters_pb2_grpc.add_AdapterServiceServicer_to_server(PlayedAdapters(), self.boundary)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(Readiness(), ()), self.boundary)
        self._listen = listen
        self._channels: list[Channel] = []

    async def __aenter__(self) -> "BareBoundary":
        self.server = grpc.aio.server(
            options=[("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", 4 << 20)]
        )
        self.server.add_generic_rpc_handlers((self.boundary,))
        port = self.server.add_insecure_port(self._listen)
        self.address = self._listen if self._listen.startswith("unix:") else f"127.0.0.1:{port}"
        await self.server.start()
        self.channel = self.connect()
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close(None)
        await self.server.stop(0)
        self.boundary.close()

    def connect(self) -> Channel:
        """A connection of its own."""
        self._channels.append(connect(self.address))
        return self._channels[-1]

    def half_open(self, channel: Channel | None = None, method: str = PREDICT) -> Any:
        """A call that has sent its headers, and sends no message."""
        return (channel or self.channel).stream_unary(method)()

    def predict(self, channel: Channel | None = None, raw: bytes = b"", timeout: float = 10) -> Awaitable[Any]:
        call: Awaitable[Any] = (channel or self.channel).unary_unary(PREDICT)(raw, timeout=timeout)
        return call

    def counts(self, metric: str = "adamix_requests_total") -> dict[tuple[str, ...], float]:
        """What was counted since the last look."""
        return {s.labels: s.values[0] for s in self.recorder.drain() if s.name == metric and s.values[0]}
