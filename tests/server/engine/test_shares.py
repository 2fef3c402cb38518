"""What an engine grants each of several front ends, and what it says of itself."""

import time
from typing import Any

import msgspec
import pytest

from adamix.errors import Code
from adamix_server.channel.channel import Peer
from adamix_server.channel.codec import FromEngine, ToEngine
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    EngineLoad,
    GenerateParams,
    Hello,
    Limits,
    QueueState,
    Reply,
    Row,
    Submit,
    TenantShare,
    TenantShares,
)
from adamix_server.engine.encoding import Encoding
from adamix_server.engine.engine import Engine
from adamix_server.engine.residency.slots import Hold
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

    def send(self, peer: Peer, frame: FromEngine) -> bool:
        self.sent.append((peer, frame))
        return True

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Adapters:
    """Adapters that are never ready."""

    num_resident = 3
    is_blocked = False

    def __init__(self) -> None:
        self.near: set[str] = set()
        self.awaited: set[str] = set()

    def advance(self, order: object) -> dict[str, Any]:
        return {}

    def residency(self, digest: str) -> str:
        return "device" if digest in self.near else "store"

    def is_awaited(self, digest: str) -> bool:
        return digest in self.awaited

    def hold(self, digest: str) -> Hold:
        self.awaited.add(digest)
        return Hold(digest, since=0.0)

    def is_ready(self, digest: str) -> bool:
        return False

    def release(self, hold: Hold) -> None: ...

    def report(self) -> None: ...


def engine(
    front_ends: int, *, inputs: int = 4096, tokens: int = 262_144, tokens_per_s: float = 1e6
) -> tuple[Engine, Wire]:
    wire = Wire()
    limits = Limits(max_batch_tokens=64, max_queue_inputs=inputs, max_queue_tokens=tokens, slots=7)
    hello = Hello(engine_id=ENGINE_ID, generation=1, spec=SPEC, limits=limits, dtype="float32", device="cpu")
    adapters: Any = Adapters()
    runner: Any = None
    rate = TokenRate(tokens_per_s, 64)
    return Engine(
        wire, Encoding(runner, Scheduler(64)), adapters, hello, rate, Recorder(), lambda: None, front_ends
    ), wire


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


def row(number: int, tenant: str, tokens: int = 5) -> Row:
    return Row(id=number, tenant=tenant, digest="d", token_ids=bytes(4 * tokens), deadline=time.monotonic() + 60)


def test_the_queue_has_room_for_eight_seconds_of_work_as_measured_so_far() -> None:
    running, wire = engine(2, tokens_per_s=1000.0)
    wire.arrived = [(b"p", Control(engine_id=ENGINE_ID, generation=1, call=0, op="hello"))]
    running.step()
    (credit,) = (frame for _, frame in wire.sent if isinstance(frame, Credit))
    assert (credit.inputs, credit.tokens) == (500, 4000)
    # Since then it has become slower.
    running._room.follow(500.0)
    wire.arrived = [
        (b"p", Submit(engine_id=ENGINE_ID, generation=1, rows=[row(number, "t", 500) for number in range(6)])),
        (b"p", Cancel(engine_id=ENGINE_ID, generation=1, ids=list(range(6)))),
    ]
    running.step()
    (emit,) = (frame for _, frame in wire.sent if isinstance(frame, Emit))
    assert (emit.credit_inputs, emit.credit_tokens) == (0, 1000)


