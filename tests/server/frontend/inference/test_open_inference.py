"""The Open Inference Protocol: what its stock client sees, and what a hostile one is told."""

import asyncio
import json
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import InternalError, InvalidRequest
from adamix.files.manifest import HeadSpec
from adamix_protos.open_inference import open_inference_pb2 as pb
from adamix_protos.open_inference import open_inference_pb2_grpc
from adamix_protos.v1 import adapters_pb2
from adamix_server.frontend.inference.open_inference import split_bytes
from adamix_testing import refusals
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import Harness, StartServing

STOCK_CLIENT = Path(__file__).parent / "stock_client.py"

INTENT = HeadSpec(type="classification", pooling="mean", num_labels=3, id2label={"0": "a", "1": "b", "2": "ü"})
TAGS = HeadSpec(type="multilabel", pooling="cls", num_labels=4, threshold=0.9)
SCORE = HeadSpec(type="regression", pooling="mean", clip=(0.0, 5.0))
VECTOR = HeadSpec(type="embedding", pooling="mean", normalize=True)


async def stock(address: str, *asked: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(STOCK_CLIENT), address, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(json.dumps(asked).encode())
    assert process.returncode == 0
    results: list[dict[str, Any]] = json.loads(output)
    return results


def raw(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def tensor(name: str = "text", shape: tuple[int, ...] = (1,), datatype: str = "BYTES", **fields: Any) -> Any:
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **fields)


def parameter(value: str) -> pb.InferParameter:
    return pb.InferParameter(string_param=value)


def infer(*texts: bytes, **fields: Any) -> pb.ModelInferRequest:
    good = {"model_name": "intent", "inputs": [tensor(shape=(len(texts),))], "raw_input_contents": [raw(*texts)]}
    return pb.ModelInferRequest(**{**good, **fields})


def stub(harness: Harness) -> open_inference_pb2_grpc.GRPCInferenceServiceStub:
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, str, str]:
    """Code, reason, field and message of a call that fails."""
    error = await refusals.failure(call)
    status = refusals.status_of(error)
    bad = refusals.details(status).get("BadRequest")
    field = "" if bad is None else bad.field_violations[0].field
    return error.code(), refusals.reason(status), field, status.message


async def test_the_stock_client_gets_everything_it_asks_for(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    heads = {"intent": INTENT, "tags": TAGS, "score": SCORE, "vector": VECTOR}
    digests = {task: seed(task, make_adapter(head)) for task, head in heads.items()}
    newer = seed("intent", make_adapter(INTENT, seed=5))
    seed("old", make_adapter(fingerprint="c" * 64, seed=6))

    def prepare(engine: FakeEngine) -> None:
        engine.widths.update({digests["tags"]: 4, digests["score"]: 1, digests["vector"]: 8})

    harness = await start_serving(prepare=prepare)
    found = await stock(
        harness.address,
        ("server_live", {}),
        ("server_ready", {}),
        ("model_ready", {"model_name": "intent"}),
        ("model_ready", {"model_name": "intent", "model_version": "d" * 64}),
        ("model_ready", {"model_name": "nobody"}),
        ("model_ready", {"model_name": "old"}),
        ("server_metadata", {}),
        ("model_metadata", {"model_name": "intent"}),
        ("model_metadata", {"model_name": "vector"}),
        ("infer", {"model": "intent", "texts": ["w1 w2", "w1"], "request_id": "mine"}),
        ("infer", {"model": "intent", "texts": ["w1 w2"], "model_version": digests["intent"]}),
        ("infer", {"model": "tags", "texts": ["w1 w2"], "shape": [1, 1]}),
        ("infer", {"model": "score", "texts": ["w1"]}),
        ("infer", {"model": "vector", "texts": ["w1", "w1 w2"]}),
        ("infer", {"model": "intent", "texts": ["w1"], "pairs": ["w2 w3"], "outputs": ["scores"]}),
        ("infer", {"model": "intent", "texts": ["w1 " * 20], "parameters": {"truncation": "right"}}),
        ("infer", {"model": "intent", "texts": ["w1 " * 20]}),
        ("infer", {"model": "nobody", "texts": ["w1"]}),
        ("infer", {"model": "intent", "texts": ["w1"], "sequence_id": 7, "sequence_start": True}),
        ("infer", {"model": "intent", "texts": ["w1"], "timeout": 1000}),
    )
    values, refused = [entry.get("value") for entry in found[:16]], found[16:]
    assert values[:6] == [True, True, True, False, False, False]
    assert values[6]["name"] == "adamix"
    assert values[6]["version"]
    intent, vector = values[7], values[8]
    assert (intent["name"], intent["platform"]) == ("intent", "adamix")
    assert sorted(intent["versions"]) == sorted([digests["intent"], newer])
    assert intent["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1"]}]
    assert intent["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": ["-1"]},
        {"name": "scores", "datatype": "FP32", "shape": ["-1", "3"]},
    ]
    assert vector["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": ["-1", "-1"]}]
    two, pinned, tags, score, vectors, pair, cut = values[9:]
    assert (two["model_version"], two["id"]) == (newer, "mine")
    assert (two["label"], two["shapes"]) == (["ü", "ü"], {"label": [2], "scores": [2, 3]})
    powers = np.exp([0.0, 4.0, 8.0])
    np.testing.assert_allclose(two["scores"][0], powers / powers.sum(), rtol=1e-6)
    assert pinned["model_version"] == digests["intent"]
    assert (tags["label"], tags["shapes"]) == (["LABEL_1,LABEL_2,LABEL_3"], {"label": [1], "scores": [1, 4]})
    assert (score["score"], score["shapes"]) == ([0.0], {"score": [1]})
    assert vectors["shapes"] == {"embedding": [2, 8]}
    np.testing.assert_allclose(np.linalg.norm(vectors["embedding"], axis=1), 1.0, rtol=1e-6)
    assert pair["shapes"] == {"scores": [1, 3]}
    assert cut["label"] == ["ü"]
    assert [entry["status"] for entry in refused] == [
        "StatusCode.INVALID_ARGUMENT",
        "StatusCode.NOT_FOUND",
        "StatusCode.INVALID_ARGUMENT",
        "StatusCode.INVALID_ARGUMENT",
    ]
    assert refused[0]["error"].startswith("text[0]: text has 22 tokens")
    assert "sequence_" in refused[2]["error"]
    assert "timeout" in refused[3]["error"]


