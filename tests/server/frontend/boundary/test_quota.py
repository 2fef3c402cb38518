"""Quotas of what flows, as callers meet them: a call before its message, an input after its tokens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from adamix.errors import QuotaExceeded
from adamix.files.manifest import BackboneSpec
from adamix_protos.open_inference import open_inference_pb2, open_inference_pb2_grpc
from adamix_protos.v1 import adapters_pb2, inference_pb2, server_pb2
from adamix_server.access.quotas import MAX_QUOTA, NO_QUOTAS, Quotas
from adamix_server.access.rights import NEEDS
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import Asks, Refresh
from adamix_server.config import FrontEndSettings
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.boundary.quota import CALLS, COUNTED, STREAMS, UPLOADS, Quota
from adamix_server.limits.quotas import LENDER_SILENCE_S
from adamix_server.supervisor.lending import Lending
from adamix_testing import harness as harnesses
from adamix_testing.adapters import MakeAdapter
from adamix_testing.bare_boundary import BareBoundary
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, serving
from adamix_testing.refusals import details, failure, refusal, status_of

PREDICT = "/adamix.v1.InferenceService/Predict"
GENERATE = "/adamix.v1.InferenceService/Generate"
STREAM = "/adamix.v1.InferenceService/PredictStream"
REGISTER = "/adamix.v1.AdapterService/RegisterAdapter"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Books:
    """A quota of which a test sets the tenants' limits and the time."""

    def __init__(self) -> None:
        self.limits: dict[str, Quotas] = {}
        self.clock = Clock()
        self.quota = Quota(lambda tenant: self.limits.get(tenant, NO_QUOTAS), clock=self.clock)

    async def refused(self, work: Awaitable[Any]) -> QuotaExceeded:
        with pytest.raises(QuotaExceeded) as caught:
            await work
        return caught.value


@pytest.fixture
def books() -> Books:
    return Books()


async def test_so_many_calls_at_once_and_no_more(books: Books) -> None:
    books.limits["acme"] = Quotas(concurrent_calls=2)
    enter = books.quota.enter
    seats = [await enter(PREDICT, "acme") for _ in range(2)]
    error = await books.refused(enter(PREDICT, "acme"))
    assert (error.reason, error.subject, error.limit, error.used) == ("QUOTA_CONCURRENT_CALLS", "tenants/acme", 2, 2)
    assert error.retry_after_s is not None
    # Others, streams and uploads are others' matter; so is what nobody's quota counts.
    assert await enter(PREDICT, "other") is None
    assert await enter(STREAM, "acme") is None
    for _ in range(3):
        assert await enter("/grpc.health.v1.Health/Check", "acme") is None
        assert await enter("/adamix.v1.AdminService/UpdateTenant", "acme") is None
    books.quota.leave(seats[0])
    assert await enter(PREDICT, "acme") is not None


async def test_a_quota_of_0_allows_none_and_waiting_does_not_help(books: Books) -> None:
    books.limits["acme"] = Quotas(
        concurrent_calls=0, concurrent_streams=0, concurrent_uploads=0, generated_tokens_per_s=0
    )
    for method in (PREDICT, STREAM, REGISTER):
        error = await books.refused(books.quota.enter(method, "acme"))
        assert (error.limit, error.used, error.retry_after_s) == (0, 0, None)
    books.limits["acme"] = Quotas(input_tokens_per_s=0, registrations_per_minute=0)
    for work in (
        books.quota.charge("acme", 1),
        books.quota.enter(PREDICT, "acme"),
        books.quota.enter(REGISTER, "acme"),
    ):
        error = await books.refused(work)
        assert (error.limit, error.used, error.retry_after_s) == (0, 0, None)


async def test_huge_quotas_refuse_nobody(books: Books) -> None:
    books.limits["acme"] = Quotas(
        concurrent_calls=MAX_QUOTA,
        concurrent_uploads=MAX_QUOTA,
        registrations_per_minute=MAX_QUOTA,
        input_tokens_per_s=MAX_QUOTA,
        burst_s=MAX_QUOTA,
    )
    for _ in range(100):
        await books.quota.charge("acme", 1 << 20)
        await books.quota.enter(PREDICT, "acme")
        await books.quota.enter(REGISTER, "acme")


