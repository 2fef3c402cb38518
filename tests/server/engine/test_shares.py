"""What an engine grants each of several front ends, and what it says of itself."""

import time
from typing import Any

import pytest

from adamix_server.channel.channel import Peer
from adamix_server.channel.codec import FromEngine, ToEngine
from adamix_server.channel.engine_frames import Control, Credit, EngineLoad, Hello, Limits, Reply, Row, Submit
from adamix_server.engine.engine import Engine
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.manifests import no_model_spec

ENGINE_ID = "0"
SPEC = no_model_spec(max_tokens=512)


class Wire:
    """The engine's end of a channel, held by the test."""

    def __init__(self) -> None:
        self.arrived: list[tuple[Peer, ToEngine]] = []
        self.sent: list[tuple[Peer, FromEngine]] = []

    def poll(self, timeout_s: float) -> list[tuple[Peer, ToEngine]]:
        arrived, self.arrived = self.arrived, []
        return arrived

    def send(self, peer: Peer, frame: FromEngine) -> None:
        self.sent.append((peer, frame))

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Adapters:
    """Adapters that are never ready."""

    num_resident = 3

    def advance(self) -> dict[str, Any]:
        return {}

    def hold(self, digest: str) -> object:
        return object()

    def is_ready(self, digest: str) -> bool:
        return False

    def report(self) -> None: ...


def engine(front_ends: int, *, inputs: int = 4096, tokens: int = 262_144) -> tuple[Engine, Wire]:
    wire = Wire()
    limits = Limits(max_batch_tokens=64, max_queue_inputs=inputs, max_queue_tokens=tokens, slots=7)
    hello = Hello(engine_id=ENGINE_ID, generation=1, spec=SPEC, limits=limits, dtype="float32", device="cpu")
    adapters: Any = Adapters()
    runner: Any = None
    rate = TokenRate(1000.0, 64)
    return Engine(wire, runner, adapters, Scheduler(64), hello, rate, Recorder(), lambda: None, front_ends), wire


@pytest.mark.parametrize(
    ("front_ends", "inputs", "tokens", "share"),
    [
        (1, 4096, 262_144, (4096, 262_144)),
        (2, 4096, 262_144, (2048, 131_072)),
        (3, 100, 3000, (33, 1000)),
        # A front end that could not send one text of full length would refuse it for ever.
        (8, 4, 1024, (1, 512)),
    ],
)
def test_each_front_end_gets_its_share_of_the_queue(
    front_ends: int, inputs: int, tokens: int, share: tuple[int, int]
) -> None:
    running, wire = engine(front_ends, inputs=inputs, tokens=tokens)
    peers = [bytes([number]) for number in range(front_ends)]
    wire.arrived = [(peer, Control(engine_id=ENGINE_ID, generation=1, call=0, op="hello")) for peer in peers]
    running.step()
    granted = {peer: (frame.inputs, frame.tokens) for peer, frame in wire.sent if isinstance(frame, Credit)}
    assert granted == dict.fromkeys(peers, share)


def test_an_engine_says_how_busy_it_is() -> None:
    running, wire = engine(1)
    rows = [
        Row(id=number, tenant="t", digest="d", token_ids=bytes(4 * 5), deadline=time.monotonic() + 60)
        for number in range(3)
    ]
    wire.arrived = [
        (b"p", Submit(engine_id=ENGINE_ID, generation=1, rows=rows)),
        (b"p", Control(engine_id=ENGINE_ID, generation=1, call=9, op="report")),
    ]
    running.step()
    load = EngineLoad(queued_inputs=3, queued_tokens=15, running_inputs=0, resident_adapters=3, slots=7)
    assert (b"p", Reply(engine_id=ENGINE_ID, generation=1, call=9, value=load)) in wire.sent