async def test_what_the_protocol_can_say_and_this_server_cannot_do(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("intent", make_adapter(INTENT))
    seed("writer", make_adapter(HeadSpec(type="causal_lm", pooling="last"), seed=3))
    output = pb.ModelInferRequest.InferRequestedOutputTensor
    good = raw(b"w1")
    refused: list[tuple[dict[str, Any], str, str]] = [
        (
            {"parameters": {"sequence_id": pb.InferParameter(int64_param=1)}},
            "PARAMETER_UNKNOWN",
            "parameters[sequence_id]",
        ),
        ({"parameters": {"truncation": parameter("left")}}, "PARAMETER_INVALID", "parameters[truncation]"),
        (
            {"parameters": {"truncation": pb.InferParameter(bool_param=True)}},
            "PARAMETER_INVALID",
            "parameters[truncation]",
        ),
        (
            {"inputs": [tensor(parameters={"shared_memory_region": parameter("x")})]},
            "PARAMETER_UNKNOWN",
            "inputs[0].parameters[shared_memory_region]",
        ),
        *(
            (
                {"outputs": [output(name=name, parameters={"classification": value})]},
                "PARAMETER_INVALID",
                "outputs[0].parameters[classification]",
            )
            for name, value in (
                ("label", pb.InferParameter(int64_param=3)),
                ("scores", pb.InferParameter(int64_param=-1)),
                ("scores", pb.InferParameter(bool_param=True)),
                ("scores", parameter("2")),
            )
        ),
        (
            {"outputs": [output(name="scores", parameters={"binary_data": pb.InferParameter(bool_param=True)})]},
            "PARAMETER_UNKNOWN",
            "outputs[0].parameters[binary_data]",
        ),
        ({"outputs": [output(name="logits")]}, "OUTPUT_UNKNOWN", "outputs[0].name"),
        ({"outputs": [output(name="label"), output(name="label")]}, "OUTPUT_UNKNOWN", "outputs[1].name"),
        ({"inputs": [tensor("image")]}, "INPUT_UNKNOWN", "inputs[0].name"),
        ({"inputs": [tensor(), tensor()], "raw_input_contents": [good, good]}, "INPUT_UNKNOWN", "inputs[1].name"),
        ({"inputs": [tensor("text_pair")]}, "INPUT_MISSING", "inputs"),
        ({"inputs": [], "raw_input_contents": []}, "INPUT_MISSING", "inputs"),
        ({"inputs": [tensor(datatype="INT32")]}, "DATATYPE_INVALID", "inputs[0].datatype"),
        ({"inputs": [tensor(shape=())]}, "SHAPE_INVALID", "inputs[0].shape"),
        ({"inputs": [tensor(shape=(0,))]}, "INPUT_COUNT", "inputs[0].shape"),
        ({"inputs": [tensor(shape=(-1,))]}, "INPUT_COUNT", "inputs[0].shape"),
        (
            {"inputs": [tensor(shape=(65,))], "raw_input_contents": [raw(*[b"w1"] * 65)]},
            "INPUT_COUNT",
            "inputs[0].shape",
        ),
        ({"inputs": [tensor(shape=(1, 2))]}, "SHAPE_INVALID", "inputs[0].shape"),
        ({"inputs": [tensor(shape=(1, 1, 1))]}, "SHAPE_INVALID", "inputs[0].shape"),
        ({"inputs": [tensor(shape=(2,))]}, "CONTENTS_INVALID", "text"),
        ({"raw_input_contents": [good, good]}, "CONTENTS_INVALID", "raw_input_contents"),
        ({"raw_input_contents": []}, "CONTENTS_INVALID", "text"),
        ({"raw_input_contents": [good + b"x"]}, "CONTENTS_INVALID", "text"),
        ({"raw_input_contents": [b"\xff\xff\xff\xff"]}, "CONTENTS_INVALID", "text"),
        (
            {"inputs": [tensor(contents=pb.InferTensorContents(bytes_contents=[b"w1"]))]},
            "CONTENTS_INVALID",
            "inputs[0].contents",
        ),
        (
            {
                "inputs": [tensor(shape=(1,)), tensor("text_pair", shape=(2,))],
                "raw_input_contents": [good, raw(b"a", b"b")],
            },
            "SHAPE_INVALID",
            "text_pair",
        ),
        ({"raw_input_contents": [raw(b"\xff\xfe")]}, "TEXT_NOT_UTF8", "text[0]"),
        ({"raw_input_contents": [raw(b" ")]}, "TEXT_EMPTY", "text[0]"),
        ({"raw_input_contents": [raw(b"x" * (65 << 10))]}, "TEXT_TOO_LARGE", "text[0]"),
        (
            {"inputs": [tensor(), tensor("text_pair")], "raw_input_contents": [good, raw(b"")]},
            "TEXT_EMPTY",
            "text_pair[0]",
        ),
        ({"model_version": "1"}, "DIGEST_INVALID", "model_version"),
        ({"model_name": ""}, "TASK_MISSING", "model_name"),
        ({"model_name": "../x"}, "ID_INVALID", "model_name"),
    ]
    harness = await start_serving()
    client = stub(harness)
    for fields, reason, field in refused:
        code, found_reason, found_field, _ = await failure(client.ModelInfer(infer(b"w1", **fields)))
        assert (code, found_reason, found_field) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field), fields
    assert harness.engine.submits == []
    assert (await failure(client.ModelInfer(infer(b"w1", model_name="writer"))))[:2] == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WRONG_HEAD",
    )
    assert (await failure(client.ModelMetadata(pb.ModelMetadataRequest(name="nobody"))))[0] is (
        grpc.StatusCode.NOT_FOUND
    )
    assert (await failure(client.ModelReady(pb.ModelReadyRequest(name=""))))[2] == "name"


