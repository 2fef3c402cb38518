"""Names, statuses and conversions: pure functions, and a storm of mutated messages over a real channel."""

import random
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from adamix import errors
from adamix.errors import AdamixError, Code, FailedPrecondition, InternalError, InvalidInput, InvalidRequest
from adamix.files.manifest import HeadSpec
from adamix_client.status import from_status
from adamix_protos.v1 import inference_pb2
from adamix_server.api import answers, status
from adamix_server.api.resource_names import parse_task
from adamix_server.frontend import convert
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing


def prediction(head: HeadSpec, payload: bytes, *, return_logits: bool = False) -> inference_pb2.Prediction:
    message = inference_pb2.Prediction()
    convert.fill_result(message, answers.read(head, payload))
    if return_logits:
        message.logits.extend(answers.unpack(payload))
    return message


@pytest.mark.parametrize("name", ["a", "sst2", "a.b_c-d", "0", "a" * 63, "tenants/default/tasks/sst2"])
def test_ids_and_full_names_are_accepted(name: str) -> None:
    assert parse_task(name, "default") == ("default", name.rsplit("/", 1)[-1])


@pytest.mark.parametrize(
    "name",
    [
        "A", ".a", "a.", "a..b", "a" * 64, "ä", "a b", "a\n", "a\x00", "../x", "/a", "a/", "tenants/default/tasks/",
        "tenants/default/tasks/a/versions/b", "tenants/../tasks/a", "tasks/a", "%2e%2e", "\u202ea", "е",
    ],
)  # fmt: skip
def test_anything_else_is_not_a_name(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_task(name, "default", "inputs[1].task")
    assert caught.value.field == "inputs[1].task"


@given(st.text(max_size=80))
def test_a_name_is_an_id_or_an_error(name: str) -> None:
    try:
        parts = parse_task(name, "default")
    except InvalidRequest:
        return
    for part in parts:
        assert part.isascii()
        assert "/" not in part
        assert ".." not in part


def test_a_full_name_says_its_tenant_and_a_bare_one_the_callers() -> None:
    assert parse_task("tenants/other/tasks/a", "default") == ("other", "a")
    assert parse_task("a", "acme") == ("acme", "a")


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AdamixError)]
)
def test_every_error_survives_the_wire(kind: type[AdamixError]) -> None:
    sent = kind("what is wrong", retry_after_s=0.125, field="inputs[0].text")
    received = from_status(status.to_status(sent, "tenants/t/tasks/x"))
    assert received.code is sent.code
    assert (received.message, received.reason) == ("what is wrong", sent.reason)
    assert received.retry_after_s is not None
    assert 0.1 <= received.retry_after_s <= 0.15
    # The kinds of bad input are one to a client: it has the reason and the field.
    assert isinstance(received, InvalidRequest if issubclass(kind, InvalidInput) else kind)
    # Only a bad request has a bad field.
    assert received.field == ("inputs[0].text" if sent.code is Code.INVALID_ARGUMENT else None)


def test_a_status_never_outgrows_the_trailers() -> None:
    error = InvalidRequest("ä" * 10_000, field="inputs[0].text")
    sent = status.to_status(error, "x" * 10_000)
    assert len(sent.message.encode()) <= 512
    assert sum(len(key) + len(value) for key, value in status.to_trailers(error, sent)) < 4096


def test_a_status_of_somebody_else_is_understood() -> None:
    plain = from_status(status_pb2.Status(code=2, message="unknown to us"))
    assert (plain.code, plain.message) == (Code.INTERNAL, "unknown to us")
    foreign = status_pb2.Status(code=8, message="quota")
    foreign.details.add().Pack(error_details_pb2.DebugInfo(detail="x"))
    assert from_status(foreign).code is Code.RESOURCE_EXHAUSTED


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_scores_are_probabilities_for_any_finite_logits(logits: list[float]) -> None:
    payload = np.asarray(logits, "<f4").tobytes()
    head = HeadSpec(type="classification", pooling="mean", num_labels=len(logits))
    scores = prediction(head, payload).classification.scores
    assert sum(scores) == pytest.approx(1.0, abs=1e-5)
    assert all(0 <= score <= 1 for score in scores)
    many = HeadSpec(type="multilabel", pooling="mean", num_labels=len(logits))
    assert all(0 <= s <= 1 for s in prediction(many, payload).multi_label.scores)


