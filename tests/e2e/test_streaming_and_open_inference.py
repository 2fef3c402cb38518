"""The same answers whichever way a text comes: in one call, over a stream, or from another protocol's stock client."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Classification, Input, Prediction, Regression, StreamInput
from adamix_testing.servers import Server

TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird", "fish"]
STOCK_CLIENT = Path(__file__).parents[1] / "server" / "frontend" / "inference" / "stock_client.py"


def scores(prediction: Prediction) -> list[float]:
    match prediction.result:
        case Classification(scores=values):
            return list(values)
        case Regression(score=value):
            return [value]
        case other:
            raise AssertionError(other)


def test_three_ways_to_the_same_answer(
    server: Server, make_adapter: Callable[..., AdapterFile], spec: BackboneSpec
) -> None:
    adapters = {
        "topic": make_adapter(1, num_labels=3, spec=spec),
        "score": make_adapter(2, kind="lora", sites=("attn_q", "attn_v"), num_labels=1, spec=spec),
    }
    with server.client() as client:
        for task, adapter in adapters.items():
            client.register(task, adapter_file.encode(adapter.manifest, adapter.tensors))
        inputs = {f"{task}-{i}": Input(task, text=text) for task in adapters for i, text in enumerate(TEXTS)}
        called = dict(zip(inputs, client.predict(inputs.values()).predictions, strict=True))
        streamed = {
            answer.id: answer.prediction
            for answer in client.predict_stream(StreamInput(id_, item) for id_, item in inputs.items())
        }
    calls = [
        ("server_live", {}),
        ("server_ready", {}),
        ("model_ready", {"model_name": "topic"}),
        ("model_metadata", {"model_name": "topic"}),
        *(("infer", {"model": task, "texts": TEXTS}) for task in adapters),
        ("infer", {"model": "nobody", "texts": TEXTS}),
    ]
    process = subprocess.run(
        [sys.executable, str(STOCK_CLIENT), server.address],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    live, ready, model_ready, metadata, topic, score, unknown = json.loads(process.stdout)
    assert [live["value"], ready["value"], model_ready["value"]] == [True, True, True]
    assert metadata["value"]["versions"] == [adapters["topic"].digest]
    assert unknown["status"] == "StatusCode.NOT_FOUND"
    tensors = {"topic": topic["value"]["scores"], "score": [[value] for value in score["value"]["score"]]}
    for id_, item in inputs.items():
        expected = scores(called[id_])
        assert scores(streamed[id_]) == pytest.approx(expected, abs=1e-5)
        assert tensors[item.task][int(id_[-1])] == pytest.approx(expected, abs=1e-5)
        assert called[id_].version == streamed[id_].version == adapters[item.task].digest
    labels = [called[f"topic-{i}"].result for i in range(len(TEXTS))]
    assert topic["value"]["label"] == [found.label for found in labels if isinstance(found, Classification)]
    assert topic["value"]["model_version"] == adapters["topic"].digest
