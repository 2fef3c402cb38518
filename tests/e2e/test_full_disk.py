"""A disk that really is full: a server whose store is a small file system of its own, in its own mount namespace."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from adamix.errors import AdamixError, Code
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Client
from adamix_testing.servers import Eventually, Server, StartServer

MakeAdapter = Callable[..., AdapterFile]

TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird"]
# With room at first for what the server keeps in its store while it runs.
STORE_BYTES = 96 << 20
PAGE_BYTES = 4096
# Mounts a small file system over its first argument and becomes the rest of them; gone with the process.
MOUNT = f'mount -t tmpfs -o size={STORE_BYTES},mode=700 adamix "$0" && exec "$@"'
# The same with the files of its second argument in it and then no room at all.
MOUNT_FULL = (
    f'mount -t tmpfs -o size={STORE_BYTES},mode=700 adamix "$0" && cp -a "$1"/. "$0" && '
    '{ head -c 1G /dev/zero > "$0"/filler 2> /dev/null; shift; exec "$@"; }'
)


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


@pytest.fixture(scope="session")
def own_mounts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that starts another one where it may mount; skips where there is no such right."""
    place = str(tmp_path_factory.mktemp("place"))
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        if (
            shutil.which(command[0])
            and subprocess.run(
                [*command, "sh", "-c", MOUNT, place, "true"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return [*command, "sh", "-c"]
    pytest.skip("a small file system needs the right to mount, which this user does not have")


class SmallDisk:
    """The store as the server sees it, and a file that takes all room but what is left on purpose."""

    def __init__(self, server: Server, store: Path) -> None:
        self.root = Path(f"/proc/{server.process.pid}/root{store}")
        self._filler = self.root / "filler"

    def leave(self, free_bytes: int) -> None:
        self.make_room()
        with self._filler.open("wb") as file:
            # Processes of the server take room at any moment: what is left is looked at again.
            while (taken := self.free_bytes() - free_bytes) > 0:
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + taken)
        assert self.free_bytes() <= free_bytes

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        info = os.statvfs(self.root)
        return info.f_bavail * info.f_frsize

    def temporaries(self) -> list[str]:
        return [path.name for path in (self.root / "blobs" / "tmp").iterdir()]

    def blobs(self) -> set[str]:
        return {path.name for path in (self.root / "blobs" / "sha256").glob("??/*")}


@pytest.fixture(scope="module")
def small(
    server_type: type[Server], backbone_directory: Path, own_mounts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, SmallDisk]]:
    store = tmp_path_factory.mktemp("store")
    server = server_type(backbone_directory, store, before=[*own_mounts, MOUNT, str(store)])
    try:
        yield server.wait(), SmallDisk(server, store)
        assert server.terminate() == 0, "whatever it met, it ends in order"
    finally:
        server.kill()


def register(client: Client, task: str, data: bytes) -> AdamixError | None:
    try:
        client.register(task, data)
    except AdamixError as error:
        return error
    return None


@pytest.mark.slow
def test_a_registration_that_meets_the_end_of_the_disk_anywhere(
    small: tuple[Server, SmallDisk], make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    """With one page more of room each time, the room ends in the upload, in the catalog's log, or nowhere."""
    server, disk = small
    others = disk.blobs()
    with server.client() as client:
        client.register("t", data_of(make_adapter(0, spec=spec)))
        before = client.predict(task="t", texts=TEXTS, return_logits=True).predictions
        live = before[0].version
        outcomes: list[str] = []
        for pages in range(20):
            data = data_of(make_adapter(100 + pages, spec=spec))
            disk.leave(pages * PAGE_BYTES)
            error = register(client, "t", data)
            outcomes.append("ok" if error is None else f"{error.code.name} {error.reason}")
            if error is None:
                live = adapter_file.decode(data).digest
            answers = client.predict(task="t", texts=TEXTS, return_logits=True).predictions
            assert {answer.version for answer in answers} == {live}
            if live == before[0].version:
                assert [answer.logits for answer in answers] == [answer.logits for answer in before]
            assert disk.temporaries() == []
            # What was refused takes nothing of the room that there is.
            assert disk.blobs() - others == {version.digest for version in client.versions("t")} - others
        print(outcomes)
        assert set(outcomes) == {"ok", "RESOURCE_EXHAUSTED STORE_FULL"}
        disk.make_room()
        last = client.register("t", data_of(make_adapter(999, spec=spec))).version.digest
        assert client.predict(task="t", texts=TEXTS).predictions[0].version == last


@pytest.mark.slow
def test_every_process_comes_back_while_the_disk_is_full(
    small: tuple[Server, SmallDisk], make_adapter: MakeAdapter, spec: BackboneSpec, eventually: Eventually
) -> None:
    server, disk = small
    with server.client() as client:
        client.register("t", data_of(make_adapter(0, spec=spec)))
        before = client.predict(task="t", texts=TEXTS, return_logits=True).predictions
        disk.leave(0)
        for module in ("adamix_server.engine", "adamix_server.frontend"):
            os.kill(server.child(module), signal.SIGKILL)
            eventually(lambda: answers(client), f"the server answers after the death of {module}")
            after = client.predict(task="t", texts=TEXTS, return_logits=True).predictions
            assert [answer.logits for answer in after] == [answer.logits for answer in before]
            refusal = register(client, "t", data_of(make_adapter(1, spec=spec)))
            assert refusal is not None
            assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "STORE_FULL")
            disk.leave(0)
        disk.make_room()
        client.register("t", data_of(make_adapter(2, spec=spec)))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", pytest.param("in order", marks=pytest.mark.long)])
def test_a_restart_on_a_full_disk_serves_what_was_live(
    end: str,
    start_server: StartServer,
    make_adapter: MakeAdapter,
    spec: BackboneSpec,
    own_mounts: list[str],
    tmp_path: Path,
) -> None:
    before = start_server(store=tmp_path / "before").wait()
    with before.client() as client:
        client.register("t", data_of(make_adapter(0, spec=spec)))
        expected = client.predict(task="t", texts=TEXTS, return_logits=True).predictions
    if end == "killed":
        before.kill()
    else:
        assert before.terminate() == 0
    store = tmp_path / "store"
    store.mkdir()
    full = start_server(store=store, before=[*own_mounts, MOUNT_FULL, str(store), str(tmp_path / "before")]).wait()
    # All the room there is, is what the server before had for its runtime files, or kept for the next start.
    disk = SmallDisk(full, store)
    assert disk.free_bytes() < 1 << 20
    disk.leave(0)
    with full.client() as client:
        found = client.predict(task="t", texts=TEXTS, return_logits=True).predictions
        assert [(p.version, p.logits) for p in found] == [(p.version, p.logits) for p in expected]
        refusal = register(client, "t", data_of(make_adapter(1, spec=spec)))
        assert refusal is not None
        assert refusal.reason == "STORE_FULL"
    assert full.terminate() == 0


def test_a_new_store_on_a_full_disk_is_refused_in_words(
    start_server: StartServer, own_mounts: list[str], tmp_path: Path
) -> None:
    store, nothing = tmp_path / "store", tmp_path / "nothing"
    store.mkdir()
    nothing.mkdir()
    server = start_server(store=store, before=[*own_mounts, MOUNT_FULL, str(store), str(nothing)])
    assert server.process.wait(60) == 1
    assert server.find(message="error: the server's disk is full; free space or delete versions, then try again")


def answers(client: Client) -> bool:
    try:
        client.predict(task="t", texts=TEXTS)
    except AdamixError:
        return False
    return True