def test_multi_label_at_its_threshold_and_regression_at_its_bounds() -> None:
    half = HeadSpec(type="multilabel", pooling="mean", num_labels=3)
    found = prediction(half, np.asarray([-1, 0, 1], "<f4").tobytes(), return_logits=True)
    assert list(found.multi_label.label_ids) == [1, 2]
    assert list(found.logits) == [-1, 0, 1]
    clipped = HeadSpec(type="regression", pooling="mean", clip=(0.0, 5.0))
    for value, expected in ((-1.0, 0.0), (2.5, 2.5), (9.0, 5.0)):
        payload = np.asarray([value], "<f4").tobytes()
        assert prediction(clipped, payload).regression.score == expected


def test_a_prediction_looks_up_only_the_labels_it_names() -> None:
    class Counted(dict[str, str]):
        lookups = 0

        def __getitem__(self, key: str) -> str:
            self.lookups += 1
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            self.lookups += 1
            return super().get(key, default)

    payload = np.asarray([-1, 4, -1, 3], "<f4").tobytes()
    names = {"0": "a", "1": "b", "2": "c", "3": "d"}
    for id2label, labels in ((Counted(names), ["b", "d"]), (None, ["LABEL_1", "LABEL_3"])):
        one = HeadSpec(type="classification", pooling="mean", num_labels=4, id2label=id2label)
        assert prediction(one, payload).classification.label == labels[0]
        many = HeadSpec(type="multilabel", pooling="mean", num_labels=4, id2label=id2label)
        assert prediction(many, payload).multi_label.labels == labels
        if id2label is not None:
            assert id2label.lookups == 3


def test_an_embedding_of_zeros_stays_zero() -> None:
    head = HeadSpec(type="embedding", pooling="mean", normalize=True)
    found = prediction(head, bytes(16))
    assert list(found.embedding.values) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("head", "values", "error"),
    [
        (HeadSpec(type="classification", pooling="mean", num_labels=3), [1.0, 2.0], InternalError),
        (HeadSpec(type="regression", pooling="mean"), [], InternalError),
        (HeadSpec(type="embedding", pooling="mean", dim=4), [1.0] * 3, InternalError),
        (HeadSpec(type="classification", pooling="mean", num_labels=2), [1.0, np.inf], FailedPrecondition),
    ],
)
def test_outputs_a_head_cannot_have_made(head: HeadSpec, values: list[float], error: type[AdamixError]) -> None:
    with pytest.raises(error):
        prediction(head, np.asarray(values, "<f4").tobytes())


async def test_mutated_messages_never_get_unknown_or_stop_the_server(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    inputs = [
        inference_pb2.PredictInput(task="sst2", text="w1 w2"),
        inference_pb2.PredictInput(task="sst2", pair=inference_pb2.TextPair(first="w1", second="w2")),
        inference_pb2.PredictInput(task="sst2", token_ids=inference_pb2.TokenIds(ids=[2, 5, 3])),
    ]
    good = inference_pb2.PredictRequest(inputs=inputs).SerializeToString()
    choose = random.Random(0)

    def mutated() -> bytes:
        data = bytearray(good)
        for _ in range(choose.randint(1, 4)):
            where = choose.randrange(len(data))
            match choose.randrange(3):
                case 0:
                    data[where] ^= 1 << choose.randrange(8)
                case 1:
                    del data[where]
                case _:
                    data.insert(where, choose.randrange(256))
        return bytes(data)

    harness = await start_serving()
    call = harness.channel.unary_unary("/adamix.v1.InferenceService/Predict")
    codes = set()
    for _ in range(400):
        try:
            await call(mutated(), timeout=5)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
    assert codes <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    }
    assert (await harness.inference.Predict(inference_pb2.PredictRequest(inputs=inputs))).predictions
