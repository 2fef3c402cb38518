"""Registering from the server's own disk: what a name can reach, and what it never can."""

import contextlib
import errno
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adamix.errors import (
    AdamixError,
    Cancelled,
    Code,
    FailedPrecondition,
    InvalidAdapter,
    InvalidConfig,
    InvalidInput,
    InvalidRequest,
)
from adamix_client import Client, ServerFile
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_server.blobs.local import BlobStore
from adamix_server.config import EngineSettings, FrontEndSettings, ServerConfig
from adamix_server.frontend.control.adapter_root import AdapterRoot
from adamix_testing.adapters import MakeAdapter
from adamix_testing.harness import Harness, StartServing

SECRET = b"outside"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with `team/good`, beside a directory that nobody may reach."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "good").write_bytes(SECRET)
    root = tmp_path / "root"
    (root / "team").mkdir(parents=True)
    (root / "team" / "good").write_bytes(b"inside")
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Callable[[str], bytes]:
    """name -> the bytes that arrive."""
    blobs = BlobStore(tmp_path / "blobs")

    def copy(name: str) -> bytes:
        with blobs.temporary() as temporary:
            AdapterRoot(root).copy(name, temporary)
            data = temporary.path.read_bytes()
            assert temporary.digest == hashlib.sha256(data).hexdigest()
            return data

    return copy


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open(tmp_path: Path, root: Path) -> Iterator[None]:
    yield
    left = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert [path for path in left if path.is_relative_to(root) or path.is_relative_to(tmp_path / "outside")] == []


def reason_of(copy: Callable[[str], bytes], name: str) -> tuple[type[AdamixError], str]:
    with pytest.raises(AdamixError) as caught:
        copy(name)
    assert "root/" not in caught.value.message, "never a path of the server"
    assert "outside" not in caught.value.message
    return type(caught.value), caught.value.reason


def test_a_file_below_the_root_is_copied(copy: Callable[[str], bytes], root: Path) -> None:
    assert copy("team/good") == b"inside"
    (root / "näme with blanks").write_bytes(b"x" * 3_000_000)
    assert len(copy("näme with blanks")) == 3_000_000
    # What lies in the root is the operator's choice, also by another name.
    os.link(root.parent / "outside" / "good", root / "linked")
    assert copy("linked") == SECRET


INVALID_NAMES = (
    *("", "/", "/etc/passwd", ".", "..", "../outside/good", "team/../team/good", "./team/good", "team//good", "team/"),
    *("team\\good", "team/good\0", "x" * 513, "é" * 257),
)


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_what_is_no_relative_path_is_refused(copy: Callable[[str], bytes], name: str) -> None:
    assert reason_of(copy, name) == (InvalidRequest, "FILE_INVALID")


@pytest.mark.parametrize("name", ["absent", "team/absent", "absent/good", "x" * 512])
def test_what_is_not_there_is_said(copy: Callable[[str], bytes], name: str) -> None:
    assert reason_of(copy, name) == (InvalidRequest, "FILE_NOT_FOUND")


def test_links_and_what_is_no_file_are_refused(copy: Callable[[str], bytes], root: Path) -> None:
    (root / "to_file").symlink_to(root.parent / "outside" / "good")
    (root / "to_directory").symlink_to(root.parent / "outside")
    (root / "to_inside").symlink_to("team/good")
    (root / "dangling").symlink_to("absent")
    (root / "directory").mkdir()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "socket"))
        for name in ("to_file", "to_directory", "to_directory/good", "to_inside", "dangling", "directory", "pipe"):
            assert reason_of(copy, name) == (FailedPrecondition, "FILE_NOT_REGULAR"), name
        assert reason_of(copy, "socket") == (FailedPrecondition, "FILE_NOT_REGULAR")
        assert reason_of(copy, "team/good/x") == (FailedPrecondition, "FILE_NOT_REGULAR")


