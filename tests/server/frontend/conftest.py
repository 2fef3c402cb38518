"""A whole front end on a real port, with the engine and the supervisor played by the test.

The catalog, the blob store, the tokenizer and the validation child are the real ones; only the numbers are made up.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from adamix.adapter_file import TensorData, encode
from adamix.errors import AdamixError, Overloaded
from adamix.manifest import BackboneRef, BackboneSpec, HeadSpec, Manifest, TrainingRecord
from adamix_protos.v1 import adapters_pb2_grpc, inference_pb2_grpc, server_pb2_grpc
from adamix_server.catalog.store import Catalog
from adamix_server.config import FrontEndConfig
from adamix_server.frames import (
    Agreed,
    AnyFrame,
    Cancel,
    Control,
    Credit,
    Drain,
    Emit,
    EngineDown,
    EngineLoad,
    EngineUp,
    Event,
    Hello,
    Limits,
    Ready,
    Reply,
    Row,
    Seen,
    Submit,
    Timing,
    WireError,
)
from adamix_server.frontend.server import FrontEnd

ENGINE_ID = "engine-0"
HIDDEN, LAYERS, VOCAB, MAX_TOKENS = 8, 2, 64, 32

# Everything below must end long before this; a test that does not has found a hang.
TEST_TIMEOUT_S = 60.0


@pytest.fixture(scope="session")
def spec() -> BackboneSpec:
    return BackboneSpec(
        model_type="bert",
        fingerprint="a" * 64,
        tokenizer_fingerprint="b" * 64,
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        name="tiny",
        sites={"mlp_out": (16, HIDDEN)},
        vocab_size=VOCAB,
        max_tokens=MAX_TOKENS,
        type_vocab_size=2,
    )


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words `w0`…`w59`, and the special tokens of BERT."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(VOCAB - 4))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def make_adapter(spec: BackboneSpec) -> Callable[..., bytes]:
    """(head, seed) -> the bytes of a valid adapter; `bad` changes the first weight."""

    def make(
        head: HeadSpec | None = None, *, seed: int = 0, max_length: int = 16, bad: float | None = None, **backbone: Any
    ) -> bytes:
        head = head or HeadSpec(
            type="classification", pooling="mean", num_labels=3, id2label={"0": "no", "1": "maybe", "2": "yes"}
        )
        fields = {
            "model_type": spec.model_type,
            "fingerprint": spec.fingerprint,
            "tokenizer_fingerprint": spec.tokenizer_fingerprint,
            "hidden_size": spec.hidden_size,
            "num_layers": spec.num_layers,
            "name": spec.name,
        }
        manifest = Manifest(
            kind="bottleneck",
            activation="gelu",
            scaling=1.0,
            backbone=BackboneRef(**{**fields, **backbone}),
            head=head,
            max_length=max_length,
            training=TrainingRecord(method="adamix", seed=seed),
        )
        generator = np.random.default_rng(seed)
        shapes = {
            "layers.0.mlp_out.down_proj.weight": (2, HIDDEN),
            "layers.0.mlp_out.down_proj.bias": (2,),
            "layers.0.mlp_out.up_proj.weight": (HIDDEN, 2),
            "layers.0.mlp_out.up_proj.bias": (HIDDEN,),
        }
        if head.type in ("classification", "multilabel", "regression"):
            shapes["head.out_proj.weight"] = (head.num_labels, HIDDEN)
            shapes["head.out_proj.bias"] = (head.num_labels,)
        arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        if bad is not None:
            arrays["layers.0.mlp_out.down_proj.weight"][0, 0] = bad
        return encode(manifest, {name: TensorData("F32", array) for name, array in arrays.items()})

    return make


class FakeEngine:
    """The engine's part of the conversation, on a channel of its own.

    Answers every row with `width` logits `0, 1, 2, …` times the number of tokens, unless `hold` is set; then rows wait
    in `held`. A front end gets `credit` once, and back what each event used.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        self.generation = 0
        self.load = EngineLoad(queued_inputs=0, queued_tokens=0, running_inputs=0, resident_adapters=0, slots=4)
        self.credit = (1000, 100_000)
        self.widths: dict[str, int] = {}
        self.fail: Callable[[Row], AdamixError | None] = lambda row: None
        self.hold = False
        self.held: list[Row] = []
        self.submits: list[Submit] = []
        self.cancelled: list[int] = []
        self.controls: list[Control] = []
        self.control_error: AdamixError | None = None
        self.in_use: set[str] = set()
        self.on_device: set[str] = set()
        self.kept: set[str] = set()
        self.most_kept = 2
        # What is not answered until the test calls `reply`.
        self.silent_on: set[str] = set()
        self.channel: FakeChannel | None = None

    def up(self) -> EngineUp:
        """A new generation of this engine."""
        self.generation += 1
        self.held.clear()
        self.on_device.clear()
        self.kept.clear()
        hello = Hello(
            engine_id=ENGINE_ID,
            generation=self.generation,
            spec=self.spec,
            limits=Limits(max_batch_tokens=64, max_queue_inputs=1000, max_queue_tokens=100_000, slots=4),
            dtype="float32",
            device="cpu",
        )
        return EngineUp(address="ipc:///nowhere", hello=hello)

    async def connect(self, address: str, generation: int, engine_id: str) -> "FakeChannel":
        self.channel = FakeChannel(self)
        await self.channel.frames.put(
            Credit(engine_id=ENGINE_ID, generation=generation, inputs=self.credit[0], tokens=self.credit[1])
        )
        return self.channel

    def take(self, frame: AnyFrame) -> None:
        match frame:
            case Submit():
                self.submits.append(frame)
                self.held.extend(frame.rows)
                if not self.hold:
                    self.answer_all()
            case Cancel():
                self.cancelled.extend(frame.ids)
                self.answer([row for row in self.held if row.id in frame.ids])
            case Control():
                # Asked every second, whatever else happens.
                if frame.op != "pins":
                    self.controls.append(frame)
                if frame.op not in self.silent_on:
                    self.reply(frame)

    def reply(self, control: Control) -> None:
        """Do what a control call asks, and answer it."""
        if control.op == "pins":
            error, value = None, sorted(self.kept)
        elif control.op == "pin" and control.digest not in self.kept and len(self.kept) >= self.most_kept:
            error, value = Overloaded("too many are pinned", reason="TOO_MANY_PINNED"), None
        else:
            error, value = self.control_error, self._act(control)
        wire = None if error is None else WireError.of(error)
        self.emit(Reply(engine_id=ENGINE_ID, generation=self.generation, call=control.call, value=value, error=wire))

    def _act(self, control: Control) -> Any:
        digest = control.digest
        if self.control_error is None and control.op in ("activate", "pin"):
            self.on_device.add(digest)
        match control.op:
            case "pin" if self.control_error is None:
                self.kept.add(digest)
            case "unpin":
                self.kept.discard(digest)
            case "unload":
                self.on_device.discard(digest)
                return "store"
            case "in_use":
                return digest in self.in_use
            case "report":
                return self.load
        return "device" if digest in self.on_device else "host"

    def answer_all(self) -> None:
        self.answer(list(self.held))

    def answer(self, rows: list[Row]) -> None:
        self.held = [row for row in self.held if row not in rows]
        if rows:
            self.emit(
                Emit(
                    engine_id=ENGINE_ID,
                    generation=self.generation,
                    events=[self._event(row, len(rows)) for row in rows],
                    credit_inputs=len(rows),
                    credit_tokens=sum(len(row.token_ids) // 4 for row in rows),
                )
            )

    def emit(self, frame: AnyFrame) -> None:
        assert self.channel is not None
        self.channel.frames.put_nowait(frame)

    def _event(self, row: Row, num_rows: int) -> Event:
        error = self.fail(row)
        if error is not None:
            return Event(id=row.id, error=WireError.of(error))
        logits = np.arange(self.widths.get(row.digest, 3), dtype="<f4") * (len(row.token_ids) // 4)
        timing = Timing(queue_s=0.001, compute_s=0.002, batch_requests=num_rows, batch_tokens=7, batch_tasks=1)
        return Event(id=row.id, payload=logits.tobytes(), timing=timing)


class FakeChannel:
    """The front end's end. A frame that is an exception is raised: the connection breaks."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False

    async def send(self, frame: AnyFrame) -> None:
        self._engine.take(frame)

    async def receive(self) -> AnyFrame:
        frame = await self.frames.get()
        if isinstance(frame, Exception):
            raise frame
        return frame

    def close(self) -> None:
        self.closed = True


class FakeSupervisor:
    """The other end of the pipe. Agrees to everything, as if there were no other front end, unless told not to."""

    def __init__(self) -> None:
        self.agrees = True
        self._loop = asyncio.get_running_loop()
        self._to_child: asyncio.Queue[AnyFrame | None] = asyncio.Queue()
        self.from_child: asyncio.Queue[AnyFrame] = asyncio.Queue()

    def send(self, frame: AnyFrame) -> None:
        self._loop.call_soon_threadsafe(self._take, frame)

    async def receive(self) -> AnyFrame | None:
        return await self._to_child.get()

    def _take(self, frame: AnyFrame) -> None:
        if isinstance(frame, Seen) and self.agrees:
            self.tell(Agreed(revision=frame.revision, oldest=frame.oldest))
        self.from_child.put_nowait(frame)

    def tell(self, frame: AnyFrame | None) -> None:
        self._to_child.put_nowait(frame)

    async def expect(self, kind: type[Any]) -> Any:
        """The next frame of this kind; others are passed over."""
        while not isinstance(frame := await self.from_child.get(), kind):
            pass
        return frame


@pytest.fixture(scope="session")
def supervisor_type() -> type[FakeSupervisor]:
    return FakeSupervisor


@pytest.fixture(scope="session")
def engine_type() -> type[FakeEngine]:
    return FakeEngine


class Harness:
    """What a scenario has in hand: stubs on an open channel, and the strings behind the scene."""

    def __init__(
        self, engine: FakeEngine, supervisor: FakeSupervisor, front_end: FrontEnd, address: str, store: Path
    ) -> None:
        self.engine = engine
        self.supervisor = supervisor
        self.front_end = front_end
        self.address = address
        self.store = store
        self.channel = grpc.aio.insecure_channel(address)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(self.channel)
        self.server = server_pb2_grpc.ServerServiceStub(self.channel)

    def drain(self, delay_s: float = 0.0, grace_s: float = 5.0) -> None:
        self.supervisor.tell(Drain(delay_s=delay_s, grace_s=grace_s))

    def kill_engine(self) -> None:
        self.supervisor.tell(EngineDown(engine_id=ENGINE_ID, generation=self.engine.generation))

    def start_engine(self) -> None:
        self.supervisor.tell(self.engine.up())

    def blobs(self) -> list[str]:
        return sorted(path.name for path in (self.store / "blobs" / "sha256").glob("??/*"))

    def temporaries(self) -> list[str]:
        return sorted(path.name for path in (self.store / "blobs" / "tmp").iterdir())

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        """Wait for something that has no event of its own; the test's timeout is the limit."""
        while not condition():  # noqa: ASYNC110 - the condition may be anything
            await asyncio.sleep(0.005)


Scenario = Callable[[Harness], Awaitable[None]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def settings(store: Path, tokenizer_file: Path) -> FrontEndConfig:
    """For front ends that a test starts itself."""
    return FrontEndConfig(
        listen="127.0.0.1:0",
        store=str(store),
        tokenizer=str(tokenizer_file),
        tokenizer_threads=1,
        reflection=False,
        shares_port=False,
        adapter_root=None,
        log_level="info",
    )


@pytest.fixture
def seed(store: Path, spec: BackboneSpec) -> Callable[..., str]:
    """(task, bytes) -> digest, put into the catalog before the front end starts."""

    def put(task: str, data: bytes, *, tenant: str = "default", fingerprint: str | None = None) -> str:
        import json

        from adamix.adapter_file import decode

        digest = hashlib.sha256(data).hexdigest()
        catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
        catalog.blobs.put(data, digest)
        adapter = decode(data)
        manifest = json.dumps(adapter.manifest.to_json())
        backbone = fingerprint or adapter.manifest.backbone.fingerprint
        catalog.register(tenant, task, digest, manifest, len(data), backbone)
        catalog.close()
        return digest

    return put


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

    @asynccontextmanager
    async def serving(prepare: Callable[[FakeEngine], None], adapter_root: Path | None) -> AsyncIterator[Harness]:
        engine, supervisor = FakeEngine(spec), FakeSupervisor()
        prepare(engine)
        settings = FrontEndConfig(
            listen="127.0.0.1:0",
            store=str(store),
            tokenizer=str(tokenizer_file),
            tokenizer_threads=2,
            reflection=True,
            shares_port=False,
            adapter_root=None if adapter_root is None else str(adapter_root),
            log_level="info",
        )
        front_end = FrontEnd(settings, supervisor, connect=engine.connect)
        running = asyncio.create_task(front_end.run())
        supervisor.tell(engine.up())
        ready: Ready = await supervisor.expect(Ready)
        harness = Harness(engine, supervisor, front_end, ready.address, store)
        try:
            yield harness
        finally:
            await harness.channel.close()
            engine.hold = False
            engine.answer_all()
            if not running.done():
                harness.drain()
            assert await running == 0

    def run(
        scenario: Scenario,
        *,
        prepare: Callable[[FakeEngine], None] = lambda engine: None,
        adapter_root: Path | None = None,
    ) -> None:
        async def scene() -> None:
            async with serving(prepare, adapter_root) as harness:
                await scenario(harness)

        play(scene())

    return run