async def test_a_call_is_answered_as_a_whole_or_not_at_all(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("intent", make_adapter(INTENT))
    harness = await start_serving()
    client = stub(harness)
    code, reason, field, message = await failure(client.ModelInfer(infer(b"w1", b"", b"w1 " * 20)))
    assert (code, reason, field) == (grpc.StatusCode.INVALID_ARGUMENT, "TEXT_EMPTY", "text[1]")
    assert message == "text[1]: text is empty"
    assert harness.engine.submits == []
    harness.engine.fail = lambda row: InternalError("secret /etc/adapters") if len(row.token_ids) > 12 else None
    code, reason, _, message = await failure(client.ModelInfer(infer(b"w1", b"w1 w2")))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert message.startswith("internal error, id=")
    harness.engine.fail = lambda row: None
    answer = await client.ModelInfer(infer(*[b"w1"] * 64))
    assert answer.outputs[0].shape == [64]


async def test_contents_are_answered_in_kind(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("intent", make_adapter(INTENT))
    harness = await start_serving()
    contents = pb.InferTensorContents(bytes_contents=[b"w1", "wörter".encode()])
    request = pb.ModelInferRequest(model_name="intent", inputs=[tensor(shape=(2,), contents=contents)])
    answer = await stub(harness).ModelInfer(request)
    assert not answer.raw_output_contents
    label, scores = answer.outputs
    assert list(label.contents.bytes_contents) == ["ü".encode()] * 2
    assert (list(scores.shape), len(scores.contents.fp32_contents)) == ([2, 3], 6)


async def test_classes_by_name_as_triton_writes_them(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """The best N, the best first: `score:index:label`; more than there are is all of them, 0 is the tensor itself."""
    digests = {task: seed(task, make_adapter(head)) for task, head in (("intent", INTENT), ("tags", TAGS))}
    harness = await start_serving(prepare=lambda engine: engine.widths.update({digests["tags"]: 4}))
    scores = np.exp([0.0, 4.0, 8.0]) / np.exp([0.0, 4.0, 8.0]).sum()
    best = [f"{scores[i]:.6f}:{i}:{label}" for i, label in ((2, "ü"), (1, "b"), (0, "a"))]
    asked = {"model": "intent", "texts": ["w1 w2", "w1 w2"], "outputs": ["scores"]}
    two, all_of_them, tags = await stock(
        harness.address,
        ("infer", {**asked, "class_count": 2}),
        ("infer", {**asked, "class_count": 9}),
        ("infer", {**asked, "model": "tags", "texts": ["w1 w2"], "class_count": 1}),
    )
    assert two["value"]["scores"] == [best[:2]] * 2
    assert two["value"]["shapes"] == {"scores": [2, 2]}
    assert all_of_them["value"]["scores"] == [best] * 2
    assert tags["value"]["scores"] == [["0.999994:3:LABEL_3"]]

    def requested(count: int) -> pb.ModelInferRequest.InferRequestedOutputTensor:
        parameters = {"classification": pb.InferParameter(int64_param=count)}
        return pb.ModelInferRequest.InferRequestedOutputTensor(name="scores", parameters=parameters)

    answer = await stub(harness).ModelInfer(infer(b"w1 w2", outputs=[requested(1)]))
    (output,) = answer.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [1, 1])
    assert answer.raw_output_contents == [raw(best[0].encode())]
    contents = pb.InferTensorContents(bytes_contents=[b"w1 w2"])
    typed = {"inputs": [tensor(contents=contents)], "raw_input_contents": [], "outputs": [requested(1)]}
    answer = await stub(harness).ModelInfer(infer(b"w1 w2", **typed))
    assert list(answer.outputs[0].contents.bytes_contents) == [best[0].encode()]
    plain = await stub(harness).ModelInfer(infer(b"w1 w2", outputs=[requested(0)]))
    assert (plain.outputs[0].datatype, list(plain.outputs[0].shape)) == ("FP32", [1, 3])


async def test_what_writes_texts_is_no_model_of_the_protocol(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating()
    client = stub(harness)
    assert not (await client.ModelReady(pb.ModelReadyRequest(name="writer"))).ready
    for asked in (
        client.ModelInfer(infer(b"abc", model_name="writer")),
        client.ModelMetadata(pb.ModelMetadataRequest(name="writer", version=writer)),
    ):
        code, told, _, message = await failure(asked)
        assert (code, told) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_HEAD")
        assert message == "this task generates text; call Generate"
    task = (await harness.adapters.GetTask(adapters_pb2.GetTaskRequest(task="writer"))).task
    assert (task.head_type, task.unavailable_reason) == ("causal_lm", "")


async def test_ready_follows_the_engine_and_calls_are_counted(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("intent", make_adapter(INTENT))
    harness = await start_serving()
    client = stub(harness)
    await client.ModelInfer(infer(b"w1"))
    counted = {sample.labels for sample in harness.front_end._recorder.drain() if any(sample.values)}
    assert ("inference.GRPCInferenceService/ModelInfer", "OK") in counted
    assert ("default", "intent") in counted
    harness.kill_engine()

    async def ready(expected: bool) -> None:
        while (await client.ServerReady(pb.ServerReadyRequest())).ready is not expected:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)

    await ready(False)
    assert not (await client.ModelReady(pb.ModelReadyRequest(name="intent"))).ready
    assert (await client.ServerLive(pb.ServerLiveRequest())).live
    assert (await failure(client.ModelInfer(infer(b"w1"))))[:2] == (
        grpc.StatusCode.UNAVAILABLE,
        "ENGINE_RESTARTING",
    )
    harness.start_engine()
    await ready(True)


@given(st.binary(max_size=64), st.integers(1, 4))
def test_raw_contents_are_split_or_refused(data: bytes, size: int) -> None:
    try:
        values = split_bytes(data, size, "text")
    except InvalidRequest:
        return
    assert raw(*values) == data


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_raw_contents_survive(values: list[bytes]) -> None:
    assert split_bytes(raw(*values), len(values), "text") == values
