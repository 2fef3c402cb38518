"""Adapters on their way: from a path, from bytes, from an open file; with progress, and once however often sent."""

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix_client import AsyncClient, Client, ServerFile
from adamix_client.errors import InvalidData, Overloaded, Unavailable
from adamix_client.uploads import Upload
from adamix_protos.v1 import adapters_pb2
from adamix_testing.played_server import PlayedServer

DATA = bytes(range(256)) * 5000
RESPONSE = adapters_pb2.RegisterAdapterResponse(version=adapters_pb2.Version(digest="ab"))


class Registry:
    """Takes uploads; the first ones of them break off when they are through."""

    def __init__(self) -> None:
        self.failures = 0
        self.uploads: list[tuple[Any, bytes]] = []

    def __call__(self, requests: Iterator[adapters_pb2.RegisterAdapterRequest]) -> Any:
        header = next(requests).header
        self.uploads.append((header, b"".join(request.chunk for request in requests)))
        if self.failures > 0:
            self.failures -= 1
            raise Unavailable("restarting", reason="ENGINE_RESTARTING", retry_after_s=0.01)
        return RESPONSE


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def client(registry: Registry) -> Iterator[Client]:
    with PlayedServer(RegisterAdapter=registry) as server, Client(server.address) as client:
        yield client


class Pipe(io.RawIOBase):
    """What cannot be sought in."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(buffer)


def test_every_kind_of_source_arrives_whole(client: Client, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.write_bytes(DATA)
    opened = io.BytesIO(b"before" + DATA)
    opened.seek(6)
    for adapter in (path, str(path), DATA, opened, io.BufferedReader(Pipe(DATA))):
        client.register("t", adapter)
        header, data = registry.uploads.pop()
        assert (header.task, header.make_live, data == DATA) == ("t", True, True)
    assert not opened.closed, "it is the caller's"
    client.register("t", ServerFile("a/b"))
    header, data = registry.uploads.pop()
    assert (header.file, data) == ("a/b", b"")
    with pytest.raises(InvalidData, match="No such file"):
        client.register("t", tmp_path / "missing")
    with pytest.raises(InvalidData, match="not open for bytes"):
        client.register("t", io.StringIO("text"))  # type: ignore[arg-type]


def test_a_retry_is_the_same_registration_whole_again(client: Client, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.write_bytes(DATA)
    for adapter in (path, DATA, io.BytesIO(DATA)):
        registry.failures, registry.uploads = 2, []
        client.register("t", adapter)
        assert [data == DATA for _, data in registry.uploads] == [True] * 3
        ids = {header.request_id for header, _ in registry.uploads}
        assert len(ids) == 1
        assert len(ids.pop()) == 32
    client.register("t", DATA, request_id="mine")
    assert registry.uploads[-1][0].request_id == "mine"
    client.register("t", DATA, validate_only=True)
    assert registry.uploads[-1][0].request_id == "", "nothing is stored, nothing to remember"


def test_what_cannot_be_read_again_is_not_sent_again(client: Client, registry: Registry) -> None:
    registry.failures = 1
    with pytest.raises(Unavailable):
        client.register("t", io.BufferedReader(Pipe(DATA)))
    assert len(registry.uploads) == 1


def test_progress_tells_what_was_handed_on(client: Client) -> None:
    told: list[tuple[int, int | None]] = []
    client.register("t", DATA, progress=lambda sent, total: told.append((sent, total)))
    assert [sent for sent, _ in told] == [512 << 10, 1 << 20, len(DATA)]
    assert {total for _, total in told} == {len(DATA)}
    told.clear()
    client.register("t", io.BufferedReader(Pipe(DATA)), progress=lambda sent, total: told.append((sent, total)))
    assert told[-1] == (len(DATA), None)


def test_what_progress_raises_ends_the_upload(client: Client, registry: Registry) -> None:
    class Enough(Exception):
        pass

    def stop(sent: int, _total: int | None) -> None:
        raise Enough

    with pytest.raises(Enough):
        client.register("t", DATA, progress=stop)
    assert all(data != DATA for _, data in registry.uploads), "a part is never taken for the whole"


async def test_so_does_it_on_an_event_loop_whose_task_nobody_cancelled(registry: Registry) -> None:
    class Enough(Exception):
        pass

    def stop(sent: int, _total: int | None) -> None:
        raise Enough

    with PlayedServer(RegisterAdapter=registry) as server:
        async with AsyncClient(server.address) as client:
            with pytest.raises(Enough):
                await client.register("t", DATA, progress=stop)
            with pytest.raises(InvalidData, match="not open for bytes"):
                await client.register("t", io.StringIO("text"))  # type: ignore[arg-type]
    assert all(data != DATA for _, data in registry.uploads), "a part is never taken for the whole"


async def test_an_upload_whose_task_is_cancelled_is_cancelled() -> None:
    def never_ends(requests: Iterator[Any]) -> Any:
        begun.set()
        hold.wait(10)
        return RESPONSE

    begun, hold = threading.Event(), threading.Event()
    with PlayedServer(RegisterAdapter=never_ends) as server:
        async with AsyncClient(server.address) as client:
            upload = asyncio.create_task(client.register("t", DATA))
            await asyncio.to_thread(begun.wait, 10)
            upload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upload
        hold.set()


def test_an_upload_that_is_over_reads_no_more(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.write_bytes(DATA)
    for adapter in (path, io.BytesIO(DATA), io.BufferedReader(Pipe(DATA))):
        upload = Upload(adapters_pb2.RegisterAdapterHeader(task="t"), adapter)
        requests = upload.requests()
        assert next(requests).header.task == "t"
        assert len(next(requests).chunk) == 512 << 10
        upload.close()
        assert list(requests) == []


def test_a_server_that_refuses_at_once_is_heard() -> None:
    def full(_: Any) -> Any:
        raise Overloaded("too many uploads", reason="OVERLOADED")

    with (
        PlayedServer(RegisterAdapter=full) as server,
        Client(server.address) as client,
        pytest.raises(Overloaded, match="too many uploads"),
    ):
        client.register("t", DATA)
