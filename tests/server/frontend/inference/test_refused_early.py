"""What is refused before it costs anything, as callers see it: in a call, in a stream, in the other protocol."""

import asyncio
import dataclasses
from typing import Any

import grpc.aio
import pytest

from adamix_protos.open_inference import open_inference_pb2, open_inference_pb2_grpc
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.access.quotas import Quotas
from adamix_server.catalog.access import NO_ACCESS, TenantRow
from adamix_server.catalog.rows import Snapshot
from adamix_server.catalog.store import Catalog
from adamix_server.channel.engine_frames import Credit, QueueState
from adamix_server.config import AccessSettings, FrontEndSettings
from adamix_server.frontend.inference.tokenization import Tokenizer
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import ENGINE_ID, FakeEngine
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import details, failure, reason, status_of

EXHAUSTED, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
ONE = pb.PredictInput(task="sst2", text="w1 w2")


def tenants_are(monkeypatch: pytest.MonkeyPatch, **quotas: Quotas) -> None:
    """What every catalog says of tenants."""
    rows = {
        name: TenantRow(tenant=name, etag="", create_time_us=0, update_time_us=0, quotas=own)
        for name, own in quotas.items()
    }
    read, access = Catalog.snapshot, dataclasses.replace(NO_ACCESS, tenants=rows)

    def snapshot(catalog: Catalog) -> Snapshot:
        return dataclasses.replace(read(catalog), access=access)

    monkeypatch.setattr(Catalog, "snapshot", snapshot)


