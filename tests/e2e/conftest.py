"""A tiny BERT with a tokenizer on disk, and real servers over it: supervisor, engine and front end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from adamix.files.manifest import BackboneSpec
from adamix_testing.servers import Callers, Eventually, Server, StartServer, eventually

WORDS: tuple[str, ...] = (
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "runs",
    "sleeps",
    "eats",
    "big",
    "small",
    "red",
    "blue",
    "quick",
    "lazy",
)
WORDS += ("over", "under", "and", "not")


@pytest.fixture(scope="session")
def backbone_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two small layers that knows twenty words."""
    from tokenizers import normalizers

    from adamix_testing.bodies import tiny_bert
    from adamix_testing.word_tokenizers import bert_words, pretrained_bert

    directory = tmp_path_factory.mktemp("backbone")
    tokenizer = bert_words(WORDS)
    tokenizer.normalizer = normalizers.Lowercase()
    pretrained_bert(tokenizer).save_pretrained(directory)
    tiny_bert().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def spec(backbone_directory: Path) -> BackboneSpec:
    from adamix.backbones import backbone

    return backbone.load(str(backbone_directory)).spec


@pytest.fixture(scope="session")
def callers() -> type[Callers]:
    return Callers


@pytest.fixture(scope="session", name="eventually")
def wait_until_it_holds() -> Eventually:
    return eventually


@pytest.fixture(scope="session")
def server_type() -> type[Server]:
    return Server


@pytest.fixture
def start_server(backbone_directory: Path, tmp_path: Path) -> Iterator[StartServer]:
    with ExitStack() as stack:

        def start(*flags: str, store: Path = tmp_path / "store", before: Sequence[str] = ()) -> Server:
            server = Server(backbone_directory, store, *flags, before=before)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="module")
def start_module_server(
    backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Servers that several tests of a module use, each on a store of its own."""
    with ExitStack() as stack:

        def start(*flags: str) -> Server:
            server = Server(backbone_directory, tmp_path_factory.mktemp("store"), *flags)
            stack.callback(server.kill)
            return server.wait()

        yield start


@pytest.fixture(scope="session")
def server(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was, but for tasks of their own."""
    running = Server(backbone_directory, tmp_path_factory.mktemp("store"), "--metrics-port", "0")
    try:
        yield running.wait()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path | str], Server]]:
    """Servers over other backbones: one each for the tests of a module that leave it as it was."""
    with ExitStack() as stack:
        servers: dict[str, Server] = {}

        def running(backbone: Path | str) -> Server:
            if str(backbone) not in servers:
                servers[str(backbone)] = Server(Path(backbone), tmp_path_factory.mktemp("store"))
                stack.callback(servers[str(backbone)].kill)
            return servers[str(backbone)].wait()

        yield running
