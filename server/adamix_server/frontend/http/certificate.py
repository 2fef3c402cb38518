"""The certificate of HTTP's port: the server's own, exchanged in the context that new connections are made with.

A pair that cannot be used changes nothing, as for gRPC (`frontend/certificate.py`). Where callers of gRPC must show a
certificate, callers of HTTP must as well; who they are, their credential says.
"""

import asyncio
import logging
import os
import ssl

from adamix.errors import InvalidConfig
from adamix_server.config import TlsSettings
from adamix_server.trust.tls import TlsPair, read_pair, watch_of

log = logging.getLogger(__name__)

# Between two looks at the files.
_LOOK_S = 1.0


class HttpCertificate:
    """The pair that is shown now. Raises InvalidConfig if there is none that can be.

    Attributes:
        context: for the port; it stays the same one, and each new connection takes from it what is newest.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._watch = watch_of(settings)
        pair = read_pair(settings)
        self.context = _context_of(pair)
        self._newest = self.context
        # Asked in each handshake, also of clients that name no server. A context cannot forget a CA.
        self.context.sni_callback = self._take_newest

    async def keep_fresh(self) -> None:
        """Show a pair that was exchanged, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Show the newest pair, if it is another one and can be used."""
        if not await asyncio.to_thread(self._watch.is_due):
            return
        try:
            self._newest = _context_of(await asyncio.to_thread(read_pair, self._settings))
        except InvalidConfig as error:
            if self._watch.failed(error.message):
                log.error("the certificate of HTTP stays as it was: %s", error.message)  # noqa: TRY400 - the trace says nothing
        else:
            log.info("the certificate of HTTP was read again")

    def _take_newest(self, connection: ssl.SSLObject, _server: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest


def _context_of(pair: TlsPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    # A context reads files alone. These bytes are those that were looked at, and stay in memory.
    with os.fdopen(os.memfd_create("adamix-tls"), "wb") as file:
        file.write(pair.certificate + b"\n" + pair.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    if pair.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=pair.client_ca.decode("ascii", "ignore"))
    return context
