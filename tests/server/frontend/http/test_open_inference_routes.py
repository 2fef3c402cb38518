"""The Open Inference Protocol over HTTP: what its stock client sees, and what a hostile one is told."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from adamix.files.manifest import HeadSpec
from adamix_protos.open_inference import open_inference_pb2 as pb
from adamix_protos.open_inference import open_inference_pb2_grpc
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import Harness, StartServing

HTTP = "127.0.0.1:0"
STOCK_CLIENT = Path(__file__).parent / "stock_http_client.py"

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


def client_of(harness: Harness) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=f"http://{harness.http}", timeout=20)


def error_of(answer: httpx2.Response) -> tuple[int, str, str | None]:
    """In the protocol's shape: the message is all of `error`."""
    document = answer.json()
    assert isinstance(document["error"], str)
    assert document["code"] == answer.status_code
    return answer.status_code, document["reason"], document["field"]


def tensor(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts), **fields}


def raw(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


async def test_the_stock_client_gets_everything_it_asks_for(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    heads = {"intent": INTENT, "tags": TAGS, "score": SCORE, "vector": VECTOR}
    digests = {task: seed(task, make_adapter(head)) for task, head in heads.items()}
    newer = seed("intent", make_adapter(INTENT, seed=5))
    seed("old", make_adapter(fingerprint="c" * 64, seed=6))

    def prepare(engine: FakeEngine) -> None:
        engine.widths.update({digests["tags"]: 4, digests["score"]: 1, digests["vector"]: 8})

    harness = await start_serving(prepare=prepare, http=HTTP)
    found = await stock(
        harness.http,
        ("server_live", {}),
        ("server_ready", {}),
        ("model_ready", {"model_name": "intent"}),
        ("model_ready", {"model_name": "tenants/default/tasks/intent"}),
        ("model_ready", {"model_name": "intent", "model_version": "d" * 64}),
        ("model_ready", {"model_name": "nobody"}),
        ("model_ready", {"model_name": "old"}),
        ("server_metadata", {}),
        ("model_metadata", {"model_name": "intent"}),
        ("model_metadata", {"model_name": "vector"}),
        ("infer", {"model": "intent", "texts": ["w1 w2", "w1"], "request_id": "mine"}),
        ("infer", {"model": "tenants/default/tasks/intent", "texts": ["w1"], "model_version": digests["intent"]}),
        ("infer", {"model": "intent", "texts": ["w1 w2"], "binary": False, "outputs": ["scores", "label"]}),
        ("infer", {"model": "tags", "texts": ["w1 w2"], "shape": [1, 1]}),
        ("infer", {"model": "score", "texts": ["w1"]}),
        ("infer", {"model": "vector", "texts": ["w1", "w1 w2"]}),
        ("infer", {"model": "intent", "texts": ["w1"], "pairs": ["w2 w3"], "outputs": ["scores"]}),
        ("infer", {"model": "intent", "texts": ["w1"], "outputs": ["scores"], "class_count": 2}),
        ("infer", {"model": "intent", "texts": ["w1 " * 20], "parameters": {"truncation": "right"}}),
        ("infer", {"model": "intent", "texts": ["w1 " * 20]}),
        ("infer", {"model": "nobody", "texts": ["w1"]}),
        ("infer", {"model": "intent", "texts": ["w1"], "sequence_id": 7, "sequence_start": True}),
        ("infer", {"model": "intent", "texts": ["w1"], "timeout": 1000}),
        ("model_metadata", {"model_name": "nobody"}),
    )
    values, refused = [entry.get("value") for entry in found[:19]], found[19:]
    assert values[:7] == [True, True, True, True, False, False, False]
    assert (values[7]["name"], values[7]["extensions"]) == (
        "adamix",
        ["binary_tensor_data", "classification", "generate"],
    )
    intent, vector = values[8], values[9]
    assert (intent["name"], intent["platform"]) == ("intent", "adamix")
    assert sorted(intent["versions"]) == sorted([digests["intent"], newer])
    assert intent["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert intent["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
    ]
    assert vector["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, -1]}]
    two, pinned, plain, tags, score, vectors, pair, best, cut = values[10:]
    assert (two["model_version"], two["id"]) == (newer, "mine")
    assert (two["label"], two["shapes"]) == (["ü", "ü"], {"label": [2], "scores": [2, 3]})
    powers = np.exp([0.0, 4.0, 8.0])
    np.testing.assert_allclose(two["scores"][0], powers / powers.sum(), rtol=1e-6)
    assert pinned["model_version"] == digests["intent"]
    assert plain["label"] == ["ü"]
    assert plain["scores"] == two["scores"][:1]
    assert (tags["label"], tags["shapes"]) == (["LABEL_1,LABEL_2,LABEL_3"], {"label": [1], "scores": [1, 4]})
    assert (score["score"], score["shapes"]) == ([0.0], {"score": [1]})
    np.testing.assert_allclose(np.linalg.norm(vectors["embedding"], axis=1), 1.0, rtol=1e-6)
    assert pair["shapes"] == {"scores": [1, 3]}
    assert [text.rsplit(":", 2)[1:] for text in best["scores"]] == [["2", "ü"], ["1", "b"]]
    assert cut["label"] == ["ü"]
    assert [entry["status"] for entry in refused] == ["400", "404", "400", "400", "404"]
    assert refused[0]["error"].startswith("text[0]: text has 22 tokens")
    assert "sequence_" in refused[2]["error"]
    assert "timeout" in refused[3]["error"]


async def test_json_says_what_grpc_says(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("intent", make_adapter(INTENT))
    harness = await start_serving(http=HTTP)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    asked = pb.ModelInferRequest(
        model_name="intent", id="7", inputs=[{"name": "text", "datatype": "BYTES", "shape": [2]}]
    )
    asked.raw_input_contents.append(raw(b"w1", "ü".encode()))
    expected = await stub.ModelInfer(asked)
    async with client_of(harness) as client:
        answer = await client.post("/v2/models/intent/infer", json={"id": "7", "inputs": [tensor("w1", "ü")]})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        document = answer.json()
        assert (document["model_name"], document["id"]) == ("intent", "7")
        assert document["model_version"] == expected.model_version
        label, scores = document["outputs"]
        assert label == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["ü", "ü"]}
        assert np.float32(scores["data"]).tobytes() == expected.raw_output_contents[1]
        head = json.dumps(
            {
                "inputs": [{**tensor("", ""), "parameters": {"binary_data_size": 12}}],
                "outputs": [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "label"}],
            }
        ).replace('"data": ["", ""], ', "")
        answer = await client.post(
            "/v2/models/intent/infer",
            content=head.encode() + raw(b"w1", "ü".encode()),
            headers={"inference-header-content-length": str(len(head))},
        )
        length = int(answer.headers["inference-header-content-length"])
        scores, label = json.loads(answer.content[:length])["outputs"]
        assert (scores["parameters"], label["data"]) == ({"binary_data_size": 24}, ["ü", "ü"])
        assert answer.content[length:] == expected.raw_output_contents[1]


async def test_what_is_refused_and_how(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("intent", make_adapter(INTENT))
    harness = await start_serving(http=HTTP)
    sized = tensor("w1")
    del sized["data"]
    sized["parameters"] = {"binary_data_size": 6}
    infer = "/v2/models/intent/infer"

    def behind(*contents: bytes, says: int = 0, **fields: Any) -> dict[str, Any]:
        head = json.dumps({"inputs": [sized], **fields}).encode()
        return {
            "content": b"".join((head, *contents)),
            "headers": {"inference-header-content-length": str(len(head) + says)},
        }

    length_invalid = (400, "HEADER_LENGTH_INVALID", "inference-header-content-length")
    size_invalid = (400, "BINARY_SIZE_INVALID", "inputs[0].parameters[binary_data_size]")
    cases: list[tuple[str, dict[str, Any], tuple[int, str, str | None]]] = [
        # The model is judged first, whatever the body is.
        ("/v2/models/nobody/infer", {"content": b"{"}, (404, "NOT_FOUND", None)),
        ("/v2/models/nobody/infer", behind(says=99), (404, "NOT_FOUND", None)),
        ("/v2/models/nobody/infer", {"content": bytes(5 << 20)}, (404, "NOT_FOUND", None)),
        (infer, {"content": bytes(5 << 20)}, (413, "BODY_TOO_LARGE", None)),
        ("/v2/models/nobody/infer", {"json": {"inputs": [], "x": 1}}, (404, "NOT_FOUND", None)),
        (f"/v2/models/intent/versions/{'0' * 64}/infer", {"content": b"{"}, (404, "NOT_FOUND", None)),
        ("/v2/models/intent/versions/1/infer", {"content": b"{"}, (400, "MALFORMED_MESSAGE", None)),
        ("/v2/models/intent/versions/1/infer", {"json": {"inputs": []}}, (400, "DIGEST_INVALID", "model_version")),
        ("/v2/models/%2e%2e/infer", {"json": {"inputs": []}}, (400, "ID_INVALID", "model_name")),
        ("/v2/models/a%2Fb/infer", {"json": {"inputs": []}}, (400, "ID_INVALID", "model_name")),
        ("/v2/models/tenants/other/tasks/intent/infer", {"json": {"inputs": []}}, (404, "NOT_FOUND", None)),
        (f"{infer}?x=1", {"json": {"inputs": [tensor("w1")]}}, (400, "QUERY_INVALID", "x")),
        (infer, {"content": b""}, (400, "MALFORMED_MESSAGE", None)),
        (infer, {"content": b'{"inputs": []'}, (400, "MALFORMED_MESSAGE", None)),
        (infer, {"content": b'{"inputs": NaN}'}, (400, "MALFORMED_MESSAGE", None)),
        (infer, {"content": b'{"inputs": [], "inputs": []}'}, (400, "MALFORMED_MESSAGE", None)),
        (infer, {"data": {"a": "b"}}, (415, "CONTENT_TYPE_UNSUPPORTED", None)),
        (infer, {"json": {"inputs": []}}, (400, "INPUT_MISSING", "inputs")),
        (infer, {"json": {"inputs": [tensor("w1", name="image")]}}, (400, "INPUT_UNKNOWN", "inputs[0].name")),
        (infer, {"json": {"inputs": [tensor("w1", extra=1)]}}, (400, "UNKNOWN_FIELD", "inputs[0].extra")),
        (
            infer,
            {"json": {"inputs": [tensor("w1", datatype="FP32", data=[1.5])]}},
            (400, "DATATYPE_INVALID", "inputs[0].datatype"),
        ),
        (infer, {"json": {"inputs": [tensor("w1", shape=[-1])]}}, (400, "INPUT_COUNT", "inputs[0].shape")),
        (infer, {"json": {"inputs": [tensor("w1", shape=[2**62])]}}, (400, "INPUT_COUNT", "inputs[0].shape")),
        (infer, {"json": {"inputs": [tensor(*["w1"] * 65)]}}, (400, "INPUT_COUNT", "inputs[0].shape")),
        (infer, {"json": {"inputs": [tensor("w1", shape=[1, 2])]}}, (400, "SHAPE_INVALID", "inputs[0].shape")),
        (infer, {"json": {"inputs": [tensor("w1", shape=[2])]}}, (400, "CONTENTS_INVALID", "text")),
        (infer, {"json": {"inputs": [tensor("w1", data=[7])]}}, (400, "CONTENTS_INVALID", "inputs[0].data")),
        (infer, {"json": {"inputs": [tensor("")]}}, (400, "TEXT_EMPTY", "text[0]")),
        (
            infer,
            {"json": {"inputs": [tensor("w1")], "outputs": [{"name": "logits"}]}},
            (400, "OUTPUT_UNKNOWN", "outputs[0].name"),
        ),
        (
            infer,
            {"json": {"inputs": [tensor("w1")], "parameters": {"priority": 1}}},
            (400, "PARAMETER_UNKNOWN", "parameters[priority]"),
        ),
        (
            infer,
            {"json": {"inputs": [tensor("w1", parameters={"shared_memory_region": "x"})]}},
            (400, "PARAMETER_UNKNOWN", "inputs[0].parameters[shared_memory_region]"),
        ),
        (infer, behind(raw(b"w1")[:5]), size_invalid),
        (infer, behind(), size_invalid),
        (infer, behind(raw(b"w1"), b"x"), (400, "BINARY_SIZE_INVALID", "inputs")),
        (infer, behind(raw(b"w1"), says=10**6), length_invalid),
        (infer, behind(raw(b"w1"), says=-(10**6)), length_invalid),
        (infer, behind(raw(b"w1"), says=3), (400, "MALFORMED_MESSAGE", None)),
        (infer, behind((2**32 - 1).to_bytes(4, "little") + b"w1"), (400, "CONTENTS_INVALID", "text")),
        (infer, behind(raw(b"\xff\xfe")), (400, "TEXT_NOT_UTF8", "text[0]")),
        ("/v2/models/nobody/generate", {"content": b"{"}, (404, "NOT_FOUND", None)),
        ("/v2/models/nobody/generate", {"json": {"text_input": "x"}}, (404, "NOT_FOUND", None)),
        ("/v2/models/nobody/generate_stream", {"json": {"text_input": "x"}}, (404, "NOT_FOUND", None)),
        ("/v2/models/intent/generate", {"json": {"text_input": "x"}}, (400, "NOT_GENERATIVE", None)),
        ("/v2/models/intent/generate", {"json": {"prompt": "x"}}, (400, "UNKNOWN_FIELD", "prompt")),
    ]
    async with client_of(harness) as client:
        for path, options, expected in cases:
            answer = await client.post(path, **options)
            assert error_of(answer) == expected, (path, options, answer.text)
        for path in ("/v2/models/nobody", "/v2/models/nobody/ready", "/v2/models/tenants/x/tasks/intent/ready"):
            assert error_of(await client.get(path)) == (404, "NOT_FOUND", None)
        assert error_of(await client.get("/v2/models/%2e%2e/ready"))[1:] == ("ID_INVALID", "name")
        assert (await client.post(infer, json={"inputs": [tensor("w1")]})).status_code == 200


async def test_a_server_that_cannot_answer_is_not_ready(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("intent", make_adapter(INTENT))
    harness = await start_serving(http=HTTP)
    async with client_of(harness) as client:

        async def ready() -> list[int]:
            paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/intent/ready")
            return [(await client.get(path)).status_code for path in paths]

        assert await ready() == [200, 200, 200]
        harness.kill_engine()
        while (await ready())[1] == 200:  # noqa: ASYNC110 - it has no event over HTTP
            await asyncio.sleep(0.005)
        assert await ready() == [200, 400, 400]
        refused = await client.post("/v2/models/intent/infer", json={"inputs": [tensor("w1")]})
        assert error_of(refused)[:2] == (503, "ENGINE_RESTARTING")
        assert int(refused.headers["retry-after"]) >= 1