async def test_input_tokens_are_a_debt_beyond_the_burst_and_the_refusal_says_for_how_long(books: Books) -> None:
    books.limits["acme"] = Quotas(input_tokens_per_s=1_000)
    quota, clock = books.quota, books.clock
    await quota.charge("acme", 999)
    await quota.charge("acme", 2_001)
    error = await books.refused(quota.charge("acme", 1))
    assert (error.reason, error.limit, error.used) == ("QUOTA_INPUT_TOKENS_PER_S", 1_000, 3_000)
    after_s = error.retry_after_s
    assert after_s == pytest.approx(2.0, abs=0.01)
    # As long as that, a call is refused before its message is read; a stream's inputs one by one.
    assert (await books.refused(quota.enter(PREDICT, "acme"))).retry_after_s == after_s
    await quota.enter(STREAM, "acme")
    clock.now += 1.99
    await books.refused(quota.charge("acme", 1))
    clock.now += 0.02
    await quota.charge("acme", 1)
    # Seconds of burst.
    books.limits["acme"] = Quotas(input_tokens_per_s=1_000, burst_s=5)
    await quota.charge("acme", 1)
    clock.now += 60
    await quota.charge("acme", 4_999)
    await quota.charge("acme", 1)
    await books.refused(quota.charge("acme", 1))
    # What was not admitted after all costs nothing.
    quota.refund("acme", 100)
    await quota.charge("acme", 1)


async def test_who_is_in_debt_with_tokens_begins_nothing_that_costs_such(books: Books) -> None:
    enter = books.quota.enter
    books.limits["acme"] = Quotas(generated_tokens_per_s=10)
    async with books.quota.reserved("acme", 30) as reservation:
        reservation.made(30)
    assert (await books.refused(enter(GENERATE, "acme"))).reason == "QUOTA_GENERATED_TOKENS_PER_S"
    await enter(PREDICT, "acme")
    await enter(STREAM, "acme")
    books.clock.now += 2.1
    await enter(GENERATE, "acme")
    books.limits["acme"] = Quotas(input_tokens_per_s=10)
    await books.quota.charge("acme", 30)
    for method in (GENERATE, PREDICT):
        assert (await books.refused(enter(method, "acme"))).reason == "QUOTA_INPUT_TOKENS_PER_S"


async def test_registrations_of_a_minute_may_come_at_once(books: Books) -> None:
    books.limits["acme"] = Quotas(registrations_per_minute=3, concurrent_uploads=2)
    for _ in range(3):
        books.quota.leave(await books.quota.enter(REGISTER, "acme"))
    for _ in range(3):
        error = await books.refused(books.quota.enter(REGISTER, "acme"))
        assert (error.reason, error.limit, error.used) == ("QUOTA_REGISTRATIONS_PER_MINUTE", 3, 3)
    books.clock.now += 20.1
    # Those that were refused hold no place among the uploads.
    seat = await books.quota.enter(REGISTER, "acme")
    books.clock.now += 60
    await books.quota.enter(REGISTER, "acme")
    assert (await books.refused(books.quota.enter(REGISTER, "acme"))).reason == "QUOTA_CONCURRENT_UPLOADS"
    books.quota.leave(seat)


async def test_how_long_uploads_take_is_learnt_of_none_that_was_refused(books: Books) -> None:
    books.limits["acme"] = Quotas(registrations_per_minute=60, concurrent_uploads=1)
    for _ in range(60):
        seat = await books.quota.enter(REGISTER, "acme")
        books.clock.now += 5
        books.quota.leave(seat)
    books.limits["acme"] = Quotas(registrations_per_minute=1, concurrent_uploads=1)
    seat = await books.quota.enter(REGISTER, "acme")
    told = (await books.refused(books.quota.enter(REGISTER, "acme"))).retry_after_s
    assert told == pytest.approx(5, rel=0.1)
    books.quota.leave(seat, is_refused=True)
    for _ in range(100):
        await books.refused(books.quota.enter(REGISTER, "acme"))
    books.limits["acme"] = Quotas(concurrent_uploads=1)
    await books.quota.enter(REGISTER, "acme")
    assert (await books.refused(books.quota.enter(REGISTER, "acme"))).retry_after_s == told


