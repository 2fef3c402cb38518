"""HTTP over the boundary alone, around played servicers, on a real port; and raw bytes to talk to it with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message

from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.frontend.http.app import App
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.face import Face
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.route import Route
from adamix_testing.bare_boundary import BareBoundary

GENERATE = "/adamix.v1.InferenceService/Generate"
PREDICT = "/adamix.v1.InferenceService/Predict"
REGISTER = "/adamix.v1.AdapterService/RegisterAdapter"


class BareHttp(BareBoundary):
    """As its parent, and `/one`, `/many`, `/upload` and `/named/{name}` over HTTP.

    Attributes:
        http: `host:port`.
        max_connections: over HTTP; to be set before it starts.
    """

    max_connections = 64

    async def __aenter__(self) -> "BareHttp":
        await super().__aenter__()
        app = App(self._routes(), self.recorder)
        self.face = Face("127.0.0.1:0", app, shares_port=False, max_connections=self.max_connections)
        await self.face.start()
        self.http = self.face.address
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.face.stop(0.0)
        await super().__aexit__(*error)

    async def open(self) -> "Wire":
        """A connection of its own."""
        host, _, port = self.http.rpartition(":")
        return Wire(*await asyncio.open_connection(host, int(port), limit=1 << 24))

    def _routes(self) -> list[Route]:
        calls = Calls(self.boundary.service)

        async def body(request: Request) -> Message:
            await request.body()
            return inference_pb2.PredictRequest()

        async def one(request: Request) -> Reply:
            answer = await calls.one(request, PREDICT, body, inference_pb2.PredictResponse)
            return Reply(answer.SerializeToString(), content_type="application/octet-stream")

        async def many(request: Request) -> None:
            async def read(_: Request) -> Message:
                return inference_pb2.GenerateRequest()

            async with aclosing(calls.many(request, GENERATE, read, inference_pb2.GenerateResponse)) as answers:
                async for answer in answers:
                    if not request.has_begun:
                        await request.begin("text/plain")
                    await request.write(answer.text_delta.encode())

        async def upload(request: Request) -> Reply:
            async def messages() -> AsyncIterator[Message]:
                async for chunk in request.chunks():
                    yield adapters_pb2.RegisterAdapterRequest(chunk=chunk)

            answer = await calls.one(request, REGISTER, lambda _: messages(), adapters_pb2.RegisterAdapterResponse)
            return Reply(str(answer.version.num_bytes).encode())

        async def named(request: Request) -> Reply:
            return Reply(repr(request.params["name"]).encode(), content_type="text/plain")

        return [
            Route("POST", "/one", one),
            Route("GET", "/many", many),
            Route("PUT", "/upload", upload),
            Route("GET", "/named/{name}", named),
            Route("POST", "/named/{name}:close", named),
        ]


class Wire:
    """One connection, of which a test says every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, line: str, *headers: str, body: bytes = b"") -> None:
        """Send a request; `content-length` is that of its body, unless it is a header."""
        lines = [f"{line} HTTP/1.1", "host: x", *headers]
        if body and not any(name.lower().startswith(("content-length", "transfer-encoding")) for name in headers):
            lines.append(f"content-length: {len(body)}")
        self.say("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        return int(lines[0].split()[1]), headers

    async def answer(self) -> tuple[int, Any]:
        """The next whole answer: its status, and its body."""
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; True if nothing came before it."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()
