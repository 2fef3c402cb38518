"""Messages come in inside the boundary: after its limits, within a time, within the room there is for their bytes."""

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from adamix.errors import InvalidRequest, Overloaded
from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.access.principal import Principal
from adamix_server.access.rights import ALL_RIGHTS
from adamix_server.frontend.boundary.bounds import BOUNDS, Bounds
from adamix_server.frontend.boundary.gate import Gate
from adamix_server.frontend.boundary.receiving import Messages, parsed
from adamix_server.frontend.boundary.rooms import Origin
from adamix_testing.bare_boundary import PREDICT, PREDICT_STREAM, BareBoundary
from adamix_testing.refusals import details, failure, refusal, status_of

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
DEADLINE, UNAVAILABLE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE
HEALTH, UPLOAD = "/grpc.health.v1.Health/Check", "/adamix.v1.AdapterService/RegisterAdapter"


def text_of(num_bytes: int) -> bytes:
    """A request of exactly this size."""
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(text="x" * num_bytes)])
    request.inputs[0].text = "x" * (2 * num_bytes - request.ByteSize())
    raw = request.SerializeToString()
    assert len(raw) == num_bytes
    return raw


def with_unknown(known: bytes, unknown_bytes: int) -> bytes:
    """`known` and a field of so many bytes that nobody knows."""
    length = unknown_bytes - 5
    varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
    unknown = b"\xfa\x7c" + varint + b"\xff" * length
    assert len(unknown) == unknown_bytes
    return known + unknown


class Waiting:
    """Calls that wait until the test lets them go."""

    def __init__(self, bare: BareBoundary) -> None:
        self.count = 0
        self.go_on = asyncio.Event()
        bare.servicer.behave = self._behave

    async def _behave(self) -> inference_pb2.PredictResponse:
        self.count += 1
        await self.go_on.wait()
        return inference_pb2.PredictResponse()

    async def until(self, count: int) -> None:
        while self.count < count:  # noqa: ASYNC110 - the test's timeout is the limit
            await asyncio.sleep(0.002)


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts a boundary with bounds of the test's own."""
    async with asyncio.timeout(30), asyncio.TaskGroup():
        open_ones: list[BareBoundary] = []

        async def start(bounds: Bounds = BOUNDS, **of: Any) -> BareBoundary:
            bare = BareBoundary(bounds, **of)
            open_ones.append(bare)
            return await bare.__aenter__()

        yield start
        for bare in open_ones:
            await bare.__aexit__()


async def test_the_first_message_has_a_time(start: Callable[..., Any]) -> None:
    assert BOUNDS.message_s == 10.0
    bare = await start(replace(BOUNDS, message_s=0.1, patience_s=0.04))
    for method in (PREDICT, PREDICT_STREAM, UPLOAD, HEALTH):
        assert await refusal(bare.half_open(method=method)) == (DEADLINE, "MESSAGE_LATE")
    assert await bare.admission.wait_idle(1)
    await bare.predict()


async def test_half_open_calls_are_in_nobodys_way(start: Callable[..., Any]) -> None:
    bare = await start(replace(BOUNDS, message_s=1.0, turn_s=1.0, patience_s=0.1, reading=16, reading_kept=8))
    hostile = [bare.connect() for _ in range(20)]
    half_open = [bare.half_open(channel) for channel in hostile for _ in range(8)]
    half_open += [bare.half_open(channel, HEALTH) for channel in hostile[:10]]
    await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    began = loop.time()
    # One that is known, and one that comes new.
    await bare.predict(timeout=2)
    await bare.predict(bare.connect(), timeout=2)
    await bare.connect().unary_unary(HEALTH)(b"", timeout=2)
    assert loop.time() - began < 2
    ended = await asyncio.gather(*(refusal(call) for call in half_open))
    assert set(ended) <= {(DEADLINE, "MESSAGE_LATE"), (EXHAUSTED, "READING_FULL")}
    assert bare.admission._calls.free == BOUNDS.calls


