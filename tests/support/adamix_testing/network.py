"""A network between a client and a server that can forget its connections without a word, as routers do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Network:
    """A TCP relay.

    Attributes:
        address: for clients.
        connections: how many there have been.
    """

    def __init__(self, server_address: str) -> None:
        self.address = ""
        self.connections = 0
        self._server_address = server_address
        self._alive: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()

    def forget(self) -> None:
        """From now on nothing comes through on the connections there are, and nobody is told."""
        self._forgotten |= self._alive

    def cut(self) -> None:
        """End the connections there are."""
        for writer in self._alive:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, _, port = self._server_address.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pairs = ((reader, far_writer), (far_reader, writer))
        self._alive |= {writer, far_writer}
        for source, target in pairs:
            relay = asyncio.create_task(self._relay(source, target))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)

    async def _relay(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if target not in self._forgotten:
                    target.write(data)
                    await target.drain()
        if target not in self._forgotten:
            target.close()


@asynccontextmanager
async def network(server_address: str) -> AsyncIterator[Network]:
    """A network before a server, for the length of the block."""
    found = Network(server_address)
    server = await asyncio.start_server(found._accept, "127.0.0.1", 0)
    found.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        found.cut()
        await asyncio.gather(*found._relays, return_exceptions=True)
