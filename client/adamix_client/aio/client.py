"""A small typed client: plain values in and out, errors of `adamix_client.errors`.

For tasks of one event loop. Imports no torch, so that a client process stays small. Knows the wire;
knows nothing of the server.

Made of `adamix_client.client`, by `adamix_client.aio.make`.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from adamix_client import connection
from adamix_client.aio.adapters import AsyncAdapters
from adamix_client.aio.administration import AsyncAdministration
from adamix_client.aio.calling import AsyncCalls
from adamix_client.aio.connection import AsyncConnection
from adamix_client.aio.inference import AsyncInference
from adamix_client.bounds import DEFAULT_TIMEOUT_S
from adamix_client.connection import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S
from adamix_client.destination import Credentials, Pem, from_environment
from adamix_client.retries import DEFAULT_RETRIES, NEVER_AGAIN, RetryPolicy
from adamix_client.values import Load, ServerInfo, to_json
from adamix_protos.v1 import server_pb2


class AsyncClient(AsyncInference, AsyncAdapters, AsyncAdministration):
    """A connection to one server.

    Args:
        address: `host:port`; `grpcs://host:port` for TLS with the system's roots. None takes it, and the credentials
            that are not given, from the environment: `ADAMIX_SERVER`, `ADAMIX_API_KEY`, and the files `ADAMIX_CA`,
            `ADAMIX_CERT`, `ADAMIX_KEY`.
        ca: file of certificates (or their PEM, as bytes) of which one has signed the server's; implies TLS.
        cert, key: files (or PEM) of the client's own certificate and its key, for a server that asks for one.
        api_key: or a token; it is not sent unencrypted to another machine.
        timeout_s: limit of each call but uploads and generated texts, in seconds.
        keepalive_s: of silence after which the server is pinged, `math.inf` for never; it takes one ping in 10 s.
        keepalive_timeout_s: without an answer to a ping, after which the connection counts as dead and calls on it end.
            After three deadlines and at least this time without a byte it is made anew whatever answers pings.
        channel_options: further options of grpc by name, or other values for those this client sets.
        retries: of calls that may be carried out twice, where there is no server or it says when to come back; None
            for never. A retry is within the time limit of its call.

    Every method raises the AdamixError the server answered with, Unavailable when there is no server, and
    FailedPrecondition after `close` (`CLIENT_CLOSED`) or in a process forked since (`CLIENT_FORKED`: make a client
    after the fork, in each process). Making one raises InvalidConfig for files that cannot be read, and for a key that
    would go unencrypted to another machine (`INSECURE_ADDRESS`).
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        keepalive_s: float = KEEPALIVE_S,
        keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
        channel_options: Mapping[str, str | int] | None = None,
        retries: RetryPolicy | None = DEFAULT_RETRIES,
    ) -> None:
        credentials = Credentials(ca=ca, cert=cert, key=key, api_key=api_key)
        if address is None:
            address, told = from_environment()
            credentials = credentials.over(told)
        self.address = address
        options = connection.channel_options(
            keepalive_s=keepalive_s, keepalive_timeout_s=keepalive_timeout_s, extra=channel_options
        )
        calls = AsyncCalls(
            AsyncConnection(address, options, keepalive_timeout_s, credentials), timeout_s, retries or NEVER_AGAIN
        )
        super().__init__(calls)

    async def info(self) -> ServerInfo:
        response = await self._calls.ask(lambda link: link.server.GetServerInfo, server_pb2.GetServerInfoRequest())
        return ServerInfo(**to_json(response))

    async def load_report(self) -> Load:
        """How busy the server's engine is. Raises Unavailable while there is none."""
        response = await self._calls.ask(lambda link: link.server.GetLoad, server_pb2.GetLoadRequest())
        return Load(**to_json(response))

    async def drain(self) -> None:
        """Ask the server to finish what runs and end, as SIGTERM does. Returns at once."""
        await self._calls.ask(lambda link: link.server.Drain, server_pb2.DrainRequest(), is_safe=False)

    async def health(self, service: str = "") -> str:
        """`SERVING` or another word of grpc.health.v1, for one service by its full name, or the whole server.

        Needs no key. Raises NotFound where there is no such service.
        """
        request = connection.health_request(service)
        return connection.health_status(await self._calls.ask(lambda link: link.health, request, is_safe=False))

    async def wait_until_serving(self, timeout_s: float) -> None:
        """Return when the server's health says SERVING. Raises Unavailable after `timeout_s` seconds."""
        await self._calls.wait_until_serving(timeout_s)

    async def close(self) -> None:
        """End everything that runs."""
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What this is also called.
    server_info = info