def test_a_file_over_the_limit_is_refused(
    copy: Callable[[str], bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate((256 << 20) + 1)
    assert reason_of(copy, "sparse") == (InvalidAdapter, "TOO_LARGE")
    # One that grows while it is read is cut off there.
    monkeypatch.setattr("adamix_server.frontend.control.adapter_root.MAX_ADAPTER_BYTES", 2500)
    read = os.read

    def growing(descriptor: int, num_bytes: int) -> bytes:
        read(descriptor, num_bytes)
        return bytes(1000)

    monkeypatch.setattr("adamix_server.frontend.control.adapter_root.os.read", growing)
    assert reason_of(copy, "team/good") == (InvalidAdapter, "TOO_LARGE")


def test_a_root_that_went_away_is_said(copy: Callable[[str], bytes], root: Path) -> None:
    root.rename(root.parent / "elsewhere")
    assert reason_of(copy, "team/good") == (FailedPrecondition, "NO_ADAPTER_ROOT")


def test_a_copy_whose_caller_is_gone_ends(root: Path, tmp_path: Path) -> None:
    with BlobStore(tmp_path / "blobs").temporary() as temporary:
        temporary.close()
        with pytest.raises(Cancelled):
            AdapterRoot(root).copy("team/good", temporary)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(st.sampled_from(["team", "good", "..", ".", "", "outside", "link", "\0", "/", "é"]), max_size=8))
def test_no_name_leads_out(copy: Callable[[str], bytes], root: Path, parts: list[str]) -> None:
    link = root / "link"
    if not link.is_symlink():
        link.symlink_to(root.parent / "outside")
    with contextlib.suppress(AdamixError):
        assert copy("/".join(parts)) == b"inside"


def test_nobody_who_renames_things_meanwhile_leads_out(copy: Callable[[str], bytes], root: Path) -> None:
    """The directory on the way, and the file itself, turn into links and back while they are opened."""
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (root / "team").rename(root / "real")
            (root / "team").symlink_to(root.parent / "outside")
            (root / "team").unlink()
            (root / "real").rename(root / "team")

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = set()
    try:
        for _ in range(2000):
            try:
                outcomes.add(copy("team/good"))
            except AdamixError as error:
                outcomes.add(error.reason.encode())
    finally:
        stop.set()
        swapper.join()
    assert SECRET not in outcomes
    assert outcomes <= {b"inside", b"FILE_NOT_FOUND", b"FILE_NOT_REGULAR"}


def test_a_root_that_is_no_directory_is_refused_at_the_start(root: Path) -> None:
    engine = EngineSettings(backbone="minilm")
    ServerConfig(engine=engine, front_end=FrontEndSettings(adapter_root=root))
    for path in (root / "absent", root / "team" / "good"):
        with pytest.raises(InvalidConfig, match="is not a directory"):
            ServerConfig(engine=engine, front_end=FrontEndSettings(adapter_root=path))


async def test_a_file_of_the_server_is_registered_like_an_upload(
    start_serving: StartServing, make_adapter: MakeAdapter, root: Path
) -> None:
    data, other = make_adapter(seed=1), make_adapter(seed=2)
    (root / "team" / "adapter").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    file = ServerFile("team/adapter")
    harness = await start_serving(adapter_root=root)

    def work(client: Client) -> None:
        checked = client.register("sst2", file, validate_only=True)
        assert (checked.version.digest, checked.version.state) == (digest, "VALIDATING")
        assert client.tasks() == []
        assert harness.blobs() == harness.temporaries() == []
        with pytest.raises(InvalidInput) as caught:
            client.register("sst2", file, expected_digest="0" * 64)
        assert caught.value.reason == "DIGEST_MISMATCH"
        first = client.register("sst2", file, expected_digest=digest, request_id="once")
        assert (first.version.live, first.already_exists) == (True, False)
        assert client.predict(task="sst2", texts=["w1"]).predictions[0].version == digest
        assert client.register("sst2", file, request_id="once") == first
        assert client.register("sst2", data).already_exists
        # Another content under the name is another registration.
        (root / "team" / "adapter").write_bytes(other)
        with pytest.raises(InvalidRequest) as reused:
            client.register("sst2", file, request_id="once")
        assert reused.value.reason == "REQUEST_ID_REUSED"
        assert not client.register("sst2", file).already_exists
        # What was registered is a copy.
        (root / "team" / "adapter").unlink()
        assert client.rollback("sst2").traffic == ((digest, 1),)
        assert harness.temporaries() == []

    await harness.call(work)


async def test_what_is_wrong_with_a_name_is_said_on_the_wire(start_serving: StartServing, root: Path) -> None:
    harness = await start_serving(adapter_root=root)

    def work(client: Client) -> None:
        with pytest.raises(InvalidRequest) as absent:
            client.register("sst2", ServerFile("absent"))
        assert (absent.value.reason, absent.value.field) == ("FILE_NOT_FOUND", "header.file")
        with pytest.raises(FailedPrecondition) as directory:
            client.register("sst2", ServerFile("team"))
        assert directory.value.reason == "FILE_NOT_REGULAR"
        with pytest.raises(AdamixError) as invalid:
            client.register("sst2", ServerFile("team/good"))
        assert invalid.value.reason == "TRUNCATED"
        assert harness.temporaries() == []

    await harness.call(work)


@pytest.mark.parametrize("call", ["open", "read"])
def test_no_descriptor_left_is_not_said_of_the_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with BlobStore(tmp_path / "blobs").temporary() as temporary:
        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(AdamixError) as caught:
            AdapterRoot(root).copy("team/good", temporary)
        monkeypatch.undo()
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "OUT_OF_DESCRIPTORS")


async def test_without_a_root_no_name_means_anything(harness: Harness) -> None:
    def work(client: Client) -> None:
        with pytest.raises(FailedPrecondition) as caught:
            client.register("sst2", ServerFile("team/good"))
        assert caught.value.reason == "NO_ADAPTER_ROOT"

    await harness.call(work)


async def test_bytes_after_a_name_are_refused(start_serving: StartServing, root: Path) -> None:
    harness = await start_serving(adapter_root=root)
    header = pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="sst2", file="team/good"))
    call = harness.adapters.RegisterAdapter(iter([header, pb.RegisterAdapterRequest(chunk=b"x")]))
    with pytest.raises(grpc.aio.AioRpcError, match="nothing may follow") as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
