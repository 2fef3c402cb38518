"""What the tests of the front end share: its files, and a front end that serves.

The catalog, the blob store, the tokenizer and the validation child are the real ones; only the numbers are made up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adamix.manifest import BackboneSpec
from adamix_server.supervisor_frames import StartFrontEnd
from adamix_testing import catalogs
from adamix_testing.adapters import adapter_bytes
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.fake_supervisor import FakeSupervisor
from adamix_testing.harness import Harness, serving, start_front_end
from adamix_testing.manifests import make_spec
from adamix_testing.word_tokenizers import BERT_SPECIAL, bert_words

VOCAB = 64

# Everything below must end long before this; a test that does not has found a hang.
TEST_TIMEOUT_S = 60.0


@pytest.fixture(scope="session")
def spec() -> BackboneSpec:
    return make_spec(vocab_size=VOCAB, max_tokens=32, type_vocab_size=2)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words `w0`…`w59`, and the special tokens of BERT."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bert_words([f"w{i}" for i in range(VOCAB - len(BERT_SPECIAL))]).save(str(path))
    return path


@pytest.fixture(scope="session")
def make_adapter(spec: BackboneSpec) -> Callable[..., bytes]:
    return partial(adapter_bytes, spec)


@pytest.fixture(scope="session")
def supervisor_type() -> type[FakeSupervisor]:
    return FakeSupervisor


@pytest.fixture(scope="session")
def engine_type() -> type[FakeEngine]:
    return FakeEngine


Scenario = Callable[[Harness], Awaitable[None]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def settings(store: Path, tokenizer_file: Path) -> StartFrontEnd:
    """For front ends that a test starts itself."""
    return start_front_end(store, tokenizer_file)


@pytest.fixture
def seed(store: Path, spec: BackboneSpec) -> Callable[..., str]:
    """(task, bytes) -> digest, put into the catalog before the front end starts."""
    return partial(catalogs.register, store, here=spec.fingerprint)


@pytest.fixture(scope="session")
def play() -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Run a coroutine to its end, within the time limit. One event loop for all: grpc.aio wants no second one."""

    async def limited(scene: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await scene

    with asyncio.Runner() as runner:
        yield lambda scene: runner.run(limited(scene))


@pytest.fixture
def serve(
    store: Path, tokenizer_file: Path, spec: BackboneSpec, play: Callable[[Coroutine[Any, Any, None]], None]
) -> Callable[..., None]:
    """Run a scenario against a front end that serves; by default it is drained afterwards and must end cleanly."""

    def run(
        scenario: Scenario,
        *,
        prepare: Callable[[FakeEngine], None] = lambda engine: None,
        adapter_root: Path | None = None,
    ) -> None:
        async def scene() -> None:
            async with serving(store, tokenizer_file, spec, prepare=prepare, adapter_root=adapter_root) as harness:
                await scenario(harness)

        play(scene())

    return run
