"""`/v1/predict` over a real connection: the answer that gRPC gives, in JSON, and refusals by field."""

import httpx2
from google.protobuf import json_format

from adamix.files.manifest import HeadSpec
from adamix_protos.v1 import inference_pb2
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