async def test_of_reserved_tokens_those_that_do_not_come_are_put_back(books: Books) -> None:
    books.limits["acme"] = Quotas(generated_tokens_per_s=100)
    async with books.quota.reserved("acme", 400) as reservation:
        error = await books.refused(books.quota.reserved("acme", 1).__aenter__())
        assert (error.reason, error.used) == ("QUOTA_GENERATED_TOKENS_PER_S", 400)
        for _ in range(3):
            reservation.made(10)
    assert reservation.unused == 370
    async with books.quota.reserved("acme", 1), books.quota.reserved("other", 1):
        pass


async def test_changed_quotas_count_for_the_next_call(books: Books) -> None:
    enter = books.quota.enter
    seats = [await enter(PREDICT, "acme") for _ in range(3)]
    assert seats == [None] * 3
    books.limits["acme"] = Quotas(concurrent_calls=3)
    kept = [await enter(PREDICT, "acme") for _ in range(3)]
    books.limits["acme"] = Quotas(concurrent_calls=1)
    books.quota.leave(kept.pop())
    books.quota.leave(kept.pop())
    await books.refused(enter(PREDICT, "acme"))
    books.limits["acme"] = Quotas(concurrent_calls=2)
    assert await enter(PREDICT, "acme") is not None
    del books.limits["acme"]
    assert await enter(PREDICT, "acme") is None


def test_every_method_of_tenants_own_work_is_counted_once_and_no_other() -> None:
    assert COUNTED[PREDICT] == COUNTED["/inference.GRPCInferenceService/ModelInfer"] == CALLS
    assert COUNTED["/adamix.v1.AdapterService/WatchTasks"] == COUNTED[STREAM] == STREAMS
    assert COUNTED[REGISTER] == UPLOADS
    assert set(COUNTED) == {
        method
        for method, need in NEEDS.items()
        if need not in ("nothing", "identity", "admin", "keys") and "AdminService" not in method
    }


# ---------------------------------------------------------------- over the wire

Start = Callable[..., Awaitable[Harness]]


class Servers:
    """Front ends on one store, which borrow from one lender if there are several."""

    def __init__(self, store: Path, spec: BackboneSpec, open_one: Start) -> None:
        self.front_ends: list[Harness] = []
        self._store, self._spec, self._open = store, spec, open_one
        self.lending = Lending(lambda name, loans: self.front_ends[int(name)].supervisor.tell(loans))

    async def start(self, count: int) -> None:
        for number in range(count):
            harness = await self._open(number=number, front_ends=count)
            self.front_ends.append(harness)
            if count > 1:
                harness.supervisor.lend = lambda asks, name=str(number): self.lending.take(name, asks)  # type: ignore[misc]

    def set(self, quotas: Quotas) -> None:
        """The quotas of tenant `default` from now on."""
        catalog = Catalog(self._store, backbone_fingerprint=self._spec.fingerprint, make=False)
        catalog.tenants.update("default", quotas=quotas)
        catalog.close()
        for harness in self.front_ends:
            harness.supervisor.tell(Refresh(revision=1 << 40))

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        while not await condition():  # noqa: ASYNC110 - the condition may be anything
            await asyncio.sleep(0.01)


@pytest.fixture
async def servers(
    store: Path, tokenizer_file: Path, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter
) -> AsyncIterator[Servers]:
    seed("sst2", make_adapter())
    async with AsyncExitStack() as stack:

        async def open_one(**part: int) -> Harness:
            return await stack.enter_async_context(serving(store, tokenizer_file, spec, **part))

        yield Servers(store, spec, open_one)


def request(count: int = 1) -> inference_pb2.PredictRequest:
    # Four tokens each: [CLS] w1 w2 [SEP].
    return inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1 w2")] * count)


def streamed(name: str) -> inference_pb2.PredictStreamRequest:
    return inference_pb2.PredictStreamRequest(id=name, input=request().inputs[0])


