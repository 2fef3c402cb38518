"""A front end of a decoder whose tokens are bytes, for the tests of generation."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from adamix.files.manifest import BackboneSpec
from adamix_server.config import FrontEndSettings
from adamix_testing.adapters import WRITER, MakeAdapter
from adamix_testing.byte_tokenizers import byte_level, write_files
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.generating import WINDOW, decoder
from adamix_testing.harness import Harness, StartServing, serving
from adamix_testing.identities import Callers
from adamix_testing.manifests import make_spec

DECODER_VOCAB = 300


@pytest.fixture(scope="session")
def decoder_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a decoder, with the other file beside it."""
    tokenizer = byte_level(["the", " cat", "日本"])
    # As many as the backbone of these tests has rows for, and one more.
    tokenizer.add_tokens([f"<more{number}>" for number in range(DECODER_VOCAB - tokenizer.get_vocab_size())])
    tokenizer.add_tokens(["<far>"])
    return write_files(tmp_path_factory.mktemp("decoder"), tokenizer)


@pytest.fixture(scope="session")
def decoder_spec(spec: BackboneSpec) -> BackboneSpec:
    """Adapters for the encoder of the other tests fit it."""
    return make_spec(model_type="gpt2", vocab_size=DECODER_VOCAB, max_tokens=WINDOW)


@pytest.fixture
async def start_generating(store: Path, decoder_files: Path, decoder_spec: BackboneSpec) -> AsyncIterator[StartServing]:
    """As `start_serving`, of a decoder."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            prepare: Callable[[FakeEngine], None] = decoder,
            adapter_root: Path | None = None,
            callers: Callers | None = None,
            settings: FrontEndSettings | None = None,
        ) -> Harness:
            front_end = serving(
                store,
                decoder_files,
                decoder_spec,
                prepare=prepare,
                adapter_root=adapter_root,
                callers=callers,
                settings=settings,
            )
            return await stack.enter_async_context(front_end)

        yield start


@pytest.fixture
def writer(seed: Seed, make_adapter: MakeAdapter) -> str:
    """The task `writer`, which goes on after any text; the digest of its version."""
    return seed("writer", make_adapter(WRITER, prompt="text"))
