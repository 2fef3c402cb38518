"""`/v1/predict` over a real connection: the answer that gRPC gives, in JSON, and refusals by field."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx2
import msgspec
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from adamix.files.manifest import HeadSpec
from adamix_client.connection import channel_options
from adamix_client.status import from_rpc_error
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.frontend.http import predict
from adamix_server.frontend.http.bodies import decode_json
from adamix_server.frontend.http.errors import status_of
from adamix_server.frontend.http.predict import to_document
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing


async def test_the_answer_is_that_of_grpc(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    heads = {
        "intent": HeadSpec(type="classification", pooling="mean", num_labels=3),
        "tags": HeadSpec(type="multilabel", pooling="cls", num_labels=4, threshold=0.9),
        "score": HeadSpec(type="regression", pooling="mean", clip=(-1.0, 1.0)),
        "vector": HeadSpec(type="embedding", pooling="mean", normalize=True),
    }
    digests = {task: seed(task, make_adapter(head)) for task, head in heads.items()}
    widths = {digests["intent"]: 3, digests["tags"]: 4, digests["score"]: 1, digests["vector"]: 8}
    harness = await start_serving(prepare=lambda engine: engine.widths.update(widths), http="127.0.0.1:0")
    body = {
        "inputs": [{"task": task, "text": "w1 w2"} for task in heads] + [{"task": "nobody", "text": "w1"}],
        "return_logits": True,
    }
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}") as client:
        answer = await client.post("/v1/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"]
    expected = await harness.inference.Predict(json_format.ParseDict(body, inference_pb2.PredictRequest()))
    document = json_format.MessageToDict(
        expected, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    found = answer.json()
    assert found["predictions"] == document["predictions"]
    assert found["timing"].keys() == document["timing"].keys()


# Body -> the reason and, where one is named, the field. The connection goes on after each.
MALFORMED = {
    "nothing": b"",
    "no JSON": b"hello",
    "half": b'{"inputs":[{"task":"sst2"',
    "two documents": b'{"inputs":[]}{"inputs":[]}',
    "a mark of its order": b'\xef\xbb\xbf{"inputs":[]}',
    "latin": '{"inputs":[{"task":"é"}]}'.encode("latin-1"),
    "UTF-16": '{"inputs":[]}'.encode("utf-16"),
    "an overlong letter": b'{"inputs":[{"task":"\xc1\xa1"}]}',
    "a surrogate": b'{"inputs":[{"task":"\xed\xa0\x80"}]}',
    "half of an escaped pair": b'{"inputs":[{"task":"\\ud800"}]}',
    "NaN": b'{"inputs":[],"return_logits":NaN}',
    "Infinity": b'{"inputs":[{"token_ids":{"ids":[Infinity]}}]}',
    "a comment": b'{"inputs":[]/**/}',
    "a last comma": b'{"inputs":[],}',
    "a bare line in a text": b'{"inputs":[{"text":"a\nb"}]}',
    "a name twice": b'{"inputs":[],"inputs":[]}',
    "a name twice, once escaped": b'{"inputs":[],"\\u0069nputs":[]}',
    "a name twice below": b'{"inputs":[{"task":"sst2","text":"w1","text" :"w2"}]}',
    "a name twice, once null": b'{"inputs":[{"task":null,"task":"sst2"}]}',
}
REFUSED = {
    b"[]": ("FIELD_INVALID", None),
    b'"text"': ("FIELD_INVALID", None),
    b"[" * 10_000: ("FIELD_INVALID", None),
    b'{"input":[]}': ("UNKNOWN_FIELD", "input"),
    b'{"inputs":[{"task":"sst2","txt":"w1"}]}': ("UNKNOWN_FIELD", "inputs[0].txt"),
    b'{"inputs":{"task":"sst2"}}': ("FIELD_INVALID", "inputs"),
    b'{"inputs":[{"task":1}]}': ("FIELD_INVALID", "inputs[0].task"),
    b'{"inputs":[{"token_ids":{"ids":[1.5]}}]}': ("FIELD_INVALID", "inputs[0].token_ids.ids[0]"),
    b'{"inputs":[{"task":"sst2","token_ids":{"ids":[4294967296]}}]}': ("FIELD_INVALID", "inputs[0]"),
    b'{"inputs":[{"task":"sst2","text":"w1","pair":{}}]}': ("FIELD_INVALID", "inputs[0]"),
    b'{"inputs":[{"task":"sst2","text":"w1","truncation":"LEFT"}]}': ("FIELD_INVALID", "inputs[0]"),
    b'{"return_logits":1}': ("FIELD_INVALID", "return_logits"),
}
CONTENT_TYPES = ("", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "json")


@pytest.fixture
async def http(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> AsyncIterator[httpx2.AsyncClient]:
    seed("sst2", make_adapter())
    harness = await start_serving(http="127.0.0.1:0")
    # One connection: what it is asked next shows what has become of it.
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}", limits=httpx2.Limits(max_connections=1)) as client:
        client.headers["x-harness"] = harness.address
        yield client


async def post(http: httpx2.AsyncClient, body: bytes, content_type: str = "application/json") -> httpx2.Response:
    headers = {"content-type": content_type} if content_type else {}
    return await http.post("/v1/predict", content=body, headers=headers)


async def test_bodies_that_are_none(http: httpx2.AsyncClient) -> None:
    for name, body in MALFORMED.items():
        answer = await post(http, body)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "MALFORMED_MESSAGE"), name
    for body, (reason, field) in REFUSED.items():
        answer = await post(http, body)
        error = answer.json()["error"]
        assert (answer.status_code, error["reason"], error["field"]) == (400, reason, field), body[:80]
        assert error["status"] == "INVALID_ARGUMENT"
    deep = b'{"inputs":' + b"[" * 100_000
    assert (await post(http, deep)).json()["error"]["reason"] in ("MALFORMED_MESSAGE", "FIELD_INVALID")
    for content_type in CONTENT_TYPES:
        answer = await post(http, b'{"inputs":[{"task":"sst2","text":"w1"}]}', content_type)
        error = answer.json()["error"]
        assert (answer.status_code, error["reason"]) == (415, "CONTENT_TYPE_UNSUPPORTED"), content_type
    for content_type in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
        assert (await post(http, b'{"inputs":[{"task":"sst2","text":"w1"}]}', content_type)).status_code == 200


INPUT = {"task": "sst2", "text": "w1"}
SAME_AS_GRPC: dict[str, dict[str, Any]] = {
    "no input": {},
    "65 inputs": {"inputs": [INPUT] * 65},
    "an unknown task": {"inputs": [{"task": "nobody", "text": "w1"}]},
    "an unknown task and no text": {"inputs": [{"task": "nobody"}]},
    "a task of another tenant": {"inputs": [{"task": "tenants/other/tasks/sst2", "text": "w1"}]},
    "an unknown version": {"inputs": [{**INPUT, "version": "0" * 64}]},
    "no task": {"inputs": [{"text": "w1"}]},
    "a path as a task": {"inputs": [{"task": "../up", "text": "w1"}]},
    "an encoded path as a task": {"inputs": [{"task": "%2e%2e%2fup", "text": "w1"}]},
    "a zero byte in a task": {"inputs": [{"task": "sst2\0", "text": "w1"}]},
    "no text": {"inputs": [{"task": "sst2"}]},
    "an empty text": {"inputs": [{"task": "sst2", "text": ""}]},
    "a text too long": {"inputs": [{"task": "sst2", "text": "w1 " * 40}]},
    "a text too large": {"inputs": [{"task": "sst2", "text": "w" * 600_000}]},
    "a token that there is not": {"inputs": [{"task": "sst2", "token_ids": {"ids": [1, 2, 10_000]}}]},
    "no token": {"inputs": [{"task": "sst2", "token_ids": {}}]},
    "an empty pair": {"inputs": [{"task": "sst2", "pair": {}}]},
}


async def test_refusals_are_those_of_grpc(http: httpx2.AsyncClient) -> None:
    async with grpc.aio.insecure_channel(http.headers["x-harness"], options=channel_options()) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for name, body in SAME_AS_GRPC.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Predict(json_format.ParseDict(body, inference_pb2.PredictRequest()))
            expected = from_rpc_error(caught.value)
            answer = await http.post("/v1/predict", json=body)
            error = answer.json()["error"]
            assert answer.status_code == status_of(expected), name
            found = error["status"], error["reason"], error["field"], error["message"]
            assert found == (expected.code.name, expected.reason, expected.field, expected.message), name


async def test_one_bad_input_fails_alone(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/predict", json={"inputs": [INPUT, {"task": "nobody", "text": "w1"}, INPUT]})
    first, second, third = answer.json()["predictions"]
    assert answer.status_code == 200
    assert first["classification"] == third["classification"]
    assert second["error"]["code"] == 5


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.long)])
async def test_many_calls_at_once(http: httpx2.AsyncClient, count: int) -> None:
    async with httpx2.AsyncClient(
        base_url=http.base_url, limits=httpx2.Limits(max_connections=100), timeout=50
    ) as client:
        # Every tenth is a bad one, and fails alone.
        bodies = [{"inputs": [INPUT if number % 10 else {"task": "nobody", "text": "w1"}]} for number in range(count)]
        answers = await asyncio.gather(*(client.post("/v1/predict", json=body) for body in bodies))
    assert [answer.status_code for answer in answers] == [200 if number % 10 else 404 for number in range(count)]
    assert len({answer.headers["x-request-id"] for answer in answers}) == count


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
contents = st.one_of(
    st.fixed_dictionaries({"text": texts}),
    st.fixed_dictionaries({"pair": st.fixed_dictionaries({}, optional={"first": texts, "second": texts})}),
    st.fixed_dictionaries(
        {
            "token_ids": st.fixed_dictionaries(
                {}, optional={"ids": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)}
            )
        }
    ),
    st.just({}),
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "task": texts,
        "version": texts,
        "truncation": st.sampled_from(["TRUNCATION_ERROR", "TRUNCATION_RIGHT", 0, 1, 2]),
    },
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(st.builds(lambda left, right: left | right, fields, contents), max_size=4),
        "return_logits": st.booleans(),
    },
)


@given(body=bodies, is_ascii=st.booleans())
def test_bodies_are_read_as_protobuf_reads_them(body: dict[str, Any], is_ascii: bool) -> None:
    expected = json_format.ParseDict(body, inference_pb2.PredictRequest())
    raw = json.dumps(body, ensure_ascii=is_ascii).encode()
    decoder = msgspec.json.Decoder(predict.PredictRequest)
    assert predict.to_message(decode_json(raw, decoder, predict.num_names)) == expected
    assert decode_json(raw, msgspec.json.Decoder()) == body


# Of the smallest there are, which have few digits, protobuf writes more digits than it takes to tell them apart.
floats = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
results = st.one_of(
    st.builds(
        lambda label, scores: {"classification": inference_pb2.Classification(label=label, label_id=1, scores=scores)},
        texts,
        st.lists(floats, max_size=4),
    ),
    st.builds(
        lambda labels, scores: {"multi_label": inference_pb2.MultiLabel(labels=labels, scores=scores)},
        st.lists(texts, max_size=3),
        st.lists(floats, max_size=4),
    ),
    st.builds(lambda score: {"regression": inference_pb2.Regression(score=score)}, floats),
    st.builds(lambda values: {"embedding": inference_pb2.Embedding(values=values)}, st.lists(floats, max_size=4)),
    st.just({}),
)


@given(found=st.lists(results, max_size=3), logits=st.lists(floats, max_size=3), has_timing=st.booleans())
def test_answers_are_written_as_protobuf_writes_them(
    found: list[dict[str, Any]], logits: list[float], has_timing: bool
) -> None:
    answer = inference_pb2.PredictResponse(
        predictions=[inference_pb2.Prediction(task="t", version="v", logits=logits, **result) for result in found]
    )
    if has_timing:
        answer.timing.queue_s = 0.1
    expected = json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert json.loads(msgspec.json.encode(to_document(answer))) == json.loads(json.dumps(expected))
