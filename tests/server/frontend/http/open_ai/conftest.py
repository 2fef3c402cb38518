"""Models as they are found in a catalog, without one; and a front end of a decoder that answers over HTTP."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adamix.files.manifest import BackboneSpec, HeadSpec
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.rows import TaskRow, VersionRow
from adamix_server.frontend.http.open_ai.models import Model
from adamix_testing import catalogs
from adamix_testing.adapters import NO_MAYBE_YES, WRITER, MakeAdapter
from adamix_testing.byte_tokenizers import byte_level, write_files
from adamix_testing.event_loop import clean_loop
from adamix_testing.fake_engine import FakeEngine, echo
from adamix_testing.generating import WINDOW, decoder
from adamix_testing.harness import Harness, serving
from adamix_testing.manifests import make_spec

MakeRow = Callable[..., TaskRow]
HTTP = "127.0.0.1:0"
WIDTH = 8
VOCABULARY = byte_level().get_vocab_size()


@pytest.fixture(scope="module", autouse=True)
async def each_module_leaves_a_clean_loop() -> AsyncIterator[None]:
    """Of a module, because its servers outlive its tests."""
    async with clean_loop(timeout_s=120):
        yield


@pytest.fixture(autouse=True)
def each_test_leaves_a_clean_loop() -> None:
    """In place of the one for servers that end with a test."""


@pytest.fixture(scope="session")
def make_row() -> MakeRow:
    """A task `tenants/default/tasks/writer`, all versions of which are live."""

    def make(*digests: str, head: HeadSpec = WRITER, task: str = "writer", tenant: str = "default") -> TaskRow:
        versions = tuple(
            VersionRow(
                tenant=tenant,
                task=task,
                digest=digest,
                state=State.READY,
                create_time_us=0,
                num_bytes=1,
                backbone_fingerprint="",
                head=head,
                max_length=16,
                live=True,
            )
            for digest in sorted(digests)
        )
        return TaskRow(
            tenant=tenant,
            task=task,
            etag="",
            create_time_us=0,
            update_time_us=0,
            unavailable_reason="",
            ready=versions,
            live=versions,
            weights=(1,) * len(versions),
        )

    return make


@pytest.fixture
def model(make_row: MakeRow) -> Model:
    return Model("writer", make_row("a" * 64), None)


@pytest.fixture(scope="session")
def decoder_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a decoder whose tokens are bytes, with a chat template."""
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}assistant:"
    return write_files(tmp_path_factory.mktemp("decoder"), byte_level(), template)


@pytest.fixture(scope="module")
async def decoder_server(
    tmp_path_factory: pytest.TempPathFactory, decoder_files: Path, spec: BackboneSpec, make_adapter: MakeAdapter
) -> AsyncIterator[Harness]:
    store = tmp_path_factory.mktemp("texts") / "store"
    catalogs.register(store, "writer", make_adapter(WRITER, prompt="text"), here=spec.fingerprint)
    # Adapters for the encoder of the other tests fit it.
    decoder_spec = make_spec(model_type="gpt2", vocab_size=VOCABULARY, max_tokens=WINDOW)
    async with serving(store, decoder_files, decoder_spec, prepare=decoder, http=HTTP) as harness:
        yield harness


@pytest.fixture
def writing(decoder_server: Harness) -> Iterator[Harness]:
    """A front end of a decoder with the task `writer`, whose engine says what it is asked with."""
    with _fresh(decoder_server):
        yield decoder_server


@pytest.fixture(scope="module")
async def encoder_server(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, spec: BackboneSpec, make_adapter: MakeAdapter
) -> AsyncIterator[Harness]:
    store = tmp_path_factory.mktemp("predictions") / "store"
    heads = {
        "vector": HeadSpec(type="embedding", pooling="mean"),
        "intent": NO_MAYBE_YES,
        "tags": HeadSpec(type="multilabel", pooling="cls", num_labels=4),
        "stars": HeadSpec(type="regression", pooling="mean"),
    }
    widths = dict.fromkeys(heads, 1) | {"vector": WIDTH, "intent": 3, "tags": 4}
    digests = {
        task: catalogs.register(store, task, make_adapter(head), here=spec.fingerprint) for task, head in heads.items()
    }

    def prepare(engine: FakeEngine) -> None:
        engine.widths = {digest: widths[task] for task, digest in digests.items()}

    async with serving(store, tokenizer_file, spec, prepare=prepare, http=HTTP) as harness:
        yield harness


@pytest.fixture
def predicting(encoder_server: Harness) -> Iterator[Harness]:
    """A front end of an encoder with the tasks `vector`, `intent`, `tags` and `stars`."""
    with _fresh(encoder_server):
        yield encoder_server


@contextmanager
def _fresh(harness: Harness) -> Iterator[None]:
    """An engine that knows of no earlier test."""
    engine = harness.engine
    engine.submits.clear()
    engine.cancelled.clear()
    yield
    assert not engine.held
    engine.hold, engine.script, engine.cached_tokens = False, echo, 0
    engine.fail = lambda _: None
