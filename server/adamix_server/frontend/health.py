"""`grpc.health.v1`: whether this front end serves, of the process ("") and of each service.

Says what `readiness.py` says. Knows neither why a front end serves nor who asks.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamix.errors import NotFound
from adamix_server.frontend.readiness import Readiness

_Status = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # has no stubs
    """Answers from the readiness itself, so that no watcher that reads slowly can keep the news from another."""

    def __init__(self, readiness: Readiness, services: Iterable[str]) -> None:
        self._readiness = readiness
        self._services = frozenset(("", *services))

    async def Check(self, request: health_pb2.HealthCheckRequest, _context: Any) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            raise NotFound("this server has no such service")
        return _Status(status=self._status())

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, _context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        is_known, said = request.service in self._services, None
        while True:
            reasons = self._readiness.reasons
            now = self._status() if is_known else _Status.SERVICE_UNKNOWN
            if now != said:
                yield _Status(status=now)
                said = now
            await self._readiness.changed(reasons)

    def _status(self) -> Any:
        return _Status.SERVING if self._readiness.is_ready else _Status.NOT_SERVING