def test_a_front_end_is_told_what_waits_of_all_and_of_each_of_its_tenants() -> None:
    running, wire = engine(2)
    shares = [
        TenantShare(tenant="heavy", weight=5, service_class="interactive"),
        TenantShare(tenant="nightly", weight=2, service_class="batch"),
    ]
    submit = Submit(
        engine_id=ENGINE_ID, generation=1, rows=[row(1, "heavy"), row(2, "usual"), row(3, "nightly"), row(4, "usual")]
    )
    wire.arrived = [
        (b"p", TenantShares(engine_id=ENGINE_ID, generation=1, shares=shares)),
        (b"p", submit),
        (b"q", Submit(engine_id=ENGINE_ID, generation=1, rows=[row(1, "usual"), row(2, "heavy"), row(3, "other")])),
        (b"q", Cancel(engine_id=ENGINE_ID, generation=1, ids=[3])),
        (b"p", Cancel(engine_id=ENGINE_ID, generation=1, ids=[4])),
    ]
    running.step()
    said = {peer: frame.queue for peer, frame in wire.sent if isinstance(frame, Emit)}
    tenants = {"heavy": 10, "usual": 10}
    everybodys = QueueState(
        tokens_per_s=said[b"p"].tokens_per_s, queued_tokens=25, batch_tokens=5, active_weight=8.0, tenants=tenants
    )
    assert said == {
        b"p": msgspec.structs.replace(everybodys, tenants={**tenants, "nightly": 5}),
        b"q": everybodys,
    }


def test_the_last_word_about_weights_and_classes_holds_also_for_what_is_queued() -> None:
    running, wire = engine(2)
    heavy = TenantShare(tenant="t", weight=7, service_class="batch")
    wire.arrived = [
        (b"p", Submit(engine_id=ENGINE_ID, generation=1, rows=[row(1, "t")])),
        (b"p", TenantShares(engine_id=ENGINE_ID, generation=1, shares=[heavy])),
    ]
    running.step()
    state = running._scheduler.state(b"p", 1.0)
    assert (state.active_weight, state.batch_tokens) == (7.0, 5)
    wire.arrived = [(b"q", TenantShares(engine_id=ENGINE_ID, generation=1, shares=[]))]
    running.step()
    state = running._scheduler.state(b"p", 1.0)
    assert (state.active_weight, state.batch_tokens) == (1.0, 0)


def test_the_tokens_of_each_tenant_are_recorded_while_it_has_any() -> None:
    running, wire = engine(1)
    wire.arrived = [(b"p", Submit(engine_id=ENGINE_ID, generation=1, rows=[row(1, "t"), row(2, "u", 7)]))]

    def told() -> dict[tuple[str, ...], list[float]]:
        running._next_stats = 0.0
        running.step()
        samples = running._recorder.drain()
        return {sample.labels: sample.values for sample in samples if sample.name == "adamix_tenant_queue_tokens"}

    assert told() == {("t",): [5.0], ("u",): [7.0]}
    wire.arrived = [(b"p", Cancel(engine_id=ENGINE_ID, generation=1, ids=[2]))]
    assert told() == {("t",): [5.0], ("u",): []}
    assert told() == {("t",): [5.0]}


def test_who_asked_for_an_adapter_knows_where_it_is_however_many_others_were_asked_for_while_it_was_brought() -> None:
    running, wire = engine(1)
    rows = [
        Row(id=number, tenant="t", digest=f"d{number}", token_ids=bytes(4), deadline=time.monotonic() + 60)
        for number in range(3_000)
    ]
    wire.arrived = [(b"p", Submit(engine_id=ENGINE_ID, generation=1, rows=rows))]
    running.step()
    adapters: Any = running._adapters
    adapters.near = {row.digest for row in rows}
    asked = ["d0", "d1", "d2999"]

    def told(tenant: str) -> Any:
        wire.arrived = [
            (
                b"p",
                Control(engine_id=ENGINE_ID, generation=1, call=9, op="residencies", digests=asked, tenant=tenant),
            )
        ]
        running.step()
        frame = wire.sent[-1][1]
        assert isinstance(frame, Reply)
        return frame.value

    assert told("t") == ["device"] * 3
    assert told("another") == ["store"] * 3


@pytest.mark.parametrize("asked", [{"digest": "d", "generate": GenerateParams(max_new_tokens=1)}, {"digest": ""}])
def test_an_encoder_refuses_what_only_a_decoder_answers(asked: dict[str, Any]) -> None:
    running, wire = engine(1)
    wire.arrived = [
        (b"p", Submit(engine_id=ENGINE_ID, generation=1, rows=[msgspec.structs.replace(row(1, "t"), **asked)]))
    ]
    running.step()
    (event,) = next(frame for _, frame in wire.sent if isinstance(frame, Emit)).events
    assert event.error is not None
    assert event.error.code == Code.FAILED_PRECONDITION


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