async def test_a_bug_before_the_message_is_told_by_its_id_alone_and_keeps_no_slot() -> None:
    quota = Quota(lambda _tenant: Quotas(concurrent_calls=1))
    broken = True

    class Broken(Admission):
        def enter(self) -> None:
            if broken:
                raise RuntimeError("what nobody is to read")
            super().enter()

    async with BareBoundary(quota=quota, admission=Broken()) as bare:
        for _ in range(2):
            failed = await failure(bare.predict())
            assert failed.code() is grpc.StatusCode.INTERNAL
            assert "nobody" not in failed.details()
        broken = False
        await bare.predict()


async def test_a_refusal_over_the_wire(servers: Servers) -> None:
    servers.set(Quotas(input_tokens_per_s=40))
    await servers.start(1)
    (harness,) = servers.front_ends
    await harness.inference.Predict(request(30))
    status = status_of(await failure(harness.inference.Predict(request())))
    found = details(status)
    assert found["ErrorInfo"].reason == "QUOTA_INPUT_TOKENS_PER_S"
    assert found["QuotaFailure"].violations[0].subject == "tenants/default"
    assert dict(found["ErrorInfo"].metadata)["limit"] == "40"
    # 80 are owed: two seconds, less what the call took, or up to a fifth more.
    assert 1.8 < found["RetryInfo"].retry_delay.ToNanoseconds() / 1e9 < 2.45
    # The whole protocol is charged, and a stream's inputs one by one; the stream goes on.
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"w1 w2")
    infer = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel).ModelInfer
    message = open_inference_pb2.ModelInferRequest(model_name="sst2", inputs=[tensor])
    assert await refusal(infer(message)) == (EXHAUSTED, "QUOTA_INPUT_TOKENS_PER_S")
    stream = harness.inference.PredictStream()
    await stream.write(streamed("a"))
    answer = await stream.read()
    assert answer.prediction.error.code == EXHAUSTED.value[0]
    servers.set(NO_QUOTAS)
    await servers.until(lambda: _is_answered(harness))
    await stream.write(streamed("b"))
    assert (await stream.read()).prediction.WhichOneof("result") == "classification"
    await stream.done_writing()


async def _is_answered(harness: Harness) -> bool:
    try:
        await harness.inference.Predict(request())
    except grpc.RpcError:
        return False
    return True


async def test_what_the_engine_has_no_room_for_is_not_charged(servers: Servers) -> None:
    servers.set(Quotas(input_tokens_per_s=1_000))
    await servers.start(1)
    (harness,) = servers.front_ends
    harness.kill_engine()
    await harness.until(lambda: not harness.front_end._link.is_up)
    for _ in range(5):
        assert (await refusal(harness.inference.Predict(request(64))))[1] == "ENGINE_RESTARTING"
    harness.start_engine()
    await harness.until(lambda: harness.front_end._link.is_up)
    await harness.inference.Predict(request())


@pytest.mark.parametrize("count", [1, 3])
async def test_a_stream_counts_for_its_whole_life_and_over_all_front_ends(servers: Servers, count: int) -> None:
    servers.set(Quotas(concurrent_streams=1))
    await servers.start(count)
    first, last = servers.front_ends[0], servers.front_ends[-1]
    stream = first.inference.PredictStream()
    await stream.write(streamed("a"))
    await stream.read()
    for harness in servers.front_ends:
        other = harness.inference.PredictStream()
        assert await refusal(other.read()) == (EXHAUSTED, "QUOTA_CONCURRENT_STREAMS")
        # Calls are no streams, and probes are neither.
        await harness.inference.Predict(request())
    stream.cancel()

    async def is_let_in() -> bool:
        other = last.inference.PredictStream()
        try:
            await other.write(streamed("b"))
            await other.read()
        except grpc.RpcError:
            return False
        await other.done_writing()
        return True

    await servers.until(is_let_in)


async def test_one_at_a_time_over_three_front_ends_in_turn_and_never_two(servers: Servers) -> None:
    servers.set(Quotas(concurrent_calls=1))
    await servers.start(3)
    # One after the other, without a pause: nobody is refused.
    for i in range(12):
        await servers.front_ends[i % 3].inference.Predict(request())
    for harness in servers.front_ends:
        harness.engine.hold = True
    held = [asyncio.create_task(_outcome(harness)) for harness in servers.front_ends]
    await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
    await servers.front_ends[0].until(lambda: sum(task.done() for task in held) == 2)
    assert [task.result() for task in held if task.done()] == ["QUOTA_CONCURRENT_CALLS"] * 2
    await servers.front_ends[0].until(lambda: any(harness.engine.held for harness in servers.front_ends))
    for harness in servers.front_ends:
        harness.engine.hold = False
        harness.engine.answer_all()
    assert sorted([await task for task in held]) == ["", "QUOTA_CONCURRENT_CALLS", "QUOTA_CONCURRENT_CALLS"]


