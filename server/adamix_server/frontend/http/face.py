"""The port of HTTP in a front end's process and event loop: bound, started and stopped beside gRPC's.

uvicorn parses and writes; its `Server`, which takes over signals and a process, is not used. Knows sockets and TLS;
what is answered, the application does.
"""

import asyncio
import functools
import socket
from email.utils import formatdate

from uvicorn.config import Config
from uvicorn.server import ServerState

from adamix_client.addresses import split_address
from adamix_server.descriptors import room_for_connections
from adamix_server.frontend.http.app import App
from adamix_server.frontend.http.certificate import HttpCertificate
from adamix_server.frontend.http.connection import Connection
from adamix_server.limits.http import MAX_HTTP_CONNECTIONS
from adamix_server.port import cannot_listen

_BACKLOG = 1024
_HANDSHAKE_S = 5.0
_DATE_S = 1.0
# Of requests whose connections are gone.
_LAST_S = 5.0


class Face:
    """One bound, not yet started port.

    Args:
        listen: `host:port`; port 0 asks for a free one.
        app: answers requests.
        shares_port: with the other front ends of this server.
        certificate: that is shown; None answers unencrypted.
        max_connections: at once; further ones are refused.

    Attributes:
        address: with the real port.

    Raises:
        InvalidConfig: the address cannot be bound (`ADDRESS_IN_USE`).
    """

    def __init__(
        self,
        listen: str,
        app: App,
        *,
        shares_port: bool,
        certificate: HttpCertificate | None = None,
        max_connections: int = MAX_HTTP_CONNECTIONS,
    ) -> None:
        self._certificate = certificate
        host, port = split_address(listen)
        self._sockets, port = _bound(host, port, listen, shares_port=shares_port)
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # Whom a proxy speaks for, the boundary judges; and the log has its own lines.
        config = Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
        )
        config.load()
        self._state = ServerState()
        self._make = functools.partial(
            Connection,
            config=config,
            server_state=self._state,
            app_state={},
            max_connections=room_for_connections(max_connections, ports=2),
        )
        self._servers: list[asyncio.Server] = []
        self._dating: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._state.connections)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._dating = asyncio.create_task(self._keep_date())
        tls = None if self._certificate is None else self._certificate.context
        handshake_s = None if tls is None else _HANDSHAKE_S
        for bound in self._sockets:
            server = await loop.create_server(
                self._make, sock=bound, ssl=tls, backlog=_BACKLOG, ssl_handshake_timeout=handshake_s
            )
            self._servers.append(server)

    async def keep_fresh(self) -> None:
        """Show a certificate that was exchanged, for ever."""
        if self._certificate is not None:
            await self._certificate.keep_fresh()

    async def stop(self, flush_s: float) -> None:
        """Take no more connections, end those on which nothing is asked, and after `flush_s` all the others."""
        for server in self._servers:
            server.close()
        for bound in self._sockets:
            bound.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=flush_s)
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            # A request that does not end must not keep the process from it.
            await asyncio.wait(set(self._state.tasks), timeout=_LAST_S)
        if self._dating is not None:
            self._dating.cancel()

    async def _keep_date(self) -> None:
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode("ascii"))]
            await asyncio.sleep(_DATE_S)


def _bound(host: str, port: int, listen: str, *, shares_port: bool) -> tuple[list[socket.socket], int]:
    """Sockets for all addresses that a host's name stands for, with one port in common."""
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, str(to[0])) for family, _, _, _, to in found):
            try:
                # With the protocol said: only then are small answers sent at once (asyncio sets TCP_NODELAY).
                made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            except OSError:
                # A machine without IPv6 still has a `localhost`.
                continue
            bound.append(made)
            if family is socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shares_port:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.setblocking(False)
            made.bind((address, port))
            port = made.getsockname()[1]
    except OSError:
        for made in bound:
            made.close()
        raise cannot_listen(listen, "http") from None
    if not bound:
        raise cannot_listen(listen, "http")
    return bound, port
