"""Fixtures of the tests of a front end and of its client: its files, and a front end that serves.

The catalog, the blob store, the tokenizer and the validation child are the real ones; only the numbers are made up.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from adamix.files.manifest import BackboneSpec
from adamix_server.channel.supervisor_frames import StartFrontEnd
from adamix_server.config import FrontEndSettings
from adamix_testing import catalogs
from adamix_testing.adapters import MakeAdapter, adapter_bytes
from adamix_testing.catalogs import Seed
from adamix_testing.event_loop import clean_loop
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import Harness, StartServing, serving, start_front_end
from adamix_testing.identities import Callers
from adamix_testing.manifests import make_spec
from adamix_testing.word_tokenizers import BERT_SPECIAL, bert_words

VOCAB = 64


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
def make_adapter(spec: BackboneSpec) -> MakeAdapter:
    return partial(adapter_bytes, spec)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def settings(store: Path, tokenizer_file: Path) -> StartFrontEnd:
    """For front ends that a test starts itself, on a store that is there."""
    catalogs.make_store(store)
    return start_front_end(store, tokenizer_file)


@pytest.fixture
def seed(store: Path, spec: BackboneSpec) -> Seed:
    return partial(catalogs.register, store, here=spec.fingerprint)


@pytest.fixture(autouse=True)
async def each_test_leaves_a_clean_loop() -> AsyncIterator[None]:
    async with clean_loop():
        yield


@pytest.fixture
async def start_serving(
    store: Path, tokenizer_file: Path, spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StartServing]:
    """Starts a front end, once the catalog has what the test wants; it is drained after the test, and ends cleanly.

    What the test patches stays so until then.
    """
    async with AsyncExitStack() as stack:

        async def start(
            *,
            prepare: Callable[[FakeEngine], None] = lambda engine: None,
            adapter_root: Path | None = None,
            callers: Callers | None = None,
            settings: FrontEndSettings | None = None,
            http: str = "",
        ) -> Harness:
            front_end = serving(
                store,
                tokenizer_file,
                spec,
                prepare=prepare,
                adapter_root=adapter_root,
                callers=callers,
                settings=settings,
                http=http,
            )
            return await stack.enter_async_context(front_end)

        yield start


@pytest.fixture
async def harness(start_serving: StartServing) -> Harness:
    """A front end that serves an empty catalog."""
    return await start_serving()