async def test_half_open_probes_are_in_no_probes_way(start: Callable[..., Any]) -> None:
    # Who probes over a new connection waits for a second, as long as a call is left in peace.
    assert 2 * BOUNDS.kept_patience_s <= 0.5 < BOUNDS.patience_s
    bare = await start(replace(BOUNDS, message_s=60.0, turn_s=60.0, patience_s=60.0, reading_kept=8))
    half_open = [bare.half_open(bare.connect(), HEALTH) for _ in range(8)]
    await asyncio.sleep(0.05)
    await bare.connect().unary_unary(HEALTH)(b"", timeout=10)
    # Those whose turn came then have their patience for themselves.
    for call in half_open:
        call.cancel()


async def test_many_streams_of_one_connection_are_answered_in_turn(start: Callable[..., Any]) -> None:
    # None of them waits for another's patience to end.
    bare = await start(replace(BOUNDS, message_s=60.0, turn_s=60.0, patience_s=60.0))
    streams = []
    for _ in range(60):
        streams.append(bare.channel.stream_stream(PREDICT_STREAM)())
        for stream in streams[-2:]:
            await stream.write(b"")
            assert await stream.read() is not grpc.aio.EOF  # type: ignore[attr-defined] # not in the stubs
    await bare.predict()
    for stream in streams:
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined] # not in the stubs


async def test_a_call_without_a_message_is_refused(start: Callable[..., Any]) -> None:
    bare = await start()
    assert await refusal(bare.channel.stream_unary(PREDICT)(iter(()))) == (INVALID, "MESSAGE_MISSING")


async def test_a_second_message_of_a_unary_call_is_not_read(start: Callable[..., Any]) -> None:
    bare = await start()
    await bare.channel.stream_unary(PREDICT)(iter([b"", b"\xff\xff"]))


async def test_calls_at_once(start: Callable[..., Any]) -> None:
    assert BOUNDS.calls == 10_000
    bare = await start(replace(BOUNDS, calls=8))
    waiting = Waiting(bare)
    # A connection that holds nothing always finds a place, as long as there is one.
    calls = [asyncio.ensure_future(bare.predict(bare.connect())) for _ in range(8)]
    await waiting.until(8)
    failed = await failure(bare.predict())
    assert (failed.code(), details(status_of(failed))["ErrorInfo"].reason) == (EXHAUSTED, "CALLS_FULL")
    # When as much time has passed as a call takes: a tenth of a second, give or take, until some were measured.
    assert 80 <= details(status_of(failed))["RetryInfo"].retry_delay.ToMilliseconds() <= 120
    await asyncio.sleep(0.5)
    waiting.go_on.set()
    await asyncio.gather(*calls)
    # Each of the eight took half a second more than that.
    await bare.predict()
    assert bare.admission._call_s > 0.12
    assert bare.counts("adamix_rejected_total") == {("CALLS_FULL",): 1.0}


async def test_a_connection_has_a_quarter_of_what_is_free(start: Callable[..., Any]) -> None:
    bare = await start(replace(BOUNDS, calls=40))
    waiting = Waiting(bare)
    calls = [asyncio.ensure_future(bare.predict()) for _ in range(40)]
    while waiting.count + sum(call.done() for call in calls) < 40:  # noqa: ASYNC110 - the test's timeout is the limit
        await asyncio.sleep(0.002)
    refused = {await refusal(call) for call in calls if call.done()}
    assert (waiting.count, refused) == (8, {(EXHAUSTED, "CALLS_FULL")})
    waiting.go_on.set()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_unix_socket_is_one_trusted_peer(start: Callable[..., Any], tmp_path: Path) -> None:
    bare = await start(replace(BOUNDS, calls=40), listen=f"unix:{tmp_path}/s")
    waiting = Waiting(bare)
    calls = [asyncio.ensure_future(bare.predict()) for _ in range(40)]
    await waiting.until(40)
    assert (await refusal(bare.predict()))[1] == "CALLS_FULL"
    waiting.go_on.set()
    await asyncio.gather(*calls)