async def _outcome(harness: Harness) -> str:
    try:
        await harness.inference.Predict(request())
    except grpc.aio.AioRpcError as error:
        return str(details(status_of(error))["ErrorInfo"].reason)
    return ""


async def test_a_rate_is_shared_by_front_ends_and_who_leaves_while_it_waits_holds_nothing(servers: Servers) -> None:
    servers.set(Quotas(input_tokens_per_s=100, concurrent_calls=2))
    await servers.start(2)
    one, two = servers.front_ends
    await one.inference.Predict(request(64))
    assert await _outcome(two) == "QUOTA_INPUT_TOKENS_PER_S"
    servers.set(Quotas(concurrent_calls=1))
    await servers.until(lambda: _is_answered(two))
    await asyncio.sleep(0.2)  # What was kept for later is given back.
    one.supervisor.lend = None
    waiting = one.inference.Predict(request())
    await asyncio.sleep(0.05)
    waiting.cancel()
    await servers.until(lambda: _is_answered(two))


async def test_a_supervisor_that_does_not_answer_is_waited_for_once(servers: Servers) -> None:
    servers.set(Quotas(input_tokens_per_s=3_000, concurrent_calls=4))
    await servers.start(2)
    one, two = servers.front_ends
    one.supervisor.lend = None
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(one.inference.Predict(request()) for _ in range(2)))
    assert asyncio.get_running_loop().time() - began >= LENDER_SILENCE_S
    # Half of both is its part, and nobody is asked for it.
    waiting = one.supervisor.from_child.qsize()
    await one.inference.Predict(request(64))
    one.engine.hold = True
    held = [asyncio.create_task(_outcome(one)) for _ in range(2)]
    await one.until(lambda: len(one.engine.held) == 2)
    assert await _outcome(one) == "QUOTA_CONCURRENT_CALLS"
    assert not any(isinstance(frame, Asks) for frame in list(one.supervisor.from_child._queue)[waiting:])  # type: ignore[attr-defined] # a deque
    one.engine.hold = False
    one.engine.answer_all()
    assert await asyncio.gather(*held) == ["", ""]
    # The other one has its supervisor.
    await two.inference.Predict(request(64))


async def test_registrations_beyond_the_quota_are_refused_before_a_byte_of_them(servers: Servers) -> None:
    servers.set(Quotas(registrations_per_minute=1, concurrent_uploads=1))
    await servers.start(1)
    (harness,) = servers.front_ends

    first = harness.adapters.RegisterAdapter()
    await first.write(adapters_pb2.RegisterAdapterRequest(header=adapters_pb2.RegisterAdapterHeader(task="sst2")))
    await asyncio.sleep(0.1)
    assert await refusal(harness.adapters.RegisterAdapter()) == (EXHAUSTED, "QUOTA_CONCURRENT_UPLOADS")
    first.cancel()
    await asyncio.sleep(0.1)
    assert await refusal(harness.adapters.RegisterAdapter()) == (EXHAUSTED, "QUOTA_REGISTRATIONS_PER_MINUTE")
    # Probes, identities and operators are not counted.
    servers.set(Quotas(concurrent_calls=0))
    await servers.until(lambda: _is_refused(harness))
    await harness.server.GetServerInfo(server_pb2.GetServerInfoRequest())


async def _is_refused(harness: Harness) -> bool:
    return not await _is_answered(harness)


async def test_tenants_that_set_no_quota_have_the_servers(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        harnesses, "FrontEndSettings", partial(FrontEndSettings, default_quotas={"concurrent_calls": 0})
    )
    await servers.start(1)
    assert await _outcome(servers.front_ends[0]) == "QUOTA_CONCURRENT_CALLS"
