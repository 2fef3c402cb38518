"""Requests as bytes and back: what the load generator sends, and what its answers say."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adamix.errors import InvalidData
from adamix_bench.serving.synthesis import task_name
from adamix_bench.serving.workload import Requests
from adamix_protos.v1 import inference_pb2


def predict_payloads(requests: Requests, inputs_per_call: int, *, return_logits: bool = False) -> list[bytes]:
    """Serialised `PredictRequest`s; texts, not token ids: tokenizing is part of serving."""
    inputs = _inputs(requests)
    return [
        inference_pb2.PredictRequest(
            inputs=inputs[start : start + inputs_per_call], return_logits=return_logits
        ).SerializeToString()
        for start in range(0, len(inputs), inputs_per_call)
    ]


def stream_payloads(requests: Requests) -> list[bytes]:
    """Serialised `PredictStreamRequest`s without ids, which the load generator adds."""
    return [inference_pb2.PredictStreamRequest(input=item).SerializeToString() for item in _inputs(requests)]


def read_logits(answers: Sequence[bytes]) -> list[NDArray[np.float32]]:
    """The logits of every input of serialised `PredictResponse`s. Raises InvalidData when an input failed."""
    found = []
    for answer in answers:
        for prediction in inference_pb2.PredictResponse.FromString(answer).predictions:
            if prediction.WhichOneof("result") in (None, "error"):
                raise InvalidData(f"the server did not answer {prediction.task}: {prediction.error.message}")
            found.append(np.asarray(prediction.logits, np.float32))
    return found


def _inputs(requests: Requests) -> list[inference_pb2.PredictInput]:
    return [
        inference_pb2.PredictInput(task=task_name(task), text=text)
        for task, text in zip(requests.tasks, requests.texts, strict=True)
    ]
