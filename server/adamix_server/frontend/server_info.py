"""`ServerService`: what this server is, how busy it is, and its end.

Knows only what the engine says of itself and the published limits. What a drain is, the supervisor knows.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any

from adamix.errors import InternalError, Unavailable
from adamix_protos.v1 import server_pb2, server_pb2_grpc
from adamix_server.channel.engine_frames import EngineLoad
from adamix_server.frontend import convert
from adamix_server.frontend.engine_link import EngineLink


class ServerInfoServicer(server_pb2_grpc.ServerServiceServicer):
    """Answers from the engine's greeting, also while the engine restarts; its load only the engine itself knows.

    Args:
        ask_to_drain: tells the supervisor that an operator wants this server to end.
    """

    def __init__(self, link: EngineLink, ask_to_drain: Callable[[], None]) -> None:
        self._link = link
        self._ask_to_drain = ask_to_drain
        self._server_version = importlib.metadata.version("adamix")

    async def GetServerInfo(
        self, _request: server_pb2.GetServerInfoRequest, _context: Any
    ) -> server_pb2.GetServerInfoResponse:
        hello = self._link.hello
        if hello is None:
            raise Unavailable(
                "the engine has not started yet", reason="ENGINE_STARTING", retry_after_s=self._link.back_s
            )
        return server_pb2.GetServerInfoResponse(
            backbone=convert.to_backbone(hello.spec),
            compute_dtype=hello.dtype,
            quantisation=hello.quantize,
            limits=convert.to_limits(hello.limits),
            server_version=self._server_version,
            device=hello.device,
        )

    async def GetLoad(self, _request: server_pb2.GetLoadRequest, _context: Any) -> server_pb2.GetLoadResponse:
        load = await self._link.control("report", "")
        if not isinstance(load, EngineLoad):
            raise InternalError("the engine did not say how busy it is")
        return server_pb2.GetLoadResponse(
            queued_inputs=load.queued_inputs,
            queued_tokens=load.queued_tokens,
            running_inputs=load.running_inputs,
            resident_adapters=load.resident_adapters,
            slots=load.slots,
        )

    async def Drain(self, _request: server_pb2.DrainRequest, _context: Any) -> server_pb2.DrainResponse:
        # The drain waits for running calls, this one among them: the answer is sent before the port closes.
        self._ask_to_drain()
        return server_pb2.DrainResponse()
