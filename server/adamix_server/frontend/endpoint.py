"""The gRPC server of a front end: its options, its services behind the boundary, and its health.

Knows how to bind, start and stop; when to do so is `front_end.py`'s matter.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from adamix_client.addresses import split_address
from adamix_protos.open_inference import open_inference_pb2, open_inference_pb2_grpc
from adamix_protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    admin_pb2,
    admin_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)
from adamix_server.descriptors import room_for_connections
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.boundary.boundary import Boundary
from adamix_server.frontend.boundary.gate import Gate, everyone
from adamix_server.frontend.boundary.quota import Quota
from adamix_server.frontend.boundary.sessions import Sessions
from adamix_server.frontend.boundary.witness import Witness
from adamix_server.frontend.control.admin import AdminServicer
from adamix_server.frontend.control.service import AdapterServicer
from adamix_server.frontend.entrance import Entrance
from adamix_server.frontend.health import HealthServicer
from adamix_server.frontend.inference.open_inference import OpenInferenceServicer
from adamix_server.frontend.inference.service import InferenceServicer
from adamix_server.frontend.readiness import Readiness
from adamix_server.frontend.server_info import ServerInfoServicer
from adamix_server.frontend.usage import Meter
from adamix_server.limits.calls import (
    CONNECTION_AGE_S,
    CONNECTION_GRACE_S,
    MAX_CONNECTION_STREAMS,
    MAX_CONNECTIONS,
    MIN_PING_INTERVAL_S,
)
from adamix_server.limits.messages import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from adamix_server.port import cannot_listen
from adamix_server.telemetry.metrics import Recorder

# After the last call has ended: time for its bytes to leave, and for health watchers to read NOT_SERVING.
REFUSE_S = 0.5
FLUSH_S = 0.5

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Between the two the transport would refuse by chance.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # Else the transport guesses how much a client may send that nobody has asked for yet, up to whole messages a call.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_concurrent_streams", MAX_CONNECTION_STREAMS),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 300_000),
    # New calls then go over a new connection, and what runs on the old one has a minute to end. It is the last resort
    # against readers that do not read: nothing else makes grpc drop what it holds for them.
    ("grpc.max_connection_age_ms", int(1000 * CONNECTION_AGE_S)),
    ("grpc.max_connection_age_grace_ms", int(1000 * CONNECTION_GRACE_S)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Of pings that grpc sends of its own, beside which a keepalive one is not sent: 60 s otherwise.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * MIN_PING_INTERVAL_S)),
)

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    server_pb2.DESCRIPTOR.services_by_name["ServerService"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)


class HttpPort(Protocol):
    """A bound, not yet started port of HTTP (`http/face.py`, which is imported where there is one)."""

    address: str

    async def start(self) -> None: ...

    async def stop(self, flush_s: float) -> None: ...

    async def keep_fresh(self) -> None: ...


# By what gives the enclosed method of a call.
OpenHttp = Callable[[Callable[[Any], Any]], HttpPort]


class Endpoint:
    """One bound, not yet started server.

    Args:
        listen: `host:port`; port 0 asks for a free one.
        with_reflection: let clients list the services.
        shares_port: with the other front ends of this server; the supervisor holds the port for all of them. Otherwise
            a second server on the port is an error, not a silent share of the traffic.
        entrance: the port's certificate, and who recognises callers.
        quota: of tenants.
        witness: sees calls end that are to be written down.
        meter: counts what callers use.
        is_shared: whether data calls run now, which other calls are to leave time for.
        open_http: opens the port of HTTP, whose calls go through the same boundary; None for none.

    Attributes:
        address: with the real port.
        http_address: alike, of HTTP; empty without it.

    Raises:
        InvalidConfig: the address cannot be bound (`ADDRESS_IN_USE`).
        FailedPrecondition: a service has a method for which no right is set (`METHOD_WITHOUT_RIGHT`).
    """

    def __init__(
        self,
        listen: str,
        servicers: tuple[InferenceServicer, AdapterServicer, AdminServicer, ServerInfoServicer, OpenInferenceServicer],
        admission: Admission,
        readiness: Readiness,
        recorder: Recorder,
        *,
        with_reflection: bool,
        shares_port: bool,
        entrance: Entrance,
        quota: Quota,
        witness: Witness | None = None,
        meter: Meter | None = None,
        is_shared: Callable[[], bool] = lambda: False,
        open_http: OpenHttp | None = None,
    ) -> None:
        self._admission = admission
        self._readiness = readiness
        self._entrance = entrance
        self._sessions = Sessions(entrance.basis)
        gate = Gate(entrance.identify)
        self._boundary = boundary = Boundary(
            admission,
            recorder,
            proxies=entrance.proxies,
            gate=gate,
            quota=quota,
            sessions=self._sessions,
            witness=witness,
            meter=meter,
            is_shared=is_shared,
        )
        inference, adapters, admin, info, open_inference = servicers
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, boundary)
        adapters_pb2_grpc.add_AdapterServiceServicer_to_server(adapters, boundary)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, boundary)
        server_pb2_grpc.add_ServerServiceServicer_to_server(info, boundary)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, boundary)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(readiness, _SERVICES), boundary)
        if with_reflection:
            names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            servicer = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined] # not in the stubs
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, boundary)
        # No limit of grpc's own on calls: it would be kept before anything of ours runs, and for health as well.
        self._server = grpc.aio.server(
            options=(
                *OPTIONS,
                ("grpc.so_reuseport", int(shares_port)),
                (
                    "grpc.max_allowed_incoming_connections",
                    room_for_connections(MAX_CONNECTIONS, ports=1 if open_http is None else 2),
                ),
            )
        )
        self._server.add_generic_rpc_handlers((boundary,))
        host, _ = split_address(listen)
        try:
            if entrance.credentials is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, entrance.credentials)
        except RuntimeError:
            raise cannot_listen(listen) from None
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._http = None if open_http is None else open_http(boundary.service)
        self.http_address = "" if self._http is None else self._http.address

    async def start(self) -> None:
        await self._server.start()
        if self._http is not None:
            await self._http.start()

    async def look_after_callers(self) -> None:
        """Where callers are asked who they are, for ever: end streams with their credentials, and read again what
        they are recognised by; and the certificate of HTTP.
        """
        work: list[Awaitable[None]] = [] if self._http is None else [self._http.keep_fresh()]
        if self._entrance.identify is not everyone:
            work += self._sessions.run(), self._entrance.keep_fresh()
        await asyncio.gather(*work)

    async def stop(self, grace_s: float, delay_s: float = 0.0) -> bool:
        """NOT_SERVING, refuse new calls after `delay_s`, let running ones end within `grace_s`, close the port.

        Calls that still run then are cancelled; returns whether there were none.
        """
        self._readiness.hold("DRAINING")
        await asyncio.sleep(delay_s)
        end = time.monotonic() + grace_s
        self._admission.close()
        # A call that reaches the transport while it closes is cancelled without a word. So stay a moment longer and
        # refuse with a reason: clients that follow the retry hint are elsewhere by then.
        await asyncio.sleep(min(REFUSE_S, grace_s))
        is_idle = await self._admission.wait_idle(max(0.0, end - time.monotonic()))
        flush_s = min(FLUSH_S, max(0.0, end - time.monotonic()))
        if self._http is None:
            await self._server.stop(flush_s)
        else:
            await asyncio.gather(self._server.stop(flush_s), self._http.stop(flush_s))
        self._boundary.close()
        return is_idle
