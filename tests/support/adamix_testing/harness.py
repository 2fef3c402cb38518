"""A whole front end on a real port, with the engine and the supervisor played.

The catalog, the blob store, the tokenizer and the validation child are the real ones; only the numbers are made up.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar
from unittest.mock import patch

import grpc.aio
import msgspec
import pytest

from adamix.files.manifest import BackboneSpec
from adamix_client import Client
from adamix_client.connection import channel_options
from adamix_protos.v1 import adapters_pb2_grpc, admin_pb2_grpc, inference_pb2_grpc, server_pb2_grpc
from adamix_server.channel.supervisor_frames import Drain, EngineDown, EngineMoving, EngineStalled, Ready, StartFrontEnd
from adamix_server.config import FrontEndSettings
from adamix_server.frontend import assembly, endpoint
from adamix_server.frontend.control.validation import Verdict, judge
from adamix_server.frontend.entrance import open_entrance
from adamix_server.frontend.front_end import FrontEnd
from adamix_testing.catalogs import make_store
from adamix_testing.fake_engine import ENGINE_ID, FakeEngine
from adamix_testing.fake_supervisor import FakeSupervisor
from adamix_testing.identities import Callers

Result = TypeVar("Result")


class Harness:
    """What a test has in hand: stubs on an open channel, and the strings behind the scene."""

    def __init__(
        self,
        engine: FakeEngine,
        supervisor: FakeSupervisor,
        front_end: FrontEnd,
        address: str,
        store: Path,
        http: str = "",
    ) -> None:
        self.engine = engine
        self.supervisor = supervisor
        self.front_end = front_end
        self.address = address
        self.http = http
        self.store = store
        self.channel = grpc.aio.insecure_channel(address, options=channel_options())
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        self.server = server_pb2_grpc.ServerServiceStub(self.channel)

    def drain(self, delay_s: float = 0.0, grace_s: float = 5.0) -> None:
        self.supervisor.tell(Drain(delay_s=delay_s, grace_s=grace_s))

    def kill_engine(self, back_in_s: float = 0.0) -> None:
        """The engine has ended; the next one will serve in so long, as far as the supervisor knows."""
        back_at = time.monotonic() + back_in_s
        self.supervisor.tell(EngineDown(engine_id=ENGINE_ID, generation=self.engine.generation, back_at=back_at))

    def stall_engine(self, for_s: float = 1.0, back_in_s: float = 60.0) -> None:
        """The engine has stood still for so long; if it is replaced, the next one will serve in `back_in_s`."""
        now = time.monotonic()
        self.supervisor.tell(
            EngineStalled(
                engine_id=ENGINE_ID, generation=self.engine.generation, since=now - for_s, back_at=now + back_in_s
            )
        )

    def move_engine(self) -> None:
        self.supervisor.tell(EngineMoving(engine_id=ENGINE_ID, generation=self.engine.generation))

    def start_engine(self) -> None:
        self.supervisor.tell(self.engine.up())

    async def call(self, work: Callable[[Client], Result]) -> Result:
        """What `work` returns, with the typed client, in a thread beside the loop that the front end lives in.

        The client asks nothing again: what a front end refuses, a test sees.
        """

        def with_client() -> Result:
            with Client(self.address, timeout_s=30, retries=None) as client:
                return work(client)

        return await asyncio.to_thread(with_client)

    def blobs(self) -> list[str]:
        return sorted(path.name for path in (self.store / "blobs" / "sha256").glob("??/*"))

    def temporaries(self) -> list[str]:
        return sorted(path.name for path in (self.store / "blobs" / "tmp").iterdir())

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        """Wait for something that has no event of its own; the test's timeout is the limit."""
        while not condition():  # noqa: ASYNC110 - the condition may be anything
            await asyncio.sleep(0.005)


def start_front_end(store: Path, tokenizer: Path) -> StartFrontEnd:
    """The first frame of a front end on a port that the system chooses."""
    return StartFrontEnd(
        settings=FrontEndSettings(tokenizer_threads=1),
        name="frontend-0",
        listen="127.0.0.1:0",
        store=store,
        tokenizer=tokenizer,
        reflection=False,
        shares_port=False,
        log_level="info",
    )


@asynccontextmanager
async def serving(
    store: Path,
    tokenizer: Path,
    spec: BackboneSpec,
    *,
    prepare: Callable[[FakeEngine], None] = lambda engine: None,
    adapter_root: Path | None = None,
    callers: Callers | None = None,
    settings: FrontEndSettings | None = None,
    number: int = 0,
    front_ends: int = 1,
    http: str = "",
) -> AsyncIterator[Harness]:
    """A front end that serves, over an engine that `prepare` has seen; it is drained, and must end cleanly.

    Over HTTP as well, where that has an address, such as `127.0.0.1:0`.

    It knows `callers` by their words (`identities.said`); without them it asks nobody. It takes itself for that of a
    `number` of several `front_ends`.
    """
    engine, supervisor = FakeEngine(spec), FakeSupervisor()
    make_store(store)
    prepare(engine)
    settings = settings or FrontEndSettings(adapter_root=adapter_root)
    start = msgspec.structs.replace(
        start_front_end(store, tokenizer),
        settings=settings,
        reflection=True,
        number=number,
        front_ends=front_ends,
        http=http,
    )
    enter = open_entrance if callers is None else callers.enter
    front_end = FrontEnd(start, supervisor, connect=engine.connect, enter=enter)
    running = asyncio.create_task(front_end.run())
    supervisor.tell(engine.up())
    ready = await supervisor.expect(Ready)
    harness = Harness(engine, supervisor, front_end, ready.address, store, ready.http)
    try:
        yield harness
    finally:
        await harness.channel.close(None)
        engine.hold = False
        engine.answer_all()
        # Nobody calls any more who would have to be refused for a while.
        with patch.object(endpoint, "REFUSE_S", 0.0):
            if not running.done():
                harness.drain()
            assert await running == 0


def judge_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are judged in this process, by the same checks: for tests of many uploads, and of nothing about it."""

    async def judged(path: Path, spec: BackboneSpec, *, expected_digest: str, **_: object) -> Verdict:
        return judge(await asyncio.to_thread(path.read_bytes), spec, expected_digest)

    monkeypatch.setattr(assembly, "validate_async", judged)


class StartServing(Protocol):
    """The fixture `start_serving`: starts a front end that serves until the test ends."""

    async def __call__(
        self,
        *,
        prepare: Callable[[FakeEngine], None] = ...,
        adapter_root: Path | None = None,
        callers: Callers | None = None,
        settings: FrontEndSettings | None = None,
        http: str = "",
    ) -> Harness: ...