async def test_room_is_kept_for_signs_of_life(start: Callable[..., Any]) -> None:
    assert BOUNDS.kept_calls == 32
    bare = await start(replace(BOUNDS, calls=1, kept_calls=2, message_s=0.5))
    waiting = Waiting(bare)
    call = asyncio.ensure_future(bare.predict())
    await waiting.until(1)
    check = health_pb2.HealthCheckRequest().SerializeToString()
    await bare.channel.unary_unary(HEALTH)(check)
    half_open = [bare.half_open(bare.connect(), HEALTH) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert await refusal(bare.channel.unary_unary(HEALTH)(check)) == (EXHAUSTED, "CALLS_FULL")
    for call_of_health in half_open:
        assert await refusal(call_of_health) == (DEADLINE, "MESSAGE_LATE")
    await bare.channel.unary_unary(HEALTH)(check)
    waiting.go_on.set()
    await call


async def test_bytes_in_flight(start: Callable[..., Any]) -> None:
    assert BOUNDS.message_bytes == 256 << 20
    bare = await start(replace(BOUNDS, message_bytes=3 << 20, bytes_s=0.05))
    waiting = Waiting(bare)
    # What is read counts three times, what is worked on once.
    assert await refusal(bare.predict(raw=text_of((1 << 20) + 1))) == (EXHAUSTED, "BYTES_IN_FLIGHT")
    first = asyncio.ensure_future(bare.predict(raw=text_of(1 << 20)))
    await waiting.until(1)
    second = asyncio.ensure_future(bare.predict(bare.connect(), raw=text_of((2 << 20) // 3)))
    await waiting.until(2)
    failed = await failure(bare.predict(bare.connect(), raw=text_of((2 << 20) // 3)))
    assert details(status_of(failed))["ErrorInfo"].reason == "BYTES_IN_FLIGHT"
    assert "RetryInfo" in details(status_of(failed))
    waiting.go_on.set()
    await asyncio.gather(first, second)
    await bare.predict(raw=text_of(1 << 20))


async def test_who_waits_for_room_gets_it() -> None:
    messages = Messages(replace(BOUNDS, message_bytes=30, bytes_s=5))
    origin = Origin("unix:", is_trusted=True)
    assert messages.take(origin, "a", 10)
    waiting = asyncio.create_task(messages.wait(origin, "a", 10))
    await asyncio.sleep(0)
    assert not waiting.done()
    messages.give(origin, "a", 10)
    await waiting
    with pytest.raises(Overloaded):
        await Messages(replace(BOUNDS, message_bytes=30, bytes_s=0.01)).wait(origin, "a", 11)


async def test_a_tenants_share_of_bytes_and_of_calls(start: Callable[..., Any]) -> None:
    metadata = {name: (("x-tenant", name),) for name in "ab"}

    def identify(context: Any) -> Principal:
        name = next((value for key, value in context.invocation_metadata() if key == "x-tenant"), "a")
        return Principal("", name, ALL_RIGHTS)

    bare = await start(replace(BOUNDS, calls=16), gate=Gate(identify))
    waiting = Waiting(bare)

    def call(tenant: str, raw: bytes = b"") -> "asyncio.Future[Any]":
        stub = bare.connect().unary_unary(PREDICT)
        return asyncio.ensure_future(stub(raw, timeout=10, metadata=metadata[tenant]))

    # Alone it has what it wants; once there is another, no more while it holds a quarter.
    first = [call("a") for _ in range(3)]
    await waiting.until(3)
    other = call("b")
    await waiting.until(4)
    fourth = call("a")
    await waiting.until(5)
    assert await refusal(call("a")) == (EXHAUSTED, "CALLS_FULL")
    assert bare.counts("adamix_tenant_rejected_total") == {("a", "CALLS_FULL"): 1.0}
    waiting.go_on.set()
    await asyncio.gather(*first, other, fourth)
    await call("a")

    messages = Messages(replace(BOUNDS, message_bytes=64 << 20, bytes_s=0.01), counted := Counted())
    origin = Origin("unix:", is_trusted=True)
    assert messages.take(origin, "a", 4 << 20)
    assert messages.take(origin, "b", 1)
    # Three copies of it, and what is held: a quarter of all, exactly.
    assert messages.take(origin, "a", 4 << 20)
    assert not messages.take(origin, "a", (8 << 20) // 3 + 1)
    assert messages.take(origin, "", 4 << 20)
    with pytest.raises(Overloaded):
        await messages.wait(origin, "a", 4 << 20)
    assert counted == {("BYTES_IN_FLIGHT", "a"): 1}
    messages.give(origin, "b", 1)
    assert messages.take(origin, "a", 4 << 20)


class Counted(Counter[tuple[str, str]]):
    def __call__(self, reason: str, tenant: str) -> None:
        self[reason, tenant] += 1


def test_64_messages_of_the_largest_size_have_room() -> None:
    messages = Messages(BOUNDS)
    origin = Origin("unix:", is_trusted=True)
    # The last ones wait for a moment: three copies are counted only while one is read.
    assert sum(messages.take(origin, "a", 4 << 20) for _ in range(64)) == 62


@pytest.mark.parametrize("floor", [True, False])
def test_unknown_fields(floor: bool) -> None:
    known = text_of(1024 if floor else 10_000)
    parse = inference_pb2.PredictRequest.FromString
    unknown = 4096 - len(known) if floor else len(known)
    message = parsed(parse, with_unknown(known, unknown))
    # Discarded, and the rest is what it was.
    assert message.SerializeToString() == known
    refused = parsed(parse, with_unknown(known, unknown + 1))
    assert isinstance(refused, InvalidRequest)
    assert refused.reason == "TOO_MANY_UNKNOWN_FIELDS"


def test_unknown_fields_of_parts_count_as_well() -> None:
    inner = with_unknown(b"", 20_000)
    raw = b"\x0a" + bytes([len(inner) & 127 | 128, len(inner) >> 7 & 127 | 128, len(inner) >> 14]) + inner
    refused = parsed(inference_pb2.PredictRequest.FromString, raw)
    assert isinstance(refused, InvalidRequest)
    assert refused.reason == "TOO_MANY_UNKNOWN_FIELDS"


async def test_uploads_and_streams_go_the_same_way(start: Callable[..., Any]) -> None:
    bare = await start(replace(BOUNDS, bytes_s=0.05, message_bytes=6 << 20))
    chunk = adapters_pb2.RegisterAdapterRequest(chunk=b"x" * (1 << 20)).SerializeToString()
    answer = await bare.channel.stream_unary(UPLOAD)(iter([chunk] * 8))
    assert adapters_pb2.RegisterAdapterResponse.FromString(answer).version.num_bytes == 8
    large = adapters_pb2.RegisterAdapterRequest(chunk=b"x" * (3 << 20)).SerializeToString()
    assert await refusal(bare.channel.stream_unary(UPLOAD)(iter([large]))) == (EXHAUSTED, "BYTES_IN_FLIGHT")
    junk = with_unknown(b"", 20_000)
    stream = bare.channel.stream_stream(PREDICT_STREAM)(iter([b"", junk]))
    await stream.read()
    assert await refusal(stream.read()) == (INVALID, "TOO_MANY_UNKNOWN_FIELDS")
    assert bare.boundary._books.messages._room.free == 6 << 20


async def test_idle_streams_keep_nobody_waiting(start: Callable[..., Any]) -> None:
    bare = await start(replace(BOUNDS, reading=4, seats=200, patience_s=0.04, message_s=5))
    streams = []
    for _ in range(12):
        stream = bare.channel.stream_stream(PREDICT_STREAM)()
        await stream.write(b"")
        await stream.read()
        streams.append(stream)
    await bare.predict(timeout=2)
    for stream in streams:
        await stream.write(b"")
        await stream.read()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined] # the stubs do not have it


async def test_nothing_of_a_refused_call_is_kept(start: Callable[..., Any]) -> None:
    bare = await start()

    class Kept:
        pass

    kept: list[weakref.ref[Kept]] = []

    async def behave() -> None:
        local = Kept()
        kept.append(weakref.ref(local))
        raise InvalidRequest("no")

    bare.servicer.behave = behave
    gc.disable()
    try:
        await refusal(bare.predict())
        # grpc's loop knows the last call until the next one comes.
        await refusal(bare.predict())
        await asyncio.sleep(0.02)
        assert kept[0]() is None
    finally:
        gc.enable()
