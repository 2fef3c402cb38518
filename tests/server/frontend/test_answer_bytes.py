"""What answers are on the wire, byte for byte: of every kind of head, on both protocols.

`golden/answers.json` holds, for each case below, what the server sent for its output and for the output's negative;
where it refused both, the status. Bytes that change break clients that compare or cache them: that is a decision, and
never a side effect.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from adamix.files.manifest import HeadSpec
from adamix_protos.open_inference import open_inference_pb2 as oip
from adamix_protos.v1 import inference_pb2 as v1
from adamix_server.channel.engine_frames import Emit, Event
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import Harness, StartServing

GOLDEN: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "golden" / "answers.json").read_text())
PREDICT = "/adamix.v1.InferenceService/Predict"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
METADATA = (("x-request-id", "golden"),)
NAMES = {"0": "a", "1": "", "2": "ü,b"}
MANY = 70


@dataclass(frozen=True)
class Case:
    head: HeadSpec
    output: tuple[float, ...]


def classes(*output: float, **fields: Any) -> Case:
    head = HeadSpec(type="classification", pooling="mean", num_labels=len(output), **fields)
    return Case(head, output)


def tags(*output: float, **fields: Any) -> Case:
    head = HeadSpec(type="multilabel", pooling="mean", num_labels=len(output), **fields)
    return Case(head, output)


def number(output: float, **fields: Any) -> Case:
    return Case(HeadSpec(type="regression", pooling="mean", **fields), (output,))


def vector(*output: float, **fields: Any) -> Case:
    return Case(HeadSpec(type="embedding", pooling="mean", **fields), output)


def ramp(count: int) -> tuple[float, ...]:
    return tuple(float(value) for value in np.float32(np.sin(np.arange(count)) * 3))


CASES = {
    "classes": classes(0.5, -1.25, 3.0, id2label=NAMES),
    "classes without names": classes(0.1, -0.1, 0.3, 1e-7),
    "classes that tie": classes(1.0, 1.0, 1.0, id2label=NAMES),
    "classes far apart": classes(1e30, -1e30, 3e38, id2label=NAMES),
    "one class": classes(2.0),
    "many classes": classes(*ramp(MANY)),
    "just few classes": classes(*ramp(64)),
    "tags": tags(0.0, -1.0, 2.5, id2label=NAMES),
    "tags over a threshold": tags(2.0, 0.5, 3.0, threshold=0.9, id2label=NAMES),
    "tags over nothing": tags(2.0, -2.0, 0.0, threshold=0.0),
    "tags over everything": tags(2.0, -2.0, 40.0, threshold=1.0),
    "one tag": tags(0.25, threshold=0.25),
    "many tags": tags(*ramp(MANY), threshold=0.5),
    "number": number(1.0 / 3),
    "number in bounds": number(2.5, clip=(-5.0, 5.0)),
    "number out of bounds": number(9.0, clip=(0.0, 0.1)),
    "number zero": number(0.0),
    "vector": vector(0.1, 2.0, -3.0, 4.5),
    "vector of a known size": vector(*ramp(8), dim=8),
    "vector of length 1": vector(0.1, 2.0, -3.0, 4.5, normalize=True),
    "vector left as long": vector(*ramp(8), normalize=False, dim=8),
    "vector of zeros": vector(0.0, 0.0, 0.0, normalize=True),
    "vector of length 1 already": vector(0.0, 1.0, 0.0, normalize=True),
    "long vector": vector(*ramp(384), normalize=True),
    "NaN": classes(1.0, float("nan"), 2.0),
    "infinity": tags(1.0, float("inf"), 2.0),
    "infinities": number(float("-inf")),
    "vector with NaN": vector(1.0, float("nan"), normalize=True),
    "too few": replace(classes(1.0, 2.0), output=(1.0,)),
    "too many": replace(number(1.0), output=(1.0, 2.0)),
    "too few of a vector": vector(1.0, 2.0, dim=8),
    "nothing": replace(vector(1.0), output=()),
}


def predict(*, return_logits: bool) -> Callable[[str], bytes]:
    def request(task: str) -> bytes:
        inputs = [v1.PredictInput(task=task, text=text) for text in ("w1", "w2")]
        return v1.PredictRequest(inputs=inputs, return_logits=return_logits).SerializeToString()

    return request


def infer(*, raw: bool) -> Callable[[str], bytes]:
    def request(task: str) -> bytes:
        tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[2])
        if raw:
            contents = b"".join(len(text).to_bytes(4, "little") + text for text in (b"w1", b"w2"))
            message = oip.ModelInferRequest(model_name=task, inputs=[tensor], raw_input_contents=[contents])
        else:
            tensor.contents.bytes_contents.extend([b"w1", b"w2"])
            message = oip.ModelInferRequest(model_name=task, inputs=[tensor])
        return message.SerializeToString()

    return request


def without_what_varies(method: str, answer: bytes) -> bytes:
    """`answer` without clocks, and without digests, which are those of the test's adapters."""
    if method == MODEL_INFER:
        response = oip.ModelInferResponse.FromString(answer)
        response.ClearField("model_version")
        return response.SerializeToString(deterministic=True)
    predictions = v1.PredictResponse.FromString(answer)
    predictions.ClearField("timing")
    for prediction in predictions.predictions:
        prediction.ClearField("version")
    return predictions.SerializeToString(deterministic=True)


WAYS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "predict": (PREDICT, predict(return_logits=False)),
    "predict with logits": (PREDICT, predict(return_logits=True)),
    "infer": (MODEL_INFER, infer(raw=False)),
    "infer raw": (MODEL_INFER, infer(raw=True)),
}


async def ask(harness: Harness, way: str, task: str, output: tuple[float, ...]) -> str:
    """What the server answers, in hex, when its engine gives `output` for one input and its negative for the other."""
    method, request = WAYS[way]
    call = asyncio.ensure_future(harness.channel.unary_unary(method)(request(task), metadata=METADATA))
    engine = harness.engine
    await harness.until(lambda: len(engine.held) == 2)
    rows, engine.held = engine.held, []
    payloads = [np.asarray(output, "<f4").tobytes(), (-np.asarray(output, "<f4")).tobytes()]
    events = [Event(id=row.id, payload=payload) for row, payload in zip(rows, payloads, strict=True)]
    engine.emit(
        Emit(engine_id="engine-0", generation=engine.generation, events=events, credit_inputs=2, credit_tokens=6)
    )
    try:
        return without_what_varies(method, await call).hex()
    except grpc.aio.AioRpcError as error:
        return dict(error.trailing_metadata())["grpc-status-details-bin"].hex()


async def test_answers_are_the_bytes_they_always_were(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    tasks = {name: f"task-{index}" for index, name in enumerate(CASES)}
    for index, (name, case) in enumerate(CASES.items()):
        seed(tasks[name], make_adapter(case.head, seed=index))

    def prepare(engine: FakeEngine) -> None:
        engine.hold = True

    found: dict[str, dict[str, str]] = {}
    harness = await start_serving(prepare=prepare)
    for name, case in CASES.items():
        found[name] = {way: await ask(harness, way, tasks[name], case.output) for way in WAYS}
    assert found.keys() == GOLDEN.keys()
    for name, ways in found.items():
        for way, answer in ways.items():
            assert answer == GOLDEN[name][way], f"{name}, by {way}"
