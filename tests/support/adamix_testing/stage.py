"""A supervisor's children that are played: each says what the test tells it to."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from adamix_server.codec import FromChild, ToChild
from adamix_server.engine_frames import Hello, Limits
from adamix_server.supervisor_frames import Drain, Drained, Ready, StartEngine, StartFrontEnd
from adamix_testing.manifests import no_model_spec

_LIMITS = Limits(max_batch_tokens=16, max_queue_inputs=1, max_queue_tokens=16, slots=1)


class Played:
    """A child that says what the stage tells it to."""

    def __init__(self, stage: "Stage", name: str, start: StartEngine | StartFrontEnd) -> None:
        self.stage, self.name, self.start_frame = stage, name, start
        self.is_ready = False
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
        self.gone = True
        return -9

    async def stop(self, grace_s: float) -> int:
        self.gone = True
        return 0

    def die(self) -> None:
        self.gone = True
        self.says.put_nowait(None)


class Stage:
    """Starts played children. `first_words(name, n)` is what the n-th child of a kind says (None: it dies)."""

    def __init__(self, first_words: Callable[[str, int], FromChild | None]) -> None:
        self.children: dict[str, list[Played]] = defaultdict(list)
        self.told_to_drain: list[str] = []
        self.drained: list[str] = []
        self.drains_at_once = True
        self._first_words = first_words

    async def start(self, module: str, start: StartEngine | StartFrontEnd, environment: dict[str, str]) -> Played:
        name = "engine" if isinstance(start, StartEngine) else start.name
        assert module == f"adamix_server.{name.partition('-')[0]}"
        child = Played(self, name, start)
        self.children[name].append(child)
        child.says.put_nowait(self._first_words(name, len(self.children[name])))
        return child


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
