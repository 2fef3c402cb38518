"""Predict over a real channel: every input for itself, and every failure with its status."""

import asyncio
from typing import Any

import grpc.aio
import numpy as np
import pytest

from adamix.errors import InternalError, Overloaded
from adamix.files.manifest import HeadSpec
from adamix_protos.open_inference import open_inference_pb2, open_inference_pb2_grpc
from adamix_protos.v1 import inference_pb2 as pb
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role
from adamix_testing.refusals import details, failure, reason, status_of


def request(*inputs: dict[str, Any], **options: Any) -> pb.PredictRequest:
    return pb.PredictRequest(inputs=[pb.PredictInput(**fields) for fields in inputs], **options)


async def test_one_call_mixes_heads_of_all_kinds(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    heads = {
        "intent": HeadSpec(
            type="classification", pooling="mean", num_labels=3, id2label={"0": "a", "1": "b", "2": "c"}
        ),
        "tags": HeadSpec(type="multilabel", pooling="cls", num_labels=4, threshold=0.9),
        "score": HeadSpec(type="regression", pooling="mean", clip=(-1.0, 1.0)),
        "vector": HeadSpec(type="embedding", pooling="mean", normalize=True),
    }
    digests = {task: seed(task, make_adapter(head)) for task, head in heads.items()}
    harness = await start_serving(
        prepare=lambda engine: engine.widths.update(
            {digests["intent"]: 3, digests["tags"]: 4, digests["score"]: 1, digests["vector"]: 8}
        )
    )
    response = await harness.inference.Predict(
        request(*({"task": task, "text": "w1 w2"} for task in heads), return_logits=True)
    )
    intent, tags, score, vector = response.predictions
    assert [p.version for p in response.predictions] == list(digests.values())
    assert [p.task for p in response.predictions] == list(heads)
    # Four tokens: [CLS] w1 w2 [SEP]; the engine answers 0, 4, 8, …
    assert list(intent.logits) == [0, 4, 8]
    assert (intent.classification.label, intent.classification.label_id) == ("c", 2)
    powers = np.exp([0.0, 4.0, 8.0])
    np.testing.assert_allclose(intent.classification.scores, powers / powers.sum(), rtol=1e-6)
    assert list(tags.multi_label.label_ids) == [1, 2, 3]
    assert list(tags.multi_label.labels) == ["LABEL_1", "LABEL_2", "LABEL_3"]
    assert score.regression.score == 0.0
    np.testing.assert_allclose(np.linalg.norm(vector.embedding.values), 1.0, rtol=1e-6)
    assert response.timing.batch_requests == 4
    assert response.timing.compute_s == pytest.approx(0.002)


async def test_with_truncation_right_a_text_may_be_as_long_as_a_message(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """On every way in, singly and in pairs; without it 64 KiB is the limit."""
    seed("sst2", make_adapter())
    harness = await start_serving()
    long = "w1 " * 1_000_000
    content: list[dict[str, Any]] = [{"text": long}, {"pair": pb.TextPair(first="w1", second=long)}]
    cut = [{"task": "sst2", "truncation": pb.TRUNCATION_RIGHT, **part} for part in content]
    for part in cut:
        answer = await harness.inference.Predict(request(part))
        assert not answer.predictions[0].HasField("error")
    stream = harness.inference.PredictStream()
    await stream.write(pb.PredictStreamRequest(id="1", input=pb.PredictInput(**cut[0])))
    assert not (await stream.read()).prediction.HasField("error")
    await stream.done_writing()
    open_inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="text", datatype="BYTES", shape=[1], contents={"bytes_contents": [long.encode()]}
    )
    infer = open_inference_pb2.ModelInferRequest(model_name="sst2", inputs=[tensor])
    infer.parameters["truncation"].string_param = "right"
    await open_inference.ModelInfer(infer)
    rows = [list(np.frombuffer(row.token_ids, "<i4")) for submit in harness.engine.submits for row in submit.rows]
    single, pair, streamed, inferred = rows
    assert single == streamed == inferred
    assert (len(single), len(pair)) == (16, 16)
    del infer.parameters["truncation"]
    for call in (
        harness.inference.Predict(request({"task": "sst2", **content[0]})),
        open_inference.ModelInfer(infer),
    ):
        error = await failure(call)
        assert reason(status_of(error)) == "TEXT_TOO_LARGE"


async def test_bad_inputs_fail_alone_and_say_why(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    seed("theirs", make_adapter(seed=1), tenant="other")
    seed("old", make_adapter(seed=2, fingerprint="c" * 64))
    seed("writer", make_adapter(HeadSpec(type="causal_lm", pooling="last"), seed=3))
    long = " ".join(["w1"] * 20)
    bad: list[tuple[dict[str, Any], str, str]] = [
        ({"task": "sst2", "text": ""}, "TEXT_EMPTY", "text is empty"),
        ({"task": "sst2", "text": " \n"}, "TEXT_EMPTY", "text is empty"),
        ({"task": "sst2"}, "TEXT_EMPTY", "inputs[2] has no text, pair or token_ids"),
        (
            {"task": "sst2", "text": long},
            "TEXT_TOO_LONG",
            "text has 22 tokens, the task's limit is 16; shorten it or ask for truncation RIGHT",
        ),
        ({"task": "sst2", "text": "x" * (65 << 10)}, "TEXT_TOO_LARGE", "text is over 64 KiB"),
        ({"task": "sst2", "token_ids": pb.TokenIds(ids=[2, 64, 3])}, "TOKEN_ID_OUT_OF_RANGE", ""),
        ({"task": "sst2", "token_ids": pb.TokenIds(ids=[2, -1, 3])}, "TOKEN_ID_OUT_OF_RANGE", ""),
        ({"task": "sst2", "token_ids": pb.TokenIds(ids=[2] * 17)}, "TEXT_TOO_LONG", ""),
        ({"task": "sst2", "token_ids": pb.TokenIds()}, "TEXT_EMPTY", ""),
        ({"task": "", "text": "w1"}, "TASK_MISSING", "inputs[9].task is missing"),
        ({"task": "../etc", "text": "w1"}, "ID_INVALID", ""),
        ({"task": "nobody", "text": "w1"}, "NOT_FOUND", "task not found"),
        ({"task": "theirs", "text": "w1"}, "NOT_FOUND", "task not found"),
        ({"task": "tenants/other/tasks/theirs", "text": "w1"}, "NOT_FOUND", "task not found"),
        ({"task": "sst2", "version": "d" * 64, "text": "w1"}, "NOT_FOUND", "version not found"),
        ({"task": "sst2", "version": "latest", "text": "w1"}, "DIGEST_INVALID", ""),
        ({"task": "old", "text": "w1"}, "BACKBONE_CHANGED", ""),
        ({"task": "writer", "text": "w1"}, "WRONG_HEAD", "this task generates text; call Generate"),
    ]
    harness = await start_serving(callers=Callers({"": of_role("caller")}))
    good = {"task": "tenants/default/tasks/sst2", "text": "w1"}
    response = await harness.inference.Predict(request(*(fields for fields, _, _ in bad), good))
    for (_, expected, message), prediction in zip(bad, response.predictions, strict=False):
        assert prediction.WhichOneof("result") == "error"
        assert reason(prediction.error) == expected
        assert message in prediction.error.message
    assert response.predictions[-1].classification.label == "yes"
    too_long = details(response.predictions[3].error)
    assert too_long["BadRequest"].field_violations[0].field == "inputs[3].text"
    assert details(response.predictions[11].error)["ResourceInfo"].resource_name == "tenants/default/tasks/nobody"
    assert [len(submit.rows) for submit in harness.engine.submits] == [1]


async def test_a_call_whose_inputs_all_fail_alike_fails(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    error = await failure(harness.inference.Predict(request({"task": "x", "text": "w1"}, {"task": "y", "text": "w1"})))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "task not found"
    found = details(status_of(error))
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == ("NOT_FOUND", "adamix")
    assert found["ResourceInfo"].resource_name == "tenants/default/tasks/x"
    mixed = await harness.inference.Predict(request({"task": "x", "text": "w1"}, {"task": "sst2", "text": ""}))
    assert [reason(p.error) for p in mixed.predictions] == ["NOT_FOUND", "TEXT_EMPTY"]


@pytest.mark.parametrize("count", [0, 65])
async def test_a_call_has_1_to_64_inputs(harness: Harness, count: int) -> None:
    error = await failure(harness.inference.Predict(request(*[{"task": "x", "text": "w1"}] * count)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(status_of(error))["BadRequest"].field_violations[0].field == "inputs"


async def test_truncation_pairs_and_token_ids_reach_the_engine(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter(max_length=6))
    harness = await start_serving()
    await harness.inference.Predict(
        request(
            {"task": "sst2", "text": "w0 w1 w2 w3 w4 w5", "truncation": pb.TRUNCATION_RIGHT},
            {"task": "sst2", "pair": pb.TextPair(first="w0", second="w1 w2")},
            {"task": "sst2", "token_ids": pb.TokenIds(ids=[2, 9, 3])},
        )
    )
    (submit,) = harness.engine.submits
    ids = [np.frombuffer(row.token_ids, "<i4").tolist() for row in submit.rows]
    types = [row.type_ids and np.frombuffer(row.type_ids, "<i4").tolist() for row in submit.rows]
    assert ids == [[2, 4, 5, 6, 7, 3], [2, 4, 3, 5, 6, 3], [2, 9, 3]]
    assert types == [None, [0, 0, 0, 1, 1, 1], None]


async def test_overload_refuses_exactly_what_exceeds_the_credit(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())

    def prepare(engine: FakeEngine) -> None:
        engine.credit, engine.hold = (8, 10_000), True

    harness = await start_serving(prepare=prepare)
    one = request({"task": "sst2", "text": "w1"})
    calls = [asyncio.ensure_future(harness.inference.Predict(one)) for _ in range(10)]
    await harness.until(lambda: len(harness.engine.held) == 8 and sum(call.done() for call in calls) == 2)
    refused = [call.exception() for call in calls if call.done()]
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = details(status_of(error))
        assert found["ErrorInfo"].reason == "OVERLOADED"
        assert found["RetryInfo"].retry_delay.ToMilliseconds() >= 50
        assert "QuotaFailure" in found
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 50
    harness.engine.hold = False
    harness.engine.answer_all()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, pb.PredictResponse) for result in results) == 8
    # The credit has come back: all eight places are free again.
    again = await asyncio.gather(*(harness.inference.Predict(one) for _ in range(8)))
    assert len(again) == 8


async def test_a_call_of_more_inputs_than_there_is_credit_is_fed_in(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())

    def prepare(engine: FakeEngine) -> None:
        engine.credit = (5, 10_000)

    harness = await start_serving(prepare=prepare)
    response = await harness.inference.Predict(request(*[{"task": "sst2", "text": "w1"}] * 12))
    assert [prediction.WhichOneof("result") for prediction in response.predictions] == ["classification"] * 12
    rows = [row.id for submit in harness.engine.submits for row in submit.rows]
    assert rows == sorted(rows)
    assert [len(submit.rows) for submit in harness.engine.submits] == [5, 5, 2]


async def test_a_cancelled_call_is_cancelled_in_the_engine(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())

    def prepare(engine: FakeEngine) -> None:
        engine.credit, engine.hold = (2, 10_000), True

    harness = await start_serving(prepare=prepare)
    call = harness.inference.Predict(request(*[{"task": "sst2", "text": "w1"}] * 2))
    await harness.until(lambda: len(harness.engine.held) == 2)
    ids = [row.id for row in harness.engine.held]
    call.cancel()
    await harness.until(lambda: sorted(harness.engine.cancelled) == ids)
    # The engine's last events brought the credit back although nobody waited for them.
    harness.engine.hold = False
    response = await harness.inference.Predict(request(*[{"task": "sst2", "text": "w1"}] * 2))
    assert len(response.predictions) == 2


async def test_a_deadline_travels_to_the_engine_and_ends_the_call(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())

    def prepare(engine: FakeEngine) -> None:
        engine.hold = True

    harness = await start_serving(prepare=prepare)
    import time

    start = time.monotonic()
    one = request({"task": "sst2", "text": "w1"})
    error = await failure(harness.inference.Predict(one, timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (row,) = harness.engine.submits[0].rows
    assert start < row.deadline < start + 1.0
    await harness.until(lambda: harness.engine.cancelled == [row.id])
    # Without a deadline of its own a call gets the server's.
    call = harness.inference.Predict(one)
    await harness.until(lambda: len(harness.engine.submits) == 2)
    assert harness.engine.submits[1].rows[0].deadline - time.monotonic() == pytest.approx(60, abs=5)
    call.cancel()
    # One that asks for too long gets the most there is.
    call = harness.inference.Predict(one, timeout=5000)
    await harness.until(lambda: len(harness.engine.submits) == 3)
    assert harness.engine.submits[2].rows[0].deadline - time.monotonic() == pytest.approx(600, abs=5)
    call.cancel()


async def test_errors_of_the_engine_reach_their_input_only(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    good, bad = seed("good", make_adapter()), seed("bad", make_adapter(seed=1))

    def prepare(engine: FakeEngine) -> None:
        engine.fail = lambda row: InternalError("secret /etc/adapters") if row.digest == bad else None

    harness = await start_serving(prepare=prepare)
    response = await harness.inference.Predict(request({"task": "good", "text": "w1"}, {"task": "bad", "text": "w1"}))
    assert response.predictions[0].version == good
    error = response.predictions[1].error
    assert error.code == grpc.StatusCode.INTERNAL.value[0]
    assert error.message.startswith("internal error, id=")
    harness.engine.fail = lambda row: Overloaded("no slot is free", reason="NO_SLOT", retry_after_s=0.5)
    call_error = await failure(harness.inference.Predict(request({"task": "bad", "text": "w1"})))
    assert call_error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(status_of(call_error))["ErrorInfo"].reason == "NO_SLOT"


async def test_output_of_the_wrong_size_or_not_finite_is_an_error(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    one = request({"task": "sst2", "text": "w1"})
    harness.engine.widths[digest] = 2
    assert (await failure(harness.inference.Predict(one))).code() is grpc.StatusCode.INTERNAL
    harness.engine.widths[digest] = 3
    original = harness.engine._event
    import msgspec

    harness.engine._event = lambda row, n: msgspec.structs.replace(
        original(row, n), payload=np.full(3, np.nan, "<f4").tobytes()
    )
    error = await failure(harness.inference.Predict(one))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(status_of(error))["ErrorInfo"].reason == "NON_FINITE_OUTPUT"


async def test_an_explicit_version_answers_beside_the_live_one(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    old = seed("sst2", make_adapter(seed=1))
    new = seed("sst2", make_adapter(seed=2))
    harness = await start_serving()
    response = await harness.inference.Predict(
        request({"task": "sst2", "text": "w1"}, {"task": "sst2", "text": "w1", "version": old})
    )
    assert [prediction.version for prediction in response.predictions] == [new, old]
