"""A supervisor whose children are played: each says what the test tells it to."""

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from adamix_server.channel.codec import FromChild, ToChild
from adamix_server.channel.engine_frames import Hello, Limits
from adamix_server.channel.supervisor_frames import Drain, Drained, Ready, StartEngine, StartFrontEnd
from adamix_server.config import EngineSettings, FrontEndSettings, ServerConfig
from adamix_server.supervisor import keeper
from adamix_server.supervisor import supervisor as supervisors
from adamix_server.supervisor.supervisor import Supervisor
from adamix_testing.manifests import no_model_spec

FirstWords = Callable[[str, int], FromChild | None]

_LIMITS = Limits(max_batch_tokens=16, max_queue_inputs=1, max_queue_tokens=16, slots=1)


class Played:
    """A child that says what the stage tells it to."""

    def __init__(self, stage: "Stage", name: str, start: StartEngine | StartFrontEnd) -> None:
        self.stage, self.name, self.start_frame = stage, name, start
        self.is_ready = False
        self.pid = os.getpid()
        self.says: asyncio.Queue[FromChild | None] = asyncio.Queue()
        self.heard: list[ToChild] = []
        self.gone = False

    def send(self, frame: ToChild) -> None:
        self.heard.append(frame)
        if isinstance(frame, Drain) and not self.gone:
            self.stage.told_to_drain.append(self.name)
            if self.stage.drains_at_once:
                self.drain()

    def drain(self) -> None:
        self.stage.drained.append(self.name)
        self.says.put_nowait(Drained())

    async def receive(self) -> FromChild | None:
        return await self.says.get()

    async def kill(self) -> int:
        self.die()
        return -9

    async def stop(self, grace_s: float) -> int:
        self.gone = True
        return 0

    def die(self) -> None:
        self.gone = True
        self.says.put_nowait(None)


class Stage:
    """A supervisor that runs. `first_words(name, n)` is what its n-th child of a kind says (None: it dies)."""

    def __init__(self, config: ServerConfig, first_words: FirstWords) -> None:
        self.serving = asyncio.Event()
        self.supervisor = Supervisor(config, lambda address, hello: self.serving.set())
        self.children: dict[str, list[Played]] = defaultdict(list)
        self.told_to_drain: list[str] = []
        self.drained: list[str] = []
        self.drains_at_once = True
        self._first_words = first_words
        self._running = asyncio.create_task(self.supervisor.run())

    async def start(self, module: str, start: StartEngine | StartFrontEnd, environment: dict[str, str]) -> Played:
        name = "engine" if isinstance(start, StartEngine) else start.name
        assert module == f"adamix_server.{name.partition('-')[0]}"
        child = Played(self, name, start)
        self.children[name].append(child)
        child.says.put_nowait(self._first_words(name, len(self.children[name])))
        return child

    @property
    def metrics_address(self) -> str:
        """Where probes are answered, once a child has been started."""
        assert self.supervisor.metrics_address
        return self.supervisor.metrics_address

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that has no event of its own; raises what ended the supervisor meanwhile."""
        async with asyncio.timeout(10):
            while not condition():
                if self._running.done():
                    self._running.result()
                await asyncio.sleep(0.005)

    async def ended(self) -> None:
        """Wait for the end of the supervisor; raises what ended it."""
        async with asyncio.timeout(20):
            await self._running

    async def leave(self) -> None:
        """Raises AssertionError if the supervisor still runs, and ends it."""
        was_running = self._running.cancel()
        await asyncio.wait({self._running})
        assert not was_running, "the supervisor still runs"


def healthy(name: str, number: int) -> FromChild:
    """The first words of children that come up: engines number their generations."""
    if name.startswith("frontend"):
        return Ready(address="127.0.0.1:4711")
    hello = Hello(
        engine_id="0",
        generation=number,
        spec=no_model_spec(max_tokens=16),
        limits=_LIMITS,
        dtype="float32",
        device="cpu",
    )
    return Ready(address=f"ipc://engine-{number}", hello=hello)


class StartStage(Protocol):
    """The fixture `start_stage`: starts a supervisor that has ended when the test does."""

    async def __call__(
        self, first_words: FirstWords = healthy, *, front_ends: int = 1, stall_s: float = 10.0, http: str | None = None
    ) -> Stage: ...


def stage_of(
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    first_words: FirstWords = healthy,
    *,
    front_ends: int = 1,
    stall_s: float = 10.0,
    front_end: FrontEndSettings | None = None,
    http: str | None = None,
) -> Stage:
    """A stage whose children take the place of processes, with short pauses before a child is replaced."""
    config = ServerConfig(
        engine=EngineSettings(backbone="x", stall_s=stall_s),
        front_end=front_end or FrontEndSettings(),
        store=directory / "store",
        listen="127.0.0.1:0",
        http=http,
        drain_delay_s=0,
        drain_grace_s=30,
        front_ends=front_ends,
        metrics_port=0,
    )
    stage = Stage(config, first_words)

    class Children:
        start = stage.start

    monkeypatch.setattr(supervisors, "Child", Children)
    monkeypatch.setattr(keeper, "_LONGEST_PAUSE_S", 0.05)
    return stage
