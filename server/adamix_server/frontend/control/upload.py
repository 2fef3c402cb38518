"""The bytes of one registration, from the stream to a temporary file.

Limits are kept while the bytes arrive, so that a refused upload costs no more than what came before the refusal. The
bytes are not looked at here, beyond the eight that announce the header: judging them is the validation child's work.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from adamix.errors import InvalidRequest
from adamix.files.tensors import MAX_HEADER_BYTES
from adamix_protos.v1 import adapters_pb2
from adamix_server.blobs.local import BlobStore, Temporary
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.control.adapter_root import too_large
from adamix_server.frontend.control.upload_places import Upload
from adamix_server.limits.adapters import MAX_ADAPTER_BYTES
from adamix_server.limits.control import MAX_CHUNK_BYTES, MAX_WAITING_UPLOAD_BYTES

_LENGTH_BYTES = 8

Requests = AsyncIterator[adapters_pb2.RegisterAdapterRequest]


async def read_header(requests: Requests, place: Upload) -> adapters_pb2.RegisterAdapterHeader:
    """The first message.

    Raises:
        InvalidRequest: it is not a header.
        DeadlineExceeded: none comes (`MESSAGE_LATE`, as for any call).
    """
    async with place.receiving():
        first = await _next(requests, place)
    if first is None or first.WhichOneof("payload") != "header":
        raise InvalidRequest("the first message must be the header", reason="HEADER_MISSING", field="header")
    return first.header


async def read_beginning(requests: Requests, place: Upload) -> bytes:
    """The first 64 KiB, or more by a part of a chunk, or all there is.

    Raises:
        InvalidRequest: a message that is no chunk, or one over 1 MiB.
        DeadlineExceeded: nothing came for 30 s (`UPLOAD_IDLE`).
    """
    beginning = bytearray()
    while len(beginning) < MAX_WAITING_UPLOAD_BYTES and (chunk := await _next_chunk(requests, place)) is not None:
        beginning += chunk
    return bytes(beginning)


@asynccontextmanager
async def temporary_file(view: CatalogView, blobs: BlobStore) -> AsyncIterator[Temporary]:
    """`BlobStore.temporary` without blocking the loop: gone at the end of the block, however it ends."""
    manager = blobs.temporary()
    temporary = await view.run(manager.__enter__)
    try:
        yield temporary
    finally:
        await asyncio.shield(view.run(partial(manager.__exit__, None, None, None)))


async def receive(beginning: bytes, requests: Requests, place: Upload, temporary: Temporary, view: CatalogView) -> None:
    """Write what `read_beginning` gave, and the chunks that follow it, to `temporary`.

    Stops early when the file announces a header over 1 MiB: such a file is refused whatever follows, and the
    validation child finds the better words (it may be a pickle or an archive).

    Raises:
        InvalidRequest: a message that is no chunk, or one over 1 MiB.
        InvalidAdapter: over 256 MiB in all (`TOO_LARGE`).
        StoreFull: no room on the disk.
        DeadlineExceeded: nothing came for 30 s (`UPLOAD_IDLE`).
    """
    announced = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    chunk: bytes | None = beginning
    while chunk is not None:
        if temporary.num_bytes + len(chunk) > MAX_ADAPTER_BYTES:
            raise too_large()
        await view.run(partial(temporary.write, chunk))
        if announced > MAX_HEADER_BYTES:
            return
        chunk = await _next_chunk(requests, place)


async def expect_end(requests: Requests, place: Upload) -> None:
    """Wait until the client has sent everything, of which nothing may follow a header that names a file.

    Raises:
        InvalidRequest: something follows (`CHUNK_UNEXPECTED`).
        DeadlineExceeded: neither anything nor the end came for 30 s (`UPLOAD_IDLE`).
    """
    if await _next(requests, place) is not None:
        raise InvalidRequest(
            "the header names a file of the server, so nothing may follow it", reason="CHUNK_UNEXPECTED", field="chunk"
        )


async def _next_chunk(requests: Requests, place: Upload) -> bytes | None:
    """The next chunk, or None at the end of the stream."""
    if (request := await _next(requests, place)) is None:
        return None
    if request.WhichOneof("payload") != "chunk":
        raise InvalidRequest("every message after the first must be a chunk", reason="CHUNK_EXPECTED", field="chunk")
    chunk = request.chunk
    if len(chunk) > MAX_CHUNK_BYTES:
        raise InvalidRequest(
            f"a chunk is over {MAX_CHUNK_BYTES >> 20} MiB; send smaller ones", reason="CHUNK_TOO_LARGE", field="chunk"
        )
    place.arrived(len(chunk))
    return chunk


async def _next(requests: Requests, place: Upload) -> adapters_pb2.RegisterAdapterRequest | None:
    """The next message, or None at the end of the stream."""
    return await place.wait_for(anext(requests, None))
