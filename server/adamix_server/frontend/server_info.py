"""`ServerService`: what this server is. Knows only what the engine said of itself and the published limits."""

import importlib.metadata
from typing import Any

from adamix.errors import Unavailable
from adamix_protos.v1 import server_pb2, server_pb2_grpc
from adamix_server.frontend import convert
from adamix_server.frontend.engine_link import EngineLink


class ServerInfoServicer(server_pb2_grpc.ServerServiceServicer):
    """Answers from the engine's greeting, also while the engine restarts."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._server_version = importlib.metadata.version("adamix")

    async def GetServerInfo(
        self, _request: server_pb2.GetServerInfoRequest, _context: Any
    ) -> server_pb2.GetServerInfoResponse:
        hello = self._link.hello
        if hello is None:
            raise Unavailable("the engine has not started yet", reason="ENGINE_STARTING", retry_after_s=1.0)
        return server_pb2.GetServerInfoResponse(
            backbone=convert.to_backbone(hello.spec),
            compute_dtype=hello.dtype,
            quantisation="none",
            limits=convert.to_limits(hello.limits),
            server_version=self._server_version,
            device=hello.device,
        )