def counts(harness: Harness, metric: str) -> dict[tuple[str, ...], float]:
    """What was counted and not reported yet."""
    pending = harness.front_end._recorder._pending
    return {labels: values[0] for (name, labels), values in pending.items() if name == metric}


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the tokenizer had."""
    calls: list[int] = []
    tokenize = Tokenizer.tokenize

    async def counted(tokenizer: Tokenizer, texts: Any) -> Any:
        calls.append(len(texts))
        return await tokenize(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "tokenize", counted)
    return calls


async def test_a_tenant_that_has_its_share_of_the_queue_is_refused_before_its_texts_are_read(
    start_serving: StartServing,
    seed: Seed,
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
    tokenized: list[int],
) -> None:
    tenants_are(monkeypatch, default=Quotas(), other=Quotas())
    seed("sst2", make_adapter())

    def prepare(engine: FakeEngine) -> None:
        engine.credit, engine.hold = (8, 10_000), True

    # Whoever the callers are: where they say it, there may be others.
    settings = FrontEndSettings(access=AccessSettings(auth=("keys",)))
    me = {"metadata": said("me")}
    harness = await start_serving(prepare=prepare, callers=Callers({"me": of_role("caller")}), settings=settings)
    one = pb.PredictRequest(inputs=[ONE])
    calls = [asyncio.ensure_future(harness.inference.Predict(one, **me)) for _ in range(4)]
    await harness.until(lambda: len(harness.engine.held) == 4)
    error = await failure(harness.inference.Predict(one, **me))
    found = details(status_of(error))
    assert (error.code(), found["ErrorInfo"].reason) == (EXHAUSTED, "TENANT_QUEUE_FULL")
    assert found["RetryInfo"].retry_delay.ToMilliseconds() > 0
    assert "other" not in str(error)
    assert tokenized == [1] * 4
    assert counts(harness, "adamix_tenant_rejected_total") == {("default", "TENANT_QUEUE_FULL"): 1}
    assert counts(harness, "adamix_rejected_total") == {("TENANT_QUEUE_FULL",): 1}
    # A call of several, and a stream, wait instead.
    several = asyncio.ensure_future(harness.inference.Predict(pb.PredictRequest(inputs=[ONE] * 3), **me))
    stream = harness.inference.PredictStream(**me)
    await stream.write(pb.PredictStreamRequest(id="s", input=ONE))
    harness.engine.hold = False
    harness.engine.answer_all()
    await asyncio.gather(*calls)
    assert len((await several).predictions) == 3
    assert (await stream.read()).prediction.WhichOneof("result") == "classification"
    stream.cancel()


async def test_while_there_is_no_engine_no_text_is_read(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, tokenized: list[int]
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.stall_engine()
    await harness.until(lambda: harness.front_end._link.is_stalled)
    one = pb.PredictRequest(inputs=[ONE])
    assert reason(status_of(await failure(harness.inference.Predict(one)))) == "ENGINE_STALLED"
    harness.kill_engine()
    await harness.until(lambda: not harness.front_end._link.is_up)
    assert reason(status_of(await failure(harness.inference.Predict(one)))) == "ENGINE_RESTARTING"
    assert tokenized == []
    harness.start_engine()
    await harness.until(lambda: harness.front_end._link.is_up)
    assert len((await harness.inference.Predict(one)).predictions) == 1


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, tokenized: list[int]
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    assert harness.front_end._link.moving is not None
    connection = harness.front_end._link.moving
    queue = QueueState(tokens_per_s=100.0, queued_tokens=1000, active_weight=1.0, tenants={"default": 1000})
    busy = Credit(engine_id=ENGINE_ID, generation=1, inputs=0, tokens=0, queue=queue)

    async def be_busy() -> None:
        harness.engine.emit(busy)
        await harness.until(lambda: connection.queue is queue)

    await be_busy()
    one = pb.PredictRequest(inputs=[ONE])
    error = await failure(harness.inference.Predict(one, timeout=5))
    found = details(status_of(error))
    assert (error.code(), found["ErrorInfo"].reason) == (LATE, "DEADLINE_UNREACHABLE")
    # Once and a half of ten seconds, a batch of 64 and a half, and not five seconds; give or take a fifth.
    assert 8_000 <= found["RetryInfo"].retry_delay.ToMilliseconds() <= 14_000
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="text", datatype="BYTES", shape=[1], contents={"bytes_contents": [b"w1 w2"]}
    )
    infer = open_inference_pb2.ModelInferRequest(model_name="sst2", inputs=[tensor])
    error = await failure(
        open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel).ModelInfer(infer, timeout=5)
    )
    assert (error.code(), details(status_of(error))["ErrorInfo"].reason) == (LATE, "DEADLINE_UNREACHABLE")
    assert tokenized == []
    # Each input of a stream has a deadline of its own; the call's is not one.
    stream = harness.inference.PredictStream()
    await stream.write(pb.PredictStreamRequest(id="soon", input=ONE, timeout_s=5))
    answer = await stream.read()
    assert (answer.id, reason(answer.prediction.error)) == ("soon", "DEADLINE_UNREACHABLE")
    assert answer.prediction.error.code == LATE.value[0]
    await stream.write(pb.PredictStreamRequest(id="later", input=ONE, timeout_s=60))
    answer = await stream.read()
    assert (answer.id, answer.prediction.WhichOneof("result")) == ("later", "classification")
    stream.cancel()
    rejected = counts(harness, "adamix_rejected_total"), counts(harness, "adamix_tenant_rejected_total")
    assert rejected == ({("DEADLINE_UNREACHABLE",): 3}, {("default", "DEADLINE_UNREACHABLE"): 3})
    await be_busy()
    assert len((await harness.inference.Predict(one, timeout=30)).predictions) == 1


async def test_a_tenant_without_a_quota_of_the_queue_is_answered_nothing(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants_are(monkeypatch, default=Quotas(queued_tokens=0))
    seed("sst2", make_adapter())
    harness = await start_serving()
    error = await failure(harness.inference.Predict(pb.PredictRequest(inputs=[ONE])))
    found = details(status_of(error))
    assert (error.code(), found["ErrorInfo"].reason) == (EXHAUSTED, "QUOTA_QUEUED_TOKENS")
    assert "RetryInfo" not in found
    assert found["QuotaFailure"].violations[0].subject == "tenants/default"
    assert harness.engine.submits == []
